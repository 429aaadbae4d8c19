//! Which Firecracker there is, and whether it can be used: known at start.

use std::io;
use std::process::{Command, Stdio};

use bhatti_engine::EngineError;
use bhatti_vmm::kvm::{Facts, KvmDevice, Virtualisation};
use bhatti_vmm::on_path;
use camino::{Utf8Path, Utf8PathBuf};

use crate::engine::FirecrackerConfig;

const NAME: &str = "firecracker";
const HINT: &str = "`make up` installs release 1.15.1 on hosts with KVM, if it can be downloaded; or \
                    install that from its project's page";
/// The releases this engine has been tested with.
const TESTED: &[(u32, u32, u32)] = &[(1, 15, 1)];
/// What must not be used, and why.
const KNOWN_BAD: &[((u32, u32, u32), &str)] = &[
    (
        (1, 15, 0),
        "while a machine sleeps its monotonic clock goes on, and a guest that asks for randomness can \
         take any amount of the VMM's memory",
    ),
    ((1, 16, 0), "it loses vsock after a restore"),
    ((1, 16, 1), "after a pause it accepts no new connection to its guest"),
];

/// Which Firecracker an engine with that configuration would run, whether or not there is KVM.
/// Starts nothing that stays.
pub fn find(config: &FirecrackerConfig) -> Result<Program, EngineError> {
    find_program(config.program.as_deref())
}

/// The Firecracker to use.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: Utf8PathBuf,
    pub version: String,
    /// Why it may not do, if it may not.
    pub warning: Option<String>,
}

/// Finds Firecracker: the configured one, else the one on `PATH`. Refuses releases that are known
/// not to work.
pub(crate) fn find_program(configured: Option<&Utf8Path>) -> Result<Program, EngineError> {
    let missing = |program: &str| EngineError::MissingProgram {
        program: program.to_owned(),
        hint: HINT.to_owned(),
    };
    let path = match configured {
        Some(path) => path.to_owned(),
        None => on_path(NAME).ok_or_else(|| missing(NAME))?,
    };
    let run = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let output = run.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => missing(path.as_str()),
        _ => EngineError::Spawn { program: path.to_string(), source },
    })?;
    let unusable = |why: String| EngineError::Spawn {
        program: path.to_string(),
        source: io::Error::new(io::ErrorKind::InvalidData, why),
    };
    let version = version(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| unusable("it does not say a Firecracker version".to_owned()))?;
    let warning = judge(&version).map_err(unusable)?;
    Ok(Program { path, version, warning })
}

/// `1.15.1` out of the first line of `--version`.
fn version(banner: &str) -> Option<String> {
    let version = banner.lines().next()?.strip_prefix("Firecracker v")?.trim();
    numbers(version).map(|_| version.to_owned())
}

fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    // What follows a hyphen says how it was built.
    let mut numbers = version.split('-').next()?.split('.').map(|number| number.parse().ok());
    let found = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(found)
}

/// Whether a release may be used; `Some` is what has to be said of it.
fn judge(version: &str) -> Result<Option<String>, String> {
    let found = numbers(version).ok_or("it does not say a Firecracker version")?;
    if let Some((_, why)) = KNOWN_BAD.iter().find(|(bad, _)| *bad == found) {
        return Err(format!("release {version} does not work here: {why}"));
    }
    if found < (1, 15, 0) {
        return Err(format!("release {version} is too old, 1.15.1 is needed"));
    }
    let tested = TESTED.contains(&found);
    Ok((!tested).then(|| format!("Firecracker {version} has not been tested with this engine")))
}

/// Why there can be a machine here; the error says why not.
pub(crate) fn hardware(facts: Facts) -> Result<String, EngineError> {
    let errno = io::Error::from_raw_os_error;
    let why = match (facts.kvm, facts.cpu) {
        (KvmDevice::Works, Virtualisation::Vmx) => {
            return Ok("/dev/kvm works and the CPU has vmx".to_owned());
        }
        (KvmDevice::Works, Virtualisation::Svm) => {
            return Ok("/dev/kvm works and the CPU has svm".to_owned());
        }
        (KvmDevice::Works, Virtualisation::El2) => return Ok("/dev/kvm works".to_owned()),
        (KvmDevice::Works, Virtualisation::None) => {
            return Err(no_kvm(errno(libc::ENODEV), "the CPU has neither vmx nor svm"));
        }
        (KvmDevice::Absent, _) => errno(libc::ENOENT),
        (KvmDevice::Refused(number) | KvmDevice::Dead(number), _) => errno(number),
    };
    Err(no_kvm(why, "there is no working /dev/kvm"))
}

fn no_kvm(source: io::Error, why: &str) -> EngineError {
    EngineError::Spawn { program: format!("{NAME}, which needs KVM ({why})"), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_banner() {
        let banner = "Firecracker v1.15.1\n\nSupported snapshot data format versions: v8.0.0\n";
        assert_eq!(version(banner).as_deref(), Some("1.15.1"));
        assert_eq!(version("Firecracker v1.17.0-dev\n").as_deref(), Some("1.17.0-dev"));
        for other in ["", "QEMU emulator version 7.2", "Firecracker v", "Firecracker v1.2"] {
            assert_eq!(version(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_known_to_fail_is_refused_with_its_reason() {
        assert_eq!(judge("1.15.1"), Ok(None));
        for other in ["1.15.2", "1.16.2", "1.17.0"] {
            assert!(judge(other).unwrap().expect("a warning").contains("not been tested"));
        }
        assert!(judge("1.15.0").unwrap_err().contains("monotonic"));
        assert!(judge("1.16.0").unwrap_err().contains("vsock"));
        assert!(judge("1.16.1").unwrap_err().contains("connection"));
        assert!(judge("1.14.4").unwrap_err().contains("too old"));
        assert!(judge("0").is_err());
    }

    #[test]
    fn only_a_host_that_can_run_a_guest_will_do() {
        use KvmDevice::{Absent, Dead, Refused, Works};
        for (kvm, cpu, works) in [
            (Works, Virtualisation::Vmx, true),
            (Works, Virtualisation::Svm, true),
            (Works, Virtualisation::El2, true),
            (Works, Virtualisation::None, false),
            (Absent, Virtualisation::Vmx, false),
            (Refused(libc::EACCES), Virtualisation::Vmx, false),
            (Dead(libc::ENOTTY), Virtualisation::Svm, false),
        ] {
            assert_eq!(hardware(Facts { kvm, cpu }).is_ok(), works, "{kvm:?} {cpu:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = find_program(Some("/nonexistent/firecracker".into())).unwrap_err();
        assert!(matches!(error, EngineError::MissingProgram { .. }), "{error}");
        assert!(find_program(Some("/bin/true".into())).is_err());
    }
}
