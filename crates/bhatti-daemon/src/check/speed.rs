//! What makes sandboxes quicker, or more of them fit. Pure.

use bhatti_config::EngineChoice;
use bhatti_vmm::kvm::{KvmDevice, Virtualisation};

use super::facts::Facts;
use super::needed::{kvm_works, version};
use super::{Group, Item, Question};

/// From this kernel on, moving a process between control groups may wait for all CPUs.
const SLOW_MOVES: (u32, u32) = (6, 0);

pub(super) fn items(facts: &Facts) -> Vec<Item> {
    vec![
        kvm(facts),
        firecracker(facts),
        copies(facts),
        machine_start(facts),
        huge_pages(facts),
        console(facts),
    ]
}

const fn question(id: &'static str, about: &'static str) -> Question {
    Question { id, group: Group::Speed, about }
}

fn kvm(facts: &Facts) -> Item {
    let question = question(
        "kvm",
        "With it the CPU runs guests itself; without it QEMU translates every instruction, several \
         times slower.",
    );
    let reason = |errno| std::io::Error::from_raw_os_error(errno);
    let advice = "Switch virtualisation on in the firmware and modprobe kvm_intel or kvm_amd. In a \
                  virtual machine the provider has to allow nested virtualisation; in a container: \
                  --device /dev/kvm.";
    match (facts.kvm.kvm, facts.kvm.cpu) {
        (KvmDevice::Works, Virtualisation::Vmx) => question.ok("works (VMX)"),
        (KvmDevice::Works, Virtualisation::Svm) => question.ok("works (SVM)"),
        (KvmDevice::Works, Virtualisation::El2) => question.ok("works"),
        (KvmDevice::Works, Virtualisation::None) => question.warning(
            "/dev/kvm is there, but the CPU has neither vmx nor svm: it runs no stock guest",
            advice,
        ),
        (KvmDevice::Absent, _) => question.warning("there is no /dev/kvm", advice),
        (KvmDevice::Refused(errno), _) => {
            question.warning(format!("/dev/kvm cannot be opened: {}", reason(errno)), advice)
        }
        (KvmDevice::Dead(errno), _) => {
            question.warning(format!("/dev/kvm makes no machine: {}", reason(errno)), advice)
        }
    }
}

fn firecracker(facts: &Facts) -> Item {
    let question = question(
        "firecracker",
        "On KVM Firecracker is the smaller VMM: less of it to attack, and less memory for each \
         machine.",
    );
    match (&facts.firecracker, facts.engine) {
        (_, EngineChoice::Qemu) => question.ok("not wanted: the configuration says qemu"),
        (Err(why), _) => question.warning(
            why,
            "Install release 1.15.1 and name it with firecracker_bin, or set \"engine: qemu\".",
        ),
        (Ok(Some(found)), _) => match &found.warning {
            None => question.ok(format!("{} at {}", found.version, found.path)),
            Some(warning) => question.warning(warning, "Use release 1.15.1."),
        },
        (Ok(None), _) if !kvm_works(facts) => question.ok("not installed; it would need KVM"),
        (Ok(None), _) => {
            question.warning("not installed", "Install release 1.15.1, or set \"engine: qemu\".")
        }
    }
}

fn copies(facts: &Facts) -> Item {
    let question = question(
        "disk-copies",
        "Firecracker needs each disk as a whole file. Where the file system lets files share blocks \
         a copy takes no time and no room; elsewhere each create copies the image.",
    );
    let unused = !kvm_works(facts)
        || facts.engine == EngineChoice::Qemu
        || !matches!(facts.firecracker, Ok(Some(_)));
    match facts.data_dir.reflink {
        Some(true) => question.ok("by reference"),
        _ if unused => question.ok("none are made: qemu puts layers on the image"),
        Some(false) => question.warning(
            "whole, without their holes",
            "Put data_dir on XFS (made with reflink=1, the default) or Btrfs.",
        ),
        None => question.warning(
            "cannot be tried before data_dir exists, or not by this user",
            "Put data_dir on XFS (made with reflink=1, the default) or Btrfs.",
        ),
    }
}

fn machine_start(facts: &Facts) -> Item {
    let question = question(
        "machine-start",
        "From Linux 6.0 on, making a machine may wait some 10 ms for a thread of KVM's to be moved \
         between control groups.",
    );
    let old = version(&facts.kernel).is_some_and(|version| version < SLOW_MOVES);
    if old || !kvm_works(facts) {
        return question.ok("does not concern this host");
    }
    let no_thread = facts.nx_huge_pages.as_deref() == Some("never");
    let quick_moves = facts.mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(2);
        let (kind, options) = (fields.next(), fields.next().unwrap_or_default());
        kind.is_some_and(|kind| kind.starts_with("cgroup"))
            && options.split(',').any(|option| option == "favordynmods")
    });
    let unaffected = facts
        .vulnerabilities
        .iter()
        .any(|(name, state)| name == "itlb_multihit" && state.starts_with("Not affected"));
    match (no_thread, quick_moves, unaffected) {
        (true, _, _) => question.ok("kvm.nx_huge_pages=never"),
        (_, true, _) => question.ok("control groups favour moves (favordynmods)"),
        (_, _, true) => question.warning(
            "kvm has a thread for each machine that this CPU does not need",
            "options kvm nx_huge_pages=never in /etc/modprobe.d/kvm.conf, then load kvm again.",
        ),
        _ => question.warning(
            "control groups favour reading",
            "mount -o remount,favordynmods /sys/fs/cgroup, at each boot.",
        ),
    }
}

fn huge_pages(facts: &Facts) -> Item {
    let question = question(
        "huge-pages",
        "With \"always\" a machine may take memory in pieces of 2 MiB where it uses a few KiB, and \
         fewer machines fit.",
    );
    match facts.thp.as_deref() {
        Some(state) if state.contains("[always]") => question.warning(
            "always",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, or \
             transparent_hugepage=madvise on the kernel's command line.",
        ),
        Some(state) if state.contains("[madvise]") => question.ok("where it is asked for"),
        Some(_) => question.ok("off"),
        None => question.ok("not in this kernel"),
    }
}

fn console(facts: &Facts) -> Item {
    let question = question(
        "console",
        "The kernel says a line for each network card that comes and goes. On a serial console each \
         takes milliseconds, in which a create waits.",
    );
    let serial: Vec<_> = facts
        .consoles
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| ["ttyS", "ttyAMA"].iter().any(|kind| name.starts_with(kind)))
        .collect();
    let level = facts.printk.split_whitespace().next().and_then(|level| level.parse::<u32>().ok());
    match (serial.first(), level) {
        (None, _) => question.ok("none that is slow"),
        // 6 is information, which these lines are.
        (Some(_), Some(0..=6)) => question.ok("serial, and quiet"),
        (Some(name), _) => question.warning(
            format!("{name}, with every message"),
            "quiet loglevel=1 on the kernel's command line, or sysctl kernel.printk=1.",
        ),
    }
}
