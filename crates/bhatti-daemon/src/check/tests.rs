//! Hosts on which one thing is not well, and the real one.

use bhatti_config::EngineChoice;
use bhatti_engine_firecracker::Program;
use bhatti_engine_qemu::Found;
use bhatti_vmm::kvm::{self, KvmDevice, Virtualisation};

use super::facts::{ControlGroups, DataDir};
use super::*;

/// A production host on which everything is well.
fn good() -> Facts {
    Facts {
        uid: 0,
        architecture: "x86_64",
        kernel: "6.1.0-44-amd64".to_owned(),
        command_line: "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet nosmt".to_owned(),
        engine: EngineChoice::Auto,
        kvm: kvm::Facts { kvm: KvmDevice::Works, cpu: Virtualisation::Vmx },
        qemu: Ok(Found {
            program: "/usr/bin/qemu-system-x86_64".into(),
            version: "7.2.22".to_owned(),
            filtered: true,
        }),
        firecracker: Ok(Some(Program {
            path: "/usr/local/bin/firecracker".into(),
            version: "1.15.1".to_owned(),
            warning: None,
        })),
        own_filter: false,
        cgroups: Ok(ControlGroups { unified: true, lacks: Vec::new() }),
        mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,favordynmods 0 0\n".to_owned(),
        namespaces: Ok(()),
        tun: Ok(()),
        ip: Ok(()),
        nft: Ok(()),
        data_dir: DataDir {
            path: "/var/lib/bhatti".into(),
            above: None,
            free_mib: 100 << 10,
            in_use: false,
            reflink: Some(true),
        },
        missing: Vec::new(),
        images: 2,
        domain: None,
        listen: Ok("127.0.0.1:8080".to_owned()),
        vmm_uids: (2_063_597_568, 65_536),
        accounts: "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n".to_owned(),
        subordinates: "alice:100000:65536\n".to_owned(),
        open_files: 1 << 20,
        writable: Vec::new(),
        seccomp: Some("kill_process kill_thread trap errno trace log allow".to_owned()),
        smt: Some("off".to_owned()),
        ksm: Some("0".to_owned()),
        swaps: "Filename\tType\tSize\tUsed\tPriority".to_owned(),
        thp: Some("always [madvise] never".to_owned()),
        vulnerabilities: vec![
            ("itlb_multihit".to_owned(), "Not affected".to_owned()),
            ("meltdown".to_owned(), "Mitigation: PTI".to_owned()),
        ],
        nx_huge_pages: Some("N".to_owned()),
        min_timer_period_us: Some("200".to_owned()),
        printk: "7\t4\t1\t7".to_owned(),
        consoles: "tty0  -WU (EC  p  )  4:7".to_owned(),
    }
}

/// The item of that name, on a host that is good but for one thing.
fn item(id: &str, spoil: impl FnOnce(&mut Facts)) -> Item {
    let mut facts = good();
    spoil(&mut facts);
    let report = Report::of(&facts);
    let found = report.items.into_iter().find(|item| item.id == id);
    found.unwrap_or_else(|| panic!("there is no {id}"))
}

#[test]
fn a_good_host_is_good() {
    let report = Report::of(&good());
    assert!(report.fit);
    for item in &report.items {
        assert_eq!(item.verdict, Verdict::Ok, "{item:?}");
        assert!(!item.found.is_empty() && item.advice.is_empty(), "{item:?}");
    }
}

/// Names are for scripts and for the table: short, unlike, in groups that stay together.
#[test]
fn items_have_names_and_an_order() {
    let items = Report::of(&good()).items;
    let mut ids: Vec<_> = items.iter().map(|item| item.id).collect();
    assert!(ids.iter().all(|id| id.len() <= 14), "{ids:?}");
    assert!(items.is_sorted_by_key(|item| item.group));
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count);
    for item in items {
        assert!(item.about.ends_with('.') && item.about.len() > 20, "{item:?}");
    }
}

type Spoil = fn(&mut Facts);

