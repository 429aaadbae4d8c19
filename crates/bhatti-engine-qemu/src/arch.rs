//! Everything this engine does in another way on another architecture; nothing else in it knows one.
//!
//! | | x86-64 | aarch64 |
//! |---|---|---|
//! | machine | `microvm`: no PCI, a small firmware | `virt`: no firmware, the kernel reads a device tree |
//! | console | an ISA serial port | a PL011 |
//! | clock under emulation | the host's counter, measured | QEMU's own, at a rate it names |
//! | how it ends | a triple fault, which QEMU takes for a reset | PSCI |
//!
//! Devices are virtio over MMIO on both, so the rest of the command line is the same.
//!
//! Choices that look odd, with the reason (numbers: 256 MiB, one vCPU, TCG, QEMU 7.2):
//! - `acpi=on` for `microvm`: Debian's kernel finds virtio-mmio devices only through ACPI.
//! - `rtc=on`: without it the kernel polls the absent clock for 2.4 s.
//! - the firmware is `qboot.rom`: QEMU 10 loops for ever in its default one for `microvm`.
//! - `tsc_early_khz`: under TCG the guest sees the host's counter and cannot calibrate it on a
//!   busy host; without the number, 15 of 16 boots hung. KVM has its own paravirtual clock.
//! - `norandmaps`: QEMU 7.2 keys translated code by address; a fixed layout makes `exec` 4x
//!   faster. Only under TCG: with KVM the guest keeps its address randomisation and mitigations.
//! - `vmx=off,svm=off`: a guest that could run guests would reach the parts of the host's KVM that
//!   had most of its holes. `virt` gives a guest no such mode unless it is asked to.
//! - `cortex-a72`: emulating the pointer authentication of `max` makes a boot take 14 s, not 2; and
//!   a CPU that is never extended keeps a snapshot's machine what it was.
//! - `gic-version=3`: the default has room for eight vCPUs. KVM offers what the host has.
//! - `its=off`: it serves PCI devices, and there are none.
//! - `force-legacy=off`: `virt` keeps to virtio before 1.0 unless told, `microvm` does not.

use crate::cmdline::Acceleration;

