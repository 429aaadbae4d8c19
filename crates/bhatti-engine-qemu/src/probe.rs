//! What this host can do, found out once at start.
//!
//! Facts are gathered first ([`Facts`]), then judged by a pure function ([`choose`]), so that the
//! honest cases can be tested without the hosts they come from. The one that matters: on some
//! hosts `/dev/kvm` opens and even makes a machine, but the CPU has no hardware virtualisation
//! (paravirtual KVM), and a stock guest kernel never runs.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use bhatti_engine::EngineError;
use camino::{Utf8Path, Utf8PathBuf};

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

/// The decision and the one sentence that explains it.
pub(crate) fn choose(choice: AccelChoice, facts: Facts) -> (Chosen, String) {
    let Facts { kvm, cpu } = facts;
    let reason = |errno| io::Error::from_raw_os_error(errno);
    match (choice, kvm, cpu) {
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
    let (chosen, _) = choose(config.accel, Facts::observe());
    let Program { path, version, seccomp } = find_program(config.program.as_deref(), chosen)?;
    find_firmware(config.firmware.as_deref())?;
    Ok(Found { program: path, version, filtered: seccomp == Seccomp::On })
}

/// The QEMU to use.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub path: Utf8PathBuf,
    pub version: String,
    pub seccomp: Seccomp,
}

const FULL: &str = "qemu-system-x86_64";
/// Debian's small build: KVM only, a quarter of the libraries, starts five times faster.
const MICROVM: &str = "qemu-system-x86_64-microvm";
const PACKAGE: &str = "install the Debian package qemu-system-x86";

/// Finds QEMU: the configured one, else the best on `PATH` for `accel`.
pub(crate) fn find_program(
    configured: Option<&Utf8Path>,
    chosen: Chosen,
) -> Result<Program, EngineError> {
    if let Some(path) = configured {
        return inspect(path);
    }
    if chosen == Chosen::Kvm
        && let Some(path) = on_path(MICROVM)
    {
        let program = inspect(&path)?;
        // Without the filter the small build is the worse choice.
        if program.seccomp == Seccomp::On {
            return Ok(program);
        }
    }
    inspect(&on_path(FULL).ok_or_else(|| missing(FULL))?)
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

fn missing(program: &str) -> EngineError {
    EngineError::MissingProgram { program: program.to_owned(), hint: PACKAGE.to_owned() }
}

fn inspect(path: &Utf8Path) -> Result<Program, EngineError> {
    let run = |arguments: &[&str]| {
        Command::new(path).args(arguments).stdin(Stdio::null()).output().map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                missing(path.as_str())
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

/// The accelerator with what it needs. Under TCG this takes a tenth of a second: blocking.
pub(crate) fn acceleration(chosen: Chosen) -> Acceleration {
    match chosen {
        Chosen::Kvm => Acceleration::Kvm,
        Chosen::Tcg => Acceleration::Tcg { tsc_khz: measure_tsc_khz(Duration::from_millis(100)) },
    }
}

/// The host's time stamp counter against the raw clock; 10 ms samples are 150 ppm off.
fn measure_tsc_khz(window: Duration) -> u64 {
    let (clock_before, tsc_before) = clock_and_tsc();
    std::thread::sleep(window);
    let (clock_after, tsc_after) = clock_and_tsc();
    let ticks = u128::from(tsc_after.wrapping_sub(tsc_before));
    let nanos = (clock_after - clock_before).as_nanos().max(1);
    u64::try_from(ticks * 1_000_000 / nanos).unwrap_or(u64::MAX)
}

/// One reading of both, taken as close together as the scheduler allows.
fn clock_and_tsc() -> (Duration, u64) {
    let read = || {
        // SAFETY: every x86-64 CPU has this instruction, and user mode may use it unless a process
        // has asked the kernel to forbid it, which we do not.
        let before = unsafe { std::arch::x86_64::_rdtsc() };
        let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_RAW)
            .map_or(Duration::ZERO, Duration::from);
        // SAFETY: as above.
        let after = unsafe { std::arch::x86_64::_rdtsc() };
        (after.wrapping_sub(before), clock, before + after.wrapping_sub(before) / 2)
    };
    // The tightest of a few readings was not interrupted.
    let tightest = (0..8).map(|_| read()).min_by_key(|(width, _, _)| *width);
    tightest.map_or((Duration::ZERO, 0), |(_, clock, tsc)| (clock, tsc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_is_chosen_only_when_a_guest_can_run() {
        use KvmDevice::*;
        for (kvm, cpu, expected, word) in [
            (Absent, Virtualisation::Vmx, Chosen::Tcg, "no /dev/kvm"),
            (Refused(libc::EACCES), Virtualisation::Vmx, Chosen::Tcg, "Permission denied"),
            (Dead(libc::ENOTTY), Virtualisation::Svm, Chosen::Tcg, "makes no machine"),
            (Works, Virtualisation::None, Chosen::Tcg, "no vmx or svm"),
            (Works, Virtualisation::Vmx, Chosen::Kvm, "vmx"),
            (Works, Virtualisation::Svm, Chosen::Kvm, "svm"),
        ] {
            let (chosen, why) = choose(AccelChoice::Auto, Facts { kvm, cpu });
            assert_eq!(chosen, expected, "{kvm:?} {cpu:?}");
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let works = Facts { kvm: KvmDevice::Works, cpu: Virtualisation::Vmx };
        let absent = Facts { kvm: KvmDevice::Absent, cpu: Virtualisation::None };
        assert_eq!(choose(AccelChoice::Tcg, works).0, Chosen::Tcg);
        assert_eq!(choose(AccelChoice::Kvm, absent).0, Chosen::Kvm);
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
        let program = find_program(Some("/nonexistent/qemu".into()), Chosen::Tcg).unwrap_err();
        assert!(program.to_string().contains("qemu-system-x86"), "{program}");
        let firmware = find_firmware(Some("/nonexistent/qboot.rom".into())).unwrap_err();
        assert!(firmware.to_string().contains("qemu-system-data"), "{firmware}");
        assert!(find_program(Some("/bin/true".into()), Chosen::Tcg).is_err());
    }

    #[test]
    fn two_measurements_of_the_counter_agree() {
        let window = Duration::from_millis(100);
        let (a, b) = (measure_tsc_khz(window), measure_tsc_khz(window));
        // 500 ppm: what a kernel accepts between two calibrations.
        assert!(a.abs_diff(b) < a / 2000, "{a} and {b} kHz");
        assert!((100_000..20_000_000).contains(&a), "{a} kHz");
    }
}
