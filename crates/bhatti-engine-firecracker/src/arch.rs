//! Everything this engine does in another way on another architecture; nothing else in it knows one.
//!
//! | | x86-64 | aarch64 |
//! |---|---|---|
//! | how it ends | a reset through the keyboard controller | PSCI |
//! | memory in one piece | below the devices at 3 GiB | from 2 GiB up to the devices at 256 GiB |
//! | and in another | from 4 GiB up to the devices at 256 GiB | none |
//!
//! Firecracker runs machines of its host's own architecture only. Devices are virtio over MMIO and the
//! console is a 16550 on both.
//!
//! Choices that look odd, with the reason:
//! - `reboot=k`: without a power switch a machine ends by a reset through the keyboard controller,
//!   and the agent takes the same word as the sign to do so.
//! - `i8042.*`: the kernel need not look for a keyboard and a mouse behind that controller.
//! - What is said of aarch64 is read in Firecracker's source; nobody has run it.

use bhatti_types::Mib;
use bhatti_vmm::memory::Anonymous;

/// What instructions a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    #[cfg_attr(
        all(target_arch = "aarch64", not(test)),
        expect(dead_code, reason = "of the other hosts")
    )]
    X86_64,
    #[cfg_attr(
        all(target_arch = "x86_64", not(test)),
        expect(dead_code, reason = "of the other hosts")
    )]
    Aarch64,
}

impl Arch {
    /// This host's own, and its guests'.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const HOST: Self = Self::X86_64;
    /// This host's own, and its guests'.
    #[cfg(target_arch = "aarch64")]
    pub(crate) const HOST: Self = Self::Aarch64;

    /// What the kernel is told. `quiet` keeps the slow port silent; a panic raises the level by itself.
    pub(crate) const fn kernel_line(self) -> &'static str {
        match self {
            Self::X86_64 => {
                "console=ttyS0 quiet panic=-1 reboot=k cryptomgr.notests=1 8250.nr_uarts=1 \
                 lsm=capability audit=0 no_timer_check nowatchdog i8042.noaux i8042.nomux \
                 i8042.dumbkbd"
            }
            Self::Aarch64 => {
                "console=ttyS0 quiet panic=-1 cryptomgr.notests=1 8250.nr_uarts=1 lsm=capability \
                 audit=0 nowatchdog"
            }
        }
    }

    /// With more the guest's memory would be in more pieces than [`Self::booted_memory`] knows of.
    pub(crate) const fn most_memory(self) -> Mib {
        match self {
            Self::X86_64 => Mib((3 + 252) << 10),
            Self::Aarch64 => Mib(254 << 10),
        }
    }

    /// How the memory of a machine that was booted with that much is told from what else its VMM has.
    ///
    /// Beyond 3 GiB it is in two pieces, and neither has a name. The first of them has the words for
    /// the kernel where Firecracker puts them, and is looked for right after it was started; where it was
    /// found is recorded. Of a machine from before that was, a guest may have overwritten them by intent: it
    /// cannot be frozen.
    pub(crate) fn booted_memory(self, memory: Mib) -> Anonymous<'static> {
        const BELOW_DEVICES: Mib = Mib(3 << 10);
        const KERNEL_LINE: u64 = 0x2_0000;
        match self {
            Self::X86_64 if memory > BELOW_DEVICES => Anonymous::InTwo {
                first: BELOW_DEVICES.bytes(),
                at: KERNEL_LINE,
                holds: self.kernel_line().as_bytes(),
            },
            Self::X86_64 | Self::Aarch64 => Anonymous::Counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_without_a_power_switch_is_reset_to_its_end() {
        let reset = |arch: Arch| arch.kernel_line().split(' ').any(|word| word == "reboot=k");
        assert!(reset(Arch::X86_64) && !reset(Arch::Aarch64));
        for arch in [Arch::X86_64, Arch::Aarch64] {
            assert!(!arch.kernel_line().contains("  "), "{arch:?}");
            assert!(arch.most_memory() >= Mib(3 << 10));
        }
    }

    #[test]
    fn only_what_is_above_the_devices_is_a_second_piece() {
        let pieces = |arch: Arch, memory| match arch.booted_memory(Mib(memory)) {
            Anonymous::InTwo { first, .. } => Some(first),
            Anonymous::Counts | Anonymous::Not => None,
        };
        assert_eq!(pieces(Arch::X86_64, 3072), None);
        assert_eq!(pieces(Arch::X86_64, 3073), Some(3 << 30));
        assert_eq!(pieces(Arch::Aarch64, 8192), None);
    }
}
