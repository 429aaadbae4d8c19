//! What a running VMM can and cannot do, read from the kernel.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use bhatti_engine::Engine;
use bhatti_engine::conformance::Harness;

use crate::harness::{OWNER, QemuHarness};

fn status(pid: i32) -> std::collections::HashMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vmm_is_nobody_and_sees_nothing() {
    let harness = QemuHarness::new();
    // A descriptor without close-on-exec, as a library might leave one.
    let leaked = nix::unistd::dup(std::fs::File::open("/etc/hostname").unwrap()).unwrap();
    let spec = harness.spec().await;
    let dir = spec.dir.clone();
    let vm = harness.qemu().await.boot(spec).await.unwrap();
    harness.booted();
    let pid = vm.record().pid;

    let status = status(pid);
    let (uid, gid) = (OWNER.uid, OWNER.gid);
    assert_eq!(status["Uid"], format!("{uid}\t{uid}\t{uid}\t{uid}"));
    assert_eq!(status["Gid"], format!("{gid}\t{gid}\t{gid}\t{gid}"));
    assert_eq!(status["Groups"], "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
    assert_eq!(status["Umask"], "0077");

    let namespace =
        |of: &str, kind: &str| std::fs::metadata(format!("/proc/{of}/ns/{kind}")).unwrap().ino();
    for kind in ["net", "ipc"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
    }
    let interfaces = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(interfaces.lines().skip(2).count(), 1, "only lo:\n{interfaces}");

    assert!(std::fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), dir.as_std_path());
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "128");

    let groups = harness.groups(vm.record().id.as_str());
    assert!(!groups.is_empty());
    for group in groups {
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), pid.to_string(), "{}", group.display());
    }
    drop(leaked);
    vm.kill().await.unwrap();
}

/// Every open file of the VMM is one it was given, one in its directory, or nameless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vmm_holds_no_file_it_was_not_given() {
    let harness = QemuHarness::new();
    let file = std::fs::File::open("/etc/hostname").unwrap();
    // SAFETY: a system call on an open descriptor; it only makes it inheritable.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_SETFD, 0) };
    let spec = harness.spec().await;
    let canonical = |path: &camino::Utf8Path| path.canonicalize().unwrap();
    let mut allowed: BTreeSet<_> =
        [&spec.kernel, &spec.initramfs, spec.root.base.as_ref().unwrap()]
            .into_iter()
            .map(|path| canonical(path))
            .collect();
    allowed.insert("/dev/null".into());
    let dir = canonical(&spec.dir);
    let vm = harness.qemu().await.boot(spec).await.unwrap();
    harness.booted();

    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", vm.record().pid)).unwrap() {
        let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
        let text = target.to_string_lossy().into_owned();
        let nameless = ["socket:", "anon_inode:", "pipe:", "/memfd:"];
        let fine = allowed.contains(&target)
            || target.starts_with(&dir)
            || nameless.iter().any(|kind| text.starts_with(kind));
        assert!(fine, "the VMM holds {text}");
        seen.insert(target);
    }
    assert!(seen.contains(&dir.join("root.qcow2")), "{seen:?}");
    drop(file);
    vm.kill().await.unwrap();
}
