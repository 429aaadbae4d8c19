//! Whether hardware virtualisation works here.
//!
//! The case that matters: on some hosts `/dev/kvm` opens and even makes a machine, but the CPU has
//! no hardware virtualisation (paravirtual KVM), and a stock guest kernel never runs. What to make
//! of these facts is an engine's business.

use std::io;
use std::os::fd::AsRawFd;

/// What was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kvm: KvmDevice,
    pub cpu: Virtualisation,
}

/// What `/dev/kvm` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmDevice {
    Absent,
    /// It is there but cannot be opened, with the error number.
    Refused(i32),
    /// It opens but makes no machine.
    Dead(i32),
    Works,
}

/// What `/proc/cpuinfo` says of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtualisation {
    Vmx,
    Svm,
    /// It is an Arm CPU: what it has is not said, but without it the kernel offers no `/dev/kvm`.
    El2,
    None,
}

impl Facts {
    /// Looks at this host.
    pub fn observe() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self { kvm: observe_kvm(), cpu: virtualisation(&cpuinfo) }
    }
}

fn virtualisation(cpuinfo: &str) -> Virtualisation {
    let flags = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.trim_start().strip_prefix(':'))
        .unwrap_or_default();
    if cpuinfo.lines().any(|line| line.starts_with("CPU implementer")) {
        return Virtualisation::El2;
    }
    // Whole words: `vmx` must not be found in a flag that merely contains it.
    let has = |wanted| flags.split_whitespace().any(|flag| flag == wanted);
    match (has("vmx"), has("svm")) {
        (true, _) => Virtualisation::Vmx,
        (false, true) => Virtualisation::Svm,
        (false, false) => Virtualisation::None,
    }
}

fn observe_kvm() -> KvmDevice {
    /// `_IO(0xAE, 0x01)`.
    const KVM_CREATE_VM: libc::c_ulong = 0xAE01;
    let device = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return KvmDevice::Absent,
        Err(error) => return KvmDevice::Refused(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    // SAFETY: the argument is the machine type 0; no memory is passed.
    let machine = unsafe { libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM, 0) };
    if machine < 0 {
        let errno = io::Error::last_os_error().raw_os_error();
        return KvmDevice::Dead(errno.unwrap_or(libc::EIO));
    }
    // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(machine) });
    KvmDevice::Works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words() {
        for (cpuinfo, expected) in [
            ("flags\t\t: fpu vmx sse\n", Virtualisation::Vmx),
            ("processor: 0\nflags\t\t: fpu svm\n", Virtualisation::Svm),
            ("flags\t\t: fpu vmx_something\nvmx flags\t: ept\n", Virtualisation::None),
            ("Features\t: fp asimd\nCPU implementer\t: 0x41\n", Virtualisation::El2),
            ("", Virtualisation::None),
        ] {
            assert_eq!(virtualisation(cpuinfo), expected, "{cpuinfo}");
        }
    }
}
