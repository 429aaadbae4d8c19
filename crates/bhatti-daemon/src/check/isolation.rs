//! What keeps tenants apart, beyond what bhatti does for every machine. Pure.
//!
//! The questions are those of Firecracker's production host setup. Not asked, because it cannot be
//! seen from here: whether memory resists Rowhammer (use ECC with refresh), and whether firmware is
//! up to date beyond what the kernel says of weaknesses.

use bhatti_config::EngineChoice;

use super::facts::Facts;
use super::needed::kvm_works;
use super::{Group, Item, Question};

/// The kernel's own bound on the timers of a guest.
const TIMER_PERIOD_US: u64 = 200;

pub(super) fn items(facts: &Facts) -> Vec<Item> {
    vec![
        seccomp(facts),
        smt(facts),
        vulnerabilities(facts),
        mitigations(facts),
        ksm(facts),
        swap(facts),
        trusted_paths(facts),
        timers(facts),
    ]
}

const fn question(id: &'static str, about: &'static str) -> Question {
    Question { id, group: Group::Isolation, about }
}

fn seccomp(facts: &Facts) -> Item {
    let question = question(
        "seccomp",
        "A filter leaves a VMM only the system calls it needs: the last wall behind a guest that has \
         broken out of its machine.",
    );
    let actions = facts.seccomp.as_deref().unwrap_or_default();
    if !actions.split_whitespace().any(|action| action == "kill_process" || action == "trap") {
        return question.warning(
            "this kernel has no filters",
            "Use a kernel with CONFIG_SECCOMP_FILTER, which every distribution's has.",
        );
    }
    let firecracker = matches!(&facts.firecracker, Ok(Some(_))) && kvm_works(facts);
    let firecracker = firecracker && facts.engine != EngineChoice::Qemu;
    match &facts.qemu {
        _ if firecracker && facts.own_filter => question.warning(
            "firecracker with a filter of the configuration's",
            "Use a release build and its own filter: take firecracker_seccomp_filter away.",
        ),
        _ if firecracker => question.ok("firecracker's own filter"),
        Ok(found) if found.filtered => question.ok("qemu's own filter"),
        Ok(found) => question.warning(
            format!("{} was built without a filter", found.program),
            "Install a QEMU that was built with seccomp, as distributions do.",
        ),
        Err(_) => question.ok("the kernel has filters"),
    }
}

fn smt(facts: &Facts) -> Item {
    let question = question(
        "smt",
        "Two threads of a core share its caches, over which one tenant can watch another.",
    );
    match facts.smt.as_deref() {
        Some("notsupported" | "notimplemented") => question.ok("this CPU has none"),
        Some("off" | "forceoff") => question.ok("off"),
        Some(state) => question.warning(
            state,
            "If tenants do not trust each other: nosmt on the kernel's command line, or \
             `echo off > /sys/devices/system/cpu/smt/control` until the next boot.",
        ),
        None => question.warning("cannot be seen", "Switch it off in the firmware if it is on."),
    }
}

fn vulnerabilities(facts: &Facts) -> Item {
    let question = question(
        "cpu-weaknesses",
        "Weaknesses of CPUs let a guest read what it should not; kernel and microcode close them.",
    );
    if facts.vulnerabilities.is_empty() {
        return question.warning("this kernel does not say", "Use a newer kernel.");
    }
    let open: Vec<_> = facts
        .vulnerabilities
        .iter()
        // Also in the middle: "Mitigation: …; SMT vulnerable". And what nobody looks after any more is
        // "Unknown: No mitigations".
        .filter(|(_, state)| {
            state.to_lowercase().contains("vulnerable") || state.starts_with("Unknown")
        })
        .map(|(name, state)| format!("{name} ({state})"))
        .collect();
    match open.len() {
        0 => question.ok(format!("{} known, all closed", facts.vulnerabilities.len())),
        _ => question.warning(
            open.join("; "),
            "Install current microcode (Debian: intel-microcode or amd64-microcode) and kernel, and \
             reboot. In a virtual machine it is the provider's to do.",
        ),
    }
}

