//! What a saved device state silently depends on.
//!
//! Two hosts with the same fingerprint can load each other's snapshots. It holds what is exact:
//! the VMM's release series (its machine is not versioned; a series keeps it stable), how
//! instructions are executed and the CPU. Under KVM the guest sees the host's CPU, so all its
//! flags count; under emulation it does not, but an x86-64 guest's counter is the host's.
//!
//! That counter's frequency is measured, a little differently each time, and any rounding has an
//! edge that some host sits on. So it is no part of the text but stands in the manifest, and a
//! restore compares with a tolerance ([`Host::admits`]). A guest told 2.445 GHz that counts at
//! another rate would have a wrong clock, not a crash: nobody would notice in time.

use bhatti_engine::Accel;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// What a guest's clock may be wrong by, in parts of a million: what time services correct.
const TOLERANCE_PPM: u64 = 500;

/// What tells one model of CPU from another in `/proc/cpuinfo`.
const X86: [&str; 4] = ["vendor_id", "cpu family", "model", "stepping"];
const ARM: [&str; 4] = ["CPU implementer", "CPU variant", "CPU part", "CPU revision"];

/// The host as a snapshot remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub fingerprint: String,
    /// Frequency of the time stamp counter, where the guest depends on it.
    tsc_khz: Option<u64>,
}

