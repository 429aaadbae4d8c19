//! What this host can do, found out once at start.
//!
//! Facts are gathered first ([`Facts`]), then judged by a pure function ([`choose`]), so that the
//! honest cases can be tested without the hosts they come from. The one that matters: on some
//! hosts `/dev/kvm` opens and even makes a machine, but the CPU has no hardware virtualisation
//! (paravirtual KVM), and a stock guest kernel never runs.

use std::io;
use std::process::{Command, Stdio};

use bhatti_engine::EngineError;
use camino::{Utf8Path, Utf8PathBuf};

use crate::arch::Arch;
use crate::cmdline::{Acceleration, Seccomp};
use crate::engine::QemuConfig;
use bhatti_vmm::kvm::{Facts, KvmDevice, Virtualisation};
use bhatti_vmm::on_path;

/// Which accelerator the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelChoice {
    /// Hardware virtualisation where it works.
    #[default]
    Auto,
    /// Hardware virtualisation, whatever the probe says.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// What to use, without the detail that TCG needs measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    Kvm,
    Tcg,
}

/// The decision for such guests on such a host, and the one sentence that explains it.
pub(crate) fn choose(
    choice: AccelChoice,
    guest: Arch,
    host: Arch,
    facts: Facts,
) -> (Chosen, String) {
    let Facts { kvm, cpu } = facts;
    let reason = |errno| io::Error::from_raw_os_error(errno);
    match (choice, kvm, cpu) {
        (AccelChoice::Auto, _, _) if guest != host => {
            (Chosen::Tcg, "the guest's instructions are not this host's".to_owned())
        }
        (AccelChoice::Tcg, _, _) => (Chosen::Tcg, "the configuration asks for it".to_owned()),
        (AccelChoice::Kvm, _, _) => (Chosen::Kvm, "the configuration asks for it".to_owned()),
        (AccelChoice::Auto, KvmDevice::Absent, _) => {
            (Chosen::Tcg, "there is no /dev/kvm".to_owned())
        }
        (AccelChoice::Auto, KvmDevice::Refused(errno), _) => {
            (Chosen::Tcg, format!("/dev/kvm cannot be opened: {}", reason(errno)))
        }
        (AccelChoice::Auto, KvmDevice::Dead(errno), _) => {
            (Chosen::Tcg, format!("/dev/kvm makes no machine: {}", reason(errno)))
        }
        (AccelChoice::Auto, KvmDevice::Works, Virtualisation::None) => {
            (Chosen::Tcg, "/dev/kvm opens, but no vmx or svm in /proc/cpuinfo".to_owned())
        }
        (AccelChoice::Auto, KvmDevice::Works, Virtualisation::Vmx) => {
            (Chosen::Kvm, "/dev/kvm works and the CPU has vmx".to_owned())
        }
        (AccelChoice::Auto, KvmDevice::Works, Virtualisation::Svm) => {
            (Chosen::Kvm, "/dev/kvm works and the CPU has svm".to_owned())
        }
        (AccelChoice::Auto, KvmDevice::Works, Virtualisation::El2) => {
            (Chosen::Kvm, "/dev/kvm works".to_owned())
        }
    }
}

/// What [`find`] found.
#[derive(Clone, Debug)]
pub struct Found {
    pub program: Utf8PathBuf,
    pub version: String,
    /// It can be run under a system call filter.
    pub filtered: bool,
}

/// Which QEMU an engine with that configuration would run. Starts nothing that stays.
pub fn find(config: &QemuConfig) -> Result<Found, EngineError> {
    let (chosen, _) = choose(config.accel, config.arch, Arch::HOST, Facts::observe());
    let Program { path, version, seccomp } =
        find_program(config.program.as_deref(), config.arch, chosen)?;
    if config.arch.has_firmware() {
        find_firmware(config.firmware.as_deref())?;
    }
    Ok(Found { program: path, version, filtered: seccomp == Seccomp::On })
}

/// The QEMU to use.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub path: Utf8PathBuf,
    pub version: String,
    pub seccomp: Seccomp,
}

/// Finds QEMU: the configured one, else the best on `PATH` for what was chosen.
pub(crate) fn find_program(
    configured: Option<&Utf8Path>,
    arch: Arch,
    chosen: Chosen,
) -> Result<Program, EngineError> {
    if let Some(path) = configured {
        return inspect(path, arch);
    }
    if chosen == Chosen::Kvm
        && let Some(path) = arch.program_for_kvm().and_then(on_path)
    {
        let program = inspect(&path, arch)?;
        // Without the filter the small build is the worse choice.
        if program.seccomp == Seccomp::On {
            return Ok(program);
        }
    }
    let program = arch.program();
    inspect(&on_path(program).ok_or_else(|| missing(program, arch))?, arch)
}