fn mitigations(facts: &Facts) -> Item {
    let question = question(
        "mitigations",
        "The kernel's command line can switch off what closes weaknesses of the CPU.",
    );
    let harmful = |word: &&str| {
        let off = |value: &str| value.split(',').any(|v| v.starts_with("no_") || v == "off");
        match word.split_once('=') {
            Some(("mitigations", value)) => off(value),
            Some((name, "off")) => matches!(
                name,
                "pti"
                    | "l1tf"
                    | "mds"
                    | "spectre_v2"
                    | "spectre_v2_user"
                    | "spectre_bhi"
                    | "indirect_target_selection"
                    | "tsa"
                    | "vmscape"
                    | "spec_store_bypass_disable"
                    | "tsx_async_abort"
                    | "mmio_stale_data"
                    | "retbleed"
                    | "srbds"
                    | "gather_data_sampling"
                    | "reg_file_data_sampling"
                    | "spec_rstack_overflow"
            ),
            Some(("kvm-intel.vmentry_l1d_flush" | "kvm_intel.vmentry_l1d_flush", value)) => {
                value == "never"
            }
            Some(_) => false,
            None => matches!(
                *word,
                "nopti" | "nospectre_v1" | "nospectre_v2" | "nospec_store_bypass_disable"
            ),
        }
    };
    let found: Vec<_> = facts.command_line.split_whitespace().filter(harmful).collect();
    match found.is_empty() {
        true => question.ok("none switched off"),
        false => question.warning(found.join(" "), "Take that from the kernel's command line."),
    }
}

fn ksm(facts: &Facts) -> Item {
    let question = question(
        "ksm",
        "Merging equal pages of different machines shows each of them what the other has in memory.",
    );
    match facts.ksm.as_deref() {
        None => question.ok("not in this kernel"),
        Some("0" | "2") => question.ok("off"),
        Some(_) => question.warning("on", "echo 2 > /sys/kernel/mm/ksm/run, and disable ksmtuned."),
    }
}

fn swap(facts: &Facts) -> Item {
    let question = question(
        "swap",
        "What is swapped out of a machine's memory stays on the disk after the machine is gone.",
    );
    let devices = facts.swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let on_disk: Vec<_> = devices.filter(|device| !device.starts_with("/dev/zram")).collect();
    match on_disk.is_empty() {
        true => question.ok("none on disk"),
        false => question.warning(
            on_disk.join(", "),
            "swapoff -a and take it from /etc/fstab, unless it is encrypted with a key that goes with \
             the boot.",
        ),
    }
}

fn trusted_paths(facts: &Facts) -> Item {
    let question = question(
        "trusted-paths",
        "Whoever can replace what the daemon runs, or reads as root, is root.",
    );
    let places: Vec<_> = facts.writable.iter().map(ToString::to_string).collect();
    match places.is_empty() {
        true => question.ok("only root can change programs, guest files and data"),
        false => question.warning(
            format!("others than root can change {}", places.join(", ")),
            "chown root and chmod go-w them, or keep these files elsewhere.",
        ),
    }
}

fn timers(facts: &Facts) -> Item {
    let question = question(
        "guest-timers",
        "A guest that asks for a timer's interrupt all the time costs the host CPU time that is not \
         counted to it. The kernel bounds how often (kvm.min_timer_period_us).",
    );
    if !kvm_works(facts) {
        return question.ok("no KVM, so none");
    }
    match facts.min_timer_period_us.as_deref().map(str::parse::<u64>) {
        Some(Ok(period)) if period >= TIMER_PERIOD_US => {
            question.ok(format!("at most one in {period} us"))
        }
        Some(Ok(period)) => question.warning(
            format!("one in {period} us"),
            "options kvm min_timer_period_us=200 in /etc/modprobe.d/kvm.conf, then load kvm again.",
        ),
        Some(Err(_)) | None => question.ok("the kernel's default"),
    }
}