/// What is spoilt, what becomes of the item, and a word of what is said about it.
#[test]
fn what_is_missing_is_said_with_what_to_do() {
    use Verdict::{Failed, Warning};
    let cases: &[(&str, Spoil, Verdict, &str)] = &[
        ("root", |f| f.uid = 1000, Failed, "sudo"),
        ("architecture", |f| f.architecture = "riscv64", Failed, "aarch64"),
        ("kernel", |f| f.kernel = "5.10.0-30-amd64".to_owned(), Failed, "newer"),
        ("kernel", |f| f.kernel = "mine".to_owned(), Warning, "5.11"),
        ("namespaces", |f| f.namespaces = Err("EPERM".to_owned()), Failed, "CAP_SYS_ADMIN"),
        ("cgroups", |f| f.cgroups = Err("none".to_owned()), Failed, "/sys/fs/cgroup"),
        (
            "cgroups",
            |f| {
                let lacks = vec!["no memory controller".to_owned()];
                f.cgroups = Ok(ControlGroups { unified: true, lacks });
            },
            Warning,
            "command line",
        ),
        (
            "cgroups",
            |f| f.cgroups = Ok(ControlGroups { unified: false, lacks: Vec::new() }),
            Warning,
            "unified_cgroup_hierarchy",
        ),
        ("tun", |f| f.tun = Err("No such file".to_owned()), Failed, "modprobe tun"),
        ("network-tools", |f| f.ip = Err("not installed".to_owned()), Failed, "iproute2"),
        ("network-tools", |f| f.nft = Err("not installed".to_owned()), Failed, "nftables"),
        ("data-dir", |f| f.data_dir.free_mib = 100, Failed, "data_dir"),
        ("data-dir", |f| f.data_dir.free_mib = 5000, Warning, "data_dir"),
        ("guest", |f| f.missing = vec![("guest kernel", "/k".into())], Failed, "make up"),
        ("images", |f| f.images = 0, Warning, "make up"),
        ("listen", |f| f.listen = Err(":8080: in use".to_owned()), Failed, "ss -ltnp"),
        ("user-ids", |f| f.accounts += "x:x:2063597569:1::/:\n", Warning, "jail_uid_base"),
        ("user-ids", |f| f.subordinates += "x:2063500000:100000\n", Warning, "jail_uid_base"),
        ("open-files", |f| f.open_files = 1024, Warning, "LimitNOFILE"),
        ("seccomp", |f| f.seccomp = None, Warning, "CONFIG_SECCOMP_FILTER"),
        ("seccomp", |f| f.own_filter = true, Warning, "release build"),
        ("smt", |f| f.smt = Some("on".to_owned()), Warning, "nosmt"),
        ("smt", |f| f.smt = None, Warning, "firmware"),
        ("cpu-weaknesses", |f| f.vulnerabilities.clear(), Warning, "newer kernel"),
        (
            "cpu-weaknesses",
            |f| f.vulnerabilities.push(("mds".to_owned(), "Vulnerable: no microcode".to_owned())),
            Warning,
            "microcode",
        ),
        (
            "cpu-weaknesses",
            |f| {
                let state = "Mitigation: Clear buffers; SMT vulnerable".to_owned();
                f.vulnerabilities.push(("mds".to_owned(), state));
            },
            Warning,
            "microcode",
        ),
        (
            "cpu-weaknesses",
            |f| {
                let state = "Unknown: No mitigations".to_owned();
                f.vulnerabilities.push(("mmio_stale_data".to_owned(), state));
            },
            Warning,
            "microcode",
        ),
        ("mitigations", |f| f.command_line += " mitigations=off", Warning, "command line"),
        ("mitigations", |f| f.command_line += " pti=off", Warning, "command line"),
        (
            "mitigations",
            |f| f.command_line += " kvm-intel.vmentry_l1d_flush=never",
            Warning,
            "command line",
        ),
        (
            "mitigations",
            |f| f.command_line += " mitigations=auto,no_guest_host",
            Warning,
            "command line",
        ),
        ("mitigations", |f| f.command_line += " nospectre_v2", Warning, "command line"),
        ("ksm", |f| f.ksm = Some("1".to_owned()), Warning, "ksmtuned"),
        ("swap", |f| f.swaps += "\n/dev/sda2 partition 1 0 -2", Warning, "swapoff"),
        ("trusted-paths", |f| f.writable = vec!["/tmp/x".into()], Warning, "chown root"),
        (
            "guest-timers",
            |f| f.min_timer_period_us = Some("20".to_owned()),
            Warning,
            "min_timer_period_us=200",
        ),
        ("kvm", |f| f.kvm.kvm = KvmDevice::Absent, Warning, "nested"),
        ("kvm", |f| f.kvm.kvm = KvmDevice::Refused(13), Warning, "nested"),
        ("kvm", |f| f.kvm.kvm = KvmDevice::Dead(25), Warning, "nested"),
        ("kvm", |f| f.kvm.cpu = Virtualisation::None, Warning, "nested"),
        ("firecracker", |f| f.firecracker = Ok(None), Warning, "release 1.15.1"),
        (
            "firecracker",
            |f| f.firecracker = Err("release 1.16.0 does not work here".to_owned()),
            Warning,
            "release 1.15.1",
        ),
        ("disk-copies", |f| f.data_dir.reflink = Some(false), Warning, "XFS"),
        ("disk-copies", |f| f.data_dir.reflink = None, Warning, "XFS"),
        ("machine-start", |f| f.mounts.clear(), Warning, "nx_huge_pages=never"),
        (
            "machine-start",
            |f| {
                f.mounts.clear();
                f.vulnerabilities[0].1 = "KVM: Mitigation: Split huge pages".to_owned();
            },
            Warning,
            "favordynmods",
        ),
        ("huge-pages", |f| f.thp = Some("[always] madvise never".to_owned()), Warning, "madvise"),
        ("console", |f| f.consoles = "ttyS0 -W- (EC p a) 4:64".to_owned(), Warning, "loglevel"),
    ];
    for (id, spoil, verdict, word) in cases {
        let item = item(id, spoil);
        assert_eq!(item.verdict, *verdict, "{item:?}");
        assert!(item.advice.contains(word) && item.advice.ends_with('.'), "{item:?}");
        assert!(!item.found.is_empty(), "{item:?}");
        let mut facts = good();
        spoil(&mut facts);
        assert_eq!(Report::of(&facts).fit, *verdict != Failed, "{id}");
    }
}