/// Finds the firmware.
pub(crate) fn find_firmware(configured: Option<&Utf8Path>) -> Result<Utf8PathBuf, EngineError> {
    const USUAL: [&str; 2] = ["/usr/share/qemu/qboot.rom", "/usr/share/seabios/qboot.rom"];
    let candidates: Vec<&Utf8Path> = match configured {
        Some(path) => vec![path],
        None => USUAL.iter().map(Utf8Path::new).collect(),
    };
    let found = candidates.iter().find(|path| path.is_file());
    found.map(|path| (*path).to_owned()).ok_or_else(|| EngineError::MissingProgram {
        program: candidates.first().map_or("qboot.rom".to_owned(), ToString::to_string),
        hint: "install the Debian package qemu-system-data".to_owned(),
    })
}

fn missing(program: &str, arch: Arch) -> EngineError {
    let hint = arch.package().to_owned();
    EngineError::MissingProgram { program: program.to_owned(), hint }
}

fn inspect(path: &Utf8Path, arch: Arch) -> Result<Program, EngineError> {
    let run = |arguments: &[&str]| {
        Command::new(path).args(arguments).stdin(Stdio::null()).output().map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                missing(path.as_str(), arch)
            } else {
                EngineError::Spawn { program: path.to_string(), source }
            }
        })
    };
    let banner = run(&["--version"])?.stdout;
    let version = version(&String::from_utf8_lossy(&banner)).ok_or_else(|| EngineError::Spawn {
        program: path.to_string(),
        source: io::Error::new(io::ErrorKind::InvalidData, "it does not say a QEMU version"),
    })?;
    // A build without the filter knows no such option.
    let filtered = run(&["-sandbox", "on", "--version"])?.status.success();
    let seccomp = if filtered { Seccomp::On } else { Seccomp::NotBuiltIn };
    Ok(Program { path: path.to_owned(), version, seccomp })
}

/// `7.2.22` out of the first line of `--version`.
fn version(banner: &str) -> Option<String> {
    let rest = banner.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let version = rest.split_whitespace().next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// The accelerator with what it needs. Under TCG this may measure: blocking.
pub(crate) fn acceleration(arch: Arch, chosen: Chosen) -> Acceleration {
    match chosen {
        Chosen::Kvm => Acceleration::Kvm,
        Chosen::Tcg => Acceleration::Tcg { tsc_khz: arch.tsc_khz() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_is_chosen_only_when_a_guest_can_run() {
        use Arch::*;
        use KvmDevice::*;
        for (kvm, cpu, expected, word) in [
            (Absent, Virtualisation::Vmx, Chosen::Tcg, "no /dev/kvm"),
            (Refused(libc::EACCES), Virtualisation::Vmx, Chosen::Tcg, "Permission denied"),
            (Dead(libc::ENOTTY), Virtualisation::Svm, Chosen::Tcg, "makes no machine"),
            (Works, Virtualisation::None, Chosen::Tcg, "no vmx or svm"),
            (Works, Virtualisation::Vmx, Chosen::Kvm, "vmx"),
            (Works, Virtualisation::Svm, Chosen::Kvm, "svm"),
            (Works, Virtualisation::El2, Chosen::Kvm, "/dev/kvm works"),
            (Absent, Virtualisation::El2, Chosen::Tcg, "no /dev/kvm"),
        ] {
            let (chosen, why) = choose(AccelChoice::Auto, X86_64, X86_64, Facts { kvm, cpu });
            assert_eq!(chosen, expected, "{kvm:?} {cpu:?}");
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn another_architecture_is_emulated() {
        let facts = Facts { kvm: KvmDevice::Works, cpu: Virtualisation::Vmx };
        let (chosen, why) = choose(AccelChoice::Auto, Arch::Aarch64, Arch::X86_64, facts);
        assert_eq!((chosen, why.contains("not this host's")), (Chosen::Tcg, true), "{why}");
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let works = Facts { kvm: KvmDevice::Works, cpu: Virtualisation::Vmx };
        let absent = Facts { kvm: KvmDevice::Absent, cpu: Virtualisation::None };
        for arch in [Arch::X86_64, Arch::Aarch64] {
            assert_eq!(choose(AccelChoice::Tcg, arch, arch, works).0, Chosen::Tcg);
            assert_eq!(choose(AccelChoice::Kvm, arch, arch, absent).0, Chosen::Kvm);
        }
    }

    #[test]
    fn version_is_the_third_word_of_the_banner() {
        let banner = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(version(banner).as_deref(), Some("7.2.22"));
        assert_eq!(version("coreutils 9.1"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn what_is_missing_names_the_package() {
        for (arch, package) in [(Arch::X86_64, "system-x86"), (Arch::Aarch64, "system-arm")] {
            let program = find_program(Some("/nonexistent/qemu".into()), arch, Chosen::Tcg);
            let program = program.unwrap_err().to_string();
            assert!(program.contains(package), "{program}");
        }
        let firmware = find_firmware(Some("/nonexistent/qboot.rom".into())).unwrap_err();
        assert!(firmware.to_string().contains("qemu-system-data"), "{firmware}");
        assert!(find_program(Some("/bin/true".into()), Arch::HOST, Chosen::Tcg).is_err());
    }
}