/// What instructions a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// This host's own.
    #[cfg(target_arch = "x86_64")]
    pub const HOST: Self = Self::X86_64;
    /// This host's own.
    #[cfg(target_arch = "aarch64")]
    pub const HOST: Self = Self::Aarch64;

    /// Whether guests of this kind run here at all, by emulation if they must; if not, why.
    pub(crate) fn runs_here(self) -> Result<(), &'static str> {
        match self {
            Self::X86_64 if Self::HOST != Self::X86_64 => {
                Err("an x86-64 guest counts with the host's time stamp counter, and there is none")
            }
            Self::X86_64 | Self::Aarch64 => Ok(()),
        }
    }

    /// The program that emulates it and, on a host of the same kind, runs it under KVM.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// Debian's small build of it: KVM only, a quarter of the libraries, starts five times faster.
    pub(crate) fn program_for_kvm(self) -> Option<&'static str> {
        match self {
            Self::X86_64 => Some("qemu-system-x86_64-microvm"),
            Self::Aarch64 => None,
        }
    }

    /// How to get that program.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::X86_64 => "install the Debian package qemu-system-x86",
            Self::Aarch64 => "install the Debian package qemu-system-arm",
        }
    }

    /// Whether something runs before the kernel.
    pub(crate) fn has_firmware(self) -> bool {
        self == Self::X86_64
    }

    /// What the machine is called. It is not versioned here, see [`crate::fingerprint`].
    pub(crate) fn machine_type(self) -> &'static str {
        match self {
            Self::X86_64 => "microvm",
            Self::Aarch64 => "virt",
        }
    }

    /// The machine: everything off that a sandbox does not use; the serial port stays for the
    /// console.
    pub(crate) fn machine(self, acceleration: Acceleration) -> String {
        let options = match (self, acceleration) {
            (Self::X86_64, _) => {
                "acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off,\
                 auto-kernel-cmdline=off"
            }
            (Self::Aarch64, Acceleration::Kvm) => "gic-version=host,its=off,acpi=off",
            (Self::Aarch64, Acceleration::Tcg { .. }) => "gic-version=3,its=off,acpi=off",
        };
        format!("{},{options}", self.machine_type())
    }

    /// Properties of all devices of a kind.
    pub(crate) fn globals(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &[],
            Self::Aarch64 => &["virtio-mmio.force-legacy=off"],
        }
    }

    /// The model of the CPU.
    pub(crate) fn cpu(self, acceleration: Acceleration) -> &'static str {
        match (self, acceleration) {
            (Self::X86_64, Acceleration::Kvm) => "host,vmx=off,svm=off",
            (Self::X86_64, Acceleration::Tcg { .. }) => "max",
            (Self::Aarch64, Acceleration::Kvm) => "host",
            (Self::Aarch64, Acceleration::Tcg { .. }) => "cortex-a72",
        }
    }

    /// What the kernel is told.
    pub(crate) fn kernel_line(self, acceleration: Acceleration) -> String {
        let own = match self {
            Self::X86_64 => "console=ttyS0 reboot=t 8250.nr_uarts=1 no_timer_check",
            Self::Aarch64 => "console=ttyAMA0",
        };
        let mut line = format!("{own} {KERNEL_LINE}");
        if let Acceleration::Tcg { .. } = acceleration {
            line.push(' ');
            line.push_str(KERNEL_LINE_TCG);
        }
        if let Some(khz) = acceleration.tsc_khz() {
            line.push_str(&format!(" tsc=reliable tsc_early_khz={khz}"));
        }
        line
    }

    /// Frequency of the host's time stamp counter, where an emulated guest counts with it. This
    /// takes a tenth of a second: blocking.
    pub(crate) fn tsc_khz(self) -> Option<u64> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::X86_64 => Some(tsc::measure_khz(std::time::Duration::from_millis(100))),
            #[cfg(not(target_arch = "x86_64"))]
            Self::X86_64 => None,
            Self::Aarch64 => None,
        }
    }
}

/// For every guest. `quiet` keeps the slow port silent; a panic raises the level by itself.
const KERNEL_LINE: &str = "quiet panic=-1 cryptomgr.notests=1 lsm=capability audit=0 nowatchdog";

/// Only under emulation, where these cost much and protect nothing: the CPU is software.
const KERNEL_LINE_TCG: &str = "mitigations=off nokaslr init_on_alloc=0 norandmaps";

/// The host's time stamp counter.
#[cfg(target_arch = "x86_64")]
mod tsc {
    use std::time::Duration;

    /// Its frequency, against the raw clock; 10 ms samples are 150 ppm off.
    pub(super) fn measure_khz(window: Duration) -> u64 {
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
            // SAFETY: every x86-64 CPU has this instruction, and user mode may use it unless a
            // process has asked the kernel to forbid it, which we do not.
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
        fn two_measurements_of_the_counter_agree() {
            let window = Duration::from_millis(100);
            let (a, b) = (measure_khz(window), measure_khz(window));
            // 500 ppm: what a kernel accepts between two calibrations.
            assert!(a.abs_diff(b) < a / 2000, "{a} and {b} kHz");
            assert!((100_000..20_000_000).contains(&a), "{a} kHz");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_x86_guest_depends_on_the_hosts_counter() {
        assert_eq!(Arch::Aarch64.tsc_khz(), None);
        let native = Arch::X86_64.tsc_khz().is_some();
        assert_eq!(native, Arch::HOST == Arch::X86_64);
        assert_eq!(Arch::X86_64.runs_here().is_ok(), native);
        assert!(Arch::Aarch64.runs_here().is_ok(), "emulated if need be");
    }
}