#[test]
fn what_does_not_concern_this_host_is_well() {
    let no_kvm = |facts: &mut Facts| {
        facts.kvm.kvm = KvmDevice::Absent;
        facts.firecracker = Ok(None);
        facts.data_dir.reflink = Some(false);
        facts.mounts.clear();
        facts.min_timer_period_us = None;
        facts.cgroups = Ok(ControlGroups { unified: false, lacks: Vec::new() });
    };
    for id in [
        "cgroups",
        "engine",
        "seccomp",
        "firecracker",
        "disk-copies",
        "machine-start",
        "guest-timers",
    ] {
        assert_eq!(item(id, no_kvm).verdict, Verdict::Ok, "{id}");
    }
    assert_eq!(item("kvm", no_kvm).verdict, Verdict::Warning);
    assert_eq!(item("engine", no_kvm).found, "qemu 7.2.22 on software emulation");
    let runs = |facts: &mut Facts| {
        facts.listen = Err("in use".to_owned());
        facts.data_dir.in_use = true;
    };
    assert_eq!(item("listen", runs).verdict, Verdict::Ok);
    let zram = item("swap", |facts| facts.swaps += "\n/dev/zram0 partition 1 0 100");
    assert_eq!(zram.verdict, Verdict::Ok, "that is memory");
    let old = item("machine-start", |facts| {
        facts.kernel = "5.15.0".to_owned();
        facts.mounts.clear();
    });
    assert_eq!(old.verdict, Verdict::Ok);
}

/// Which engine is asked for decides what is needed.
#[test]
fn the_engine_that_is_asked_for_is_needed() {
    let engine = |choice, spoil: Spoil| {
        item("engine", |facts| {
            facts.engine = choice;
            spoil(facts);
        })
    };
    let no_qemu: Spoil = |facts| facts.qemu = Err("qemu is not installed".to_owned());
    let no_firecracker: Spoil = |facts| facts.firecracker = Ok(None);
    let neither: Spoil = |facts| {
        facts.qemu = Err("qemu is not installed".to_owned());
        facts.firecracker = Ok(None);
    };
    let no_kvm: Spoil = |facts| facts.kvm.kvm = KvmDevice::Absent;
    for (choice, spoil, verdict) in [
        (EngineChoice::Auto, no_qemu, Verdict::Ok),
        (EngineChoice::Auto, no_firecracker, Verdict::Ok),
        (EngineChoice::Auto, neither, Verdict::Failed),
        (EngineChoice::Auto, no_kvm, Verdict::Ok),
        (EngineChoice::Qemu, no_qemu, Verdict::Failed),
        (EngineChoice::Qemu, no_firecracker, Verdict::Ok),
        (EngineChoice::Firecracker, no_qemu, Verdict::Ok),
        (EngineChoice::Firecracker, no_firecracker, Verdict::Failed),
        (EngineChoice::Firecracker, no_kvm, Verdict::Failed),
    ] {
        let item = engine(choice, spoil);
        assert_eq!(item.verdict, verdict, "{choice:?}: {item:?}");
    }
}

/// The real host, whatever it is: everything is looked at, nothing is left, and twice is the same.
#[test]
fn a_look_changes_nothing() {
    let scratch = tempfile::tempdir().expect("a directory");
    let path =
        |name: &str| camino::Utf8PathBuf::from_path_buf(scratch.path().join(name)).expect("UTF-8");
    let file = path("config.yaml");
    let text = format!("data_dir: {}\nlisten: 127.0.0.1:0\n", path("data"));
    std::fs::write(&file, text).expect("a configuration");
    let places = bhatti_config::Places::new(Some(file), path("home"));
    let config = bhatti_config::load(&places).expect("it is read").server(None);
    let before = Report::of_host(&config);
    assert_eq!(before.items.len(), Report::of(&good()).items.len());
    assert_eq!(before.items.iter().filter(|item| item.id == "guest").count(), 1);
    assert!(!path("data").exists(), "it made the data directory");
    let stable = |report: Report| {
        // Others use the disk.
        report.items.into_iter().filter(|item| item.id != "data-dir").collect::<Vec<_>>()
    };
    assert_eq!(stable(before), stable(Report::of_host(&config)));
    assert_eq!(scratch.path().read_dir().expect("it is there").count(), 1);
}
