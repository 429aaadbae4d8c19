//! What it takes for the daemon to start and for a sandbox to run. Pure.

use bhatti_config::EngineChoice;
use bhatti_vmm::kvm::{KvmDevice, Virtualisation};

use super::facts::{ControlGroups, Facts};
use super::{Group, Item, Question};

/// The first kernel that has all system calls the daemon makes.
const KERNEL: (u32, u32) = (5, 11);
/// Less is not enough for an image and a machine.
const LEAST_FREE_MIB: u64 = 2 << 10;
/// A few machines with their memory on disk.
const GOOD_FREE_MIB: u64 = 20 << 10;
/// Each machine takes some descriptors.
const OPEN_FILES: u64 = 65_536;

pub(super) fn items(facts: &Facts) -> Vec<Item> {
    let mut items = vec![
        root(facts),
        architecture(facts),
        kernel(facts),
        engine(facts),
        namespaces(facts),
        cgroups(facts),
        tun(facts),
        network_tools(facts),
        data_dir(facts),
        guest(facts),
        images(facts),
        listen(facts),
        user_ids(facts),
        open_files(facts),
    ];
    items.extend(facts.domain.as_ref().map(domain));
    items
}

fn domain(found: &Result<String, String>) -> Item {
    let about = "Published ports are shown below a zone, with a certificate for its names.";
    let question = question("domain", about);
    match found {
        Ok(zone) => question.ok(format!("*.{zone}")),
        Err(error) => question.failed(error, "See domain in the configuration."),
    }
}

const fn question(id: &'static str, about: &'static str) -> Question {
    Question { id, group: Group::Needed, about }
}

fn root(facts: &Facts) -> Item {
    let question = question("root", "The daemon makes namespaces, TAP devices and control groups.");
    match facts.uid {
        0 => question.ok("uid 0"),
        uid => question.failed(
            format!("uid {uid}"),
            "Run it with sudo. What only root can see is not well below, or could not be looked at.",
        ),
    }
}

fn architecture(facts: &Facts) -> Item {
    let about = "The guest's kernel and agent are built for x86_64 and aarch64.";
    let question = question("architecture", about);
    match facts.architecture {
        known @ ("x86_64" | "aarch64") => question.ok(known),
        other => question.failed(other, "Use a host with an x86_64 or aarch64 CPU."),
    }
}

fn kernel(facts: &Facts) -> Item {
    let question = question(
        "kernel",
        "Processes are told apart and handed over by means that Linux has had since 5.11.",
    );
    let Facts { kernel, .. } = facts;
    match version(kernel) {
        Some(found) if found >= KERNEL => question.ok(kernel),
        Some(_) => question.failed(kernel, "Install a newer kernel; 6.1 or newer is best."),
        None => question.warning(format!("{kernel:?}"), "Check that it is 5.11 or newer."),
    }
}

/// `(6, 1)` out of `6.1.0-44-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the CPU runs guests itself.
pub(super) fn kvm_works(facts: &Facts) -> bool {
    facts.kvm.kvm == KvmDevice::Works && facts.kvm.cpu != Virtualisation::None
}

fn engine(facts: &Facts) -> Item {
    let question =
        question("engine", "A machine needs a program that runs it: QEMU or Firecracker.");
    let accel = if kvm_works(facts) { "KVM" } else { "software emulation" };
    let qemu = facts.qemu.as_ref().map(|found| format!("qemu {} on {accel}", found.version));
    let firecracker = match &facts.firecracker {
        Ok(Some(found)) if kvm_works(facts) => Ok(format!("firecracker {} on KVM", found.version)),
        Ok(Some(_)) => Err("firecracker needs KVM, which does not work here".to_owned()),
        Ok(None) => Err("firecracker is not installed".to_owned()),
        Err(why) => Err(why.clone()),
    };
    match (facts.engine, firecracker, qemu) {
        (EngineChoice::Firecracker, Ok(found), _) => question.ok(found),
        (EngineChoice::Firecracker, Err(why), _) => question
            .failed(why, "The configuration asks for it: make it work, or set \"engine: auto\"."),
        (EngineChoice::Auto, Ok(found), _) => question.ok(found),
        (_, _, Ok(found)) => question.ok(found),
        (_, _, Err(why)) => question.failed(
            why,
            if facts.architecture == "aarch64" {
                "Install the Debian package qemu-system-arm, or the same of your distribution."
            } else {
                "Install the Debian packages qemu-system-x86 and qemu-system-data, or the same of \
                 your distribution."
            },
        ),
    }
}

fn namespaces(facts: &Facts) -> Item {
    let question = question(
        "namespaces",
        "Each machine has a network, a root, processes and names of its own.",
    );
    match &facts.namespaces {
        Ok(()) => question.ok("network, mount, PID, IPC and UTS can be made"),
        Err(why) => question.failed(
            why,
            "Run it as root; in a container with CAP_SYS_ADMIN, or better on the host itself.",
        ),
    }
}