impl Host {
    /// This host, with that VMM, of which `name` says what a saved state depends on. `tsc_khz` is
    /// given where the guest counts with the host's counter and is not told its frequency.
    pub fn observe(name: &str, accel: Accel, tsc_khz: Option<u64>) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::of(name, accel, tsc_khz, &cpuinfo)
    }

    fn of(name: &str, accel: Accel, tsc_khz: Option<u64>, cpuinfo: &str) -> Self {
        // Only the first CPU: a host has one kind of them.
        let field = |name: &str| {
            let line = cpuinfo
                .lines()
                .find(|line| line.split_once(':').is_some_and(|(found, _)| found.trim() == name));
            line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim())
        };
        let mut fingerprint = format!("{name} {accel}");
        // The kernel describes the CPUs of every architecture in other words.
        let (model, flags) = match field(ARM[0]) {
            "?" => (X86, "flags"),
            _ => (ARM, "Features"),
        };
        fingerprint.push(' ');
        fingerprint.push_str(&model.map(field).join("/"));
        if accel == Accel::Kvm {
            let flags = xxh3_64(field(flags).as_bytes());
            fingerprint.push_str(&format!(" flags {flags:016x}"));
        }
        Self { fingerprint, tsc_khz }
    }

    /// Whether what was saved on `self` can run on `here`; if not, a sentence says whose it is and
    /// what to do.
    pub fn admits(&self, here: &Self) -> Result<(), String> {
        let engine = |host: &Self| host.fingerprint.split(' ').next().unwrap_or("?").to_owned();
        if engine(self) != engine(here) {
            let (saved_by, engine_here) = (engine(self), engine(here));
            let (there, here) = (&self.fingerprint, &here.fingerprint);
            return Err(format!(
                "its memory was saved by the {saved_by} engine, and this daemon runs \
                 {engine_here}: set \"engine: {saved_by}\" to continue it (saved on {there}, here \
                 is {here})"
            ));
        }
        if self.fingerprint != here.fingerprint {
            let (there, here) = (&self.fingerprint, &here.fingerprint);
            return Err(format!(
                "its memory was saved by another version of the VMM or on another CPU, where it \
                 can be continued (saved on {there}, here is {here})"
            ));
        }
        match (self.tsc_khz, here.tsc_khz) {
            (Some(there), Some(here))
                if u128::from(there.abs_diff(here)) * 1_000_000
                    > u128::from(here) * u128::from(TOLERANCE_PPM) =>
            {
                Err(format!(
                    "its memory was saved on a host whose time stamp counter ran at {there} kHz, \
                     here it is {here}: it can be continued there"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Some host.
    #[cfg(test)]
    pub(crate) fn of_test() -> Self {
        Self { fingerprint: "test".to_owned(), tsc_khz: Some(2_000_000) }
    }
}

/// The release series of a version: its first two numbers.
pub fn series(version: &str) -> String {
    let numbers: Vec<&str> = version.split('.').take(2).collect();
    numbers.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n\
        model\t\t: 1\nmodel name\t: AMD EPYC 7763\nstepping\t: 1\nflags\t\t: fpu svm\n\n\
        processor\t: 1\nvendor_id\t: other\n";

    fn of(version: &str, accel: Accel, tsc_khz: Option<u64>, cpuinfo: &str) -> Host {
        Host::of(&format!("qemu {} microvm", series(version)), accel, tsc_khz, cpuinfo)
    }

    #[test]
    fn it_names_what_counts() {
        let tsc = Some(2_445_434);
        let tcg = of("7.2.22", Accel::Tcg, tsc, CPUINFO);
        assert_eq!(tcg.fingerprint, "qemu 7.2 microvm tcg AuthenticAMD/25/1/1");
        assert_eq!(of("7.2.9", Accel::Tcg, tsc, CPUINFO), tcg, "the same series");
        assert_ne!(of("10.0.2", Accel::Tcg, tsc, CPUINFO), tcg);
        let kvm = of("7.2.22", Accel::Kvm, None, CPUINFO);
        assert!(kvm.fingerprint.starts_with("qemu 7.2 microvm kvm AuthenticAMD/25/1/1 flags "));
        let more = CPUINFO.replace("fpu svm", "fpu svm avx");
        assert_ne!(of("7.2.22", Accel::Kvm, None, &more), kvm);
        assert_eq!(of("7.2.22", Accel::Tcg, tsc, &more), tcg, "the guest does not see them");
        of("", Accel::Tcg, tsc, "");
    }

    #[test]
    fn arm_cpus_are_told_apart() {
        let cpuinfo = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd atomics\n\
            CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\n\
            CPU part\t: 0xd0c\nCPU revision\t: 1\n";
        let kvm = |cpuinfo: &str| Host::of("qemu 7.2 virt", Accel::Kvm, None, cpuinfo).fingerprint;
        assert!(kvm(cpuinfo).starts_with("qemu 7.2 virt kvm 0x41/0x3/0xd0c/1 flags "));
        for (was, is) in [("0xd0c", "0xd4f"), ("atomics", "atomics sve")] {
            let other = cpuinfo.replace(was, is);
            assert_ne!(kvm(&other), kvm(cpuinfo), "{is}");
        }
    }

    #[test]
    fn a_measurement_may_jitter_and_no_more() {
        let at = |tsc_khz| of("7.2", Accel::Tcg, Some(tsc_khz), CPUINFO);
        for (there, fits) in [
            (2_445_434, true),
            (2_445_600, true),
            (2_444_300, true),
            (2_450_000, false),
            (2_400_000, false),
            (0, false),
            (u64::MAX, false),
        ] {
            assert_eq!(at(there).admits(&at(2_445_434)).is_ok(), fits, "{there}");
        }
        let kvm = |cpuinfo| of("7.2", Accel::Kvm, None, cpuinfo);
        kvm(CPUINFO).admits(&kvm(CPUINFO)).unwrap();
        let why = at(1).admits(&kvm(CPUINFO)).unwrap_err();
        assert!(why.contains("another version of the VMM"), "{why}");
        let firecracker = Host::of("firecracker 1.15", Accel::Kvm, None, CPUINFO);
        let why = at(1).admits(&firecracker).unwrap_err();
        assert!(why.contains("by the qemu engine") && why.contains("engine: qemu"), "{why}");
        let why = firecracker.admits(&at(1)).unwrap_err();
        assert!(why.contains("engine: firecracker"), "{why}");
    }
}