fn cgroups(facts: &Facts) -> Item {
    let question = question(
        "cgroups",
        "They bound what a machine takes of CPU, memory and processes, and find it again.",
    );
    match &facts.cgroups {
        Err(why) => question.failed(why, "Mount them: most systems do so at /sys/fs/cgroup."),
        Ok(ControlGroups { lacks, .. }) if !lacks.is_empty() => question.warning(
            lacks.join("; "),
            "Give the kernel that controller: on most systems by taking cgroup_disable= from its \
             command line.",
        ),
        Ok(ControlGroups { unified: true, .. }) => question.ok("version 2: cpu, memory, pids"),
        Ok(ControlGroups { unified: false, .. }) if kvm_works(facts) => question.warning(
            "version 1: cpu, memory, pids; on KVM it takes longer to wake a machine",
            "systemd.unified_cgroup_hierarchy=1 on the kernel's command line, then reboot.",
        ),
        Ok(ControlGroups { unified: false, .. }) => question.ok("version 1: cpu, memory, pids"),
    }
}

fn tun(facts: &Facts) -> Item {
    let question = question("tun", "A machine's network card is a TAP device.");
    match &facts.tun {
        Ok(()) => question.ok("/dev/net/tun opens"),
        Err(why) => question.failed(
            format!("/dev/net/tun: {why}"),
            "modprobe tun; in a container also: --device /dev/net/tun --cap-add NET_ADMIN.",
        ),
    }
}

fn network_tools(facts: &Facts) -> Item {
    let question =
        question("network-tools", "Networks are made with ip, and guarded with nftables.");
    match (&facts.ip, &facts.nft) {
        (Ok(()), Ok(())) => question.ok("ip and nft work"),
        (Err(why), _) => question.failed(format!("ip: {why}"), "Install the package iproute2."),
        (_, Err(why)) => question.failed(
            format!("nft: {why}"),
            "Install the package nftables, and use a kernel that has it (modprobe nf_tables).",
        ),
    }
}

fn data_dir(facts: &Facts) -> Item {
    let question = question(
        "data-dir",
        "Images, disks and the memory of sleeping sandboxes are kept there; without room nothing is \
         created or put to sleep.",
    );
    let dir = &facts.data_dir;
    let place = match &dir.above {
        None => format!("{}, {} free", dir.path, size(dir.free_mib)),
        Some(above) => {
            format!("{} (to be made; {above} has {} free)", dir.path, size(dir.free_mib))
        }
    };
    let advice = "Make room, or set data_dir to a larger file system.";
    match dir.free_mib {
        free if free < LEAST_FREE_MIB => question.failed(place, advice),
        free if free < GOOD_FREE_MIB => question.warning(place, advice),
        _ => question.ok(place),
    }
}

fn size(mib: u64) -> String {
    if mib < 10 << 10 { format!("{mib} MiB") } else { format!("{} GiB", mib >> 10) }
}

fn guest(facts: &Facts) -> Item {
    let question =
        question("guest", "Machines boot from a kernel and an initramfs with the agent.");
    let missing: Vec<_> =
        facts.missing.iter().map(|(what, path)| format!("{what} {path} is missing")).collect();
    match missing.is_empty() {
        true => question.ok("kernel and initramfs are there"),
        false => question.failed(
            missing.join("; "),
            "Run `make up`, or set kernel and initramfs in the configuration.",
        ),
    }
}

fn images(facts: &Facts) -> Item {
    let question = question("images", "A sandbox is made from an image.");
    match facts.images {
        0 => question.warning(
            format!("none in {}/images", facts.data_dir.path),
            "Run `make up`: until then every create fails.",
        ),
        1 => question.ok("1 image"),
        count => question.ok(format!("{count} images")),
    }
}

fn listen(facts: &Facts) -> Item {
    let question = question("listen", "The API needs an address of its own.");
    match &facts.listen {
        Ok(address) => question.ok(format!("{address} is free")),
        Err(_) if facts.data_dir.in_use => question.ok("a daemon runs on this data directory"),
        Err(why) => question.failed(
            why,
            "Stop the program that has that port (ss -ltnp shows it), or set listen in the \
             configuration.",
        ),
    }
}

fn user_ids(facts: &Facts) -> Item {
    let question = question(
        "user-ids",
        "Each machine runs as a user of its own, whom nobody else on this host may be.",
    );
    let (first, count) = facts.vmm_uids;
    let last = first.saturating_add(count - 1);
    let ours = format!("{first} to {last}");
    match taken(facts, first, last) {
        None => question.ok(format!("{ours} are nobody's")),
        Some(who) => question.warning(
            format!("{ours}, some of which belong to {who}"),
            "Set jail_uid_base to where 65536 ids are free, before there are sandboxes.",
        ),
    }
}

/// Who has one of these ids.
fn taken(facts: &Facts, first: u32, last: u32) -> Option<String> {
    let account = facts.accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        (first..=last).contains(&uid).then(|| format!("the account {name}"))
    });
    let subordinate = || {
        facts.subordinates.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, from) = (fields.next()?, fields.next()?.parse::<u64>().ok()?);
            let end = from.saturating_add(fields.next()?.parse().ok()?);
            let overlap = from <= u64::from(last) && end > u64::from(first);
            overlap.then(|| format!("the subordinate ids of {name}"))
        })
    };
    account.or_else(subordinate)
}

fn open_files(facts: &Facts) -> Item {
    let question = question(
        "open-files",
        "Every machine, connection and image takes descriptors of the daemon's.",
    );
    match facts.open_files {
        limit if limit >= OPEN_FILES => question.ok(format!("up to {limit}")),
        limit => question.warning(
            format!("up to {limit}"),
            "As a systemd service: LimitNOFILE=1048576. Elsewhere: ulimit -Hn 1048576.",
        ),
    }
}
