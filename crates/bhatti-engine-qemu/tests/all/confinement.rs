//! What a running VMM can and cannot do, read from the kernel.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

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
    let (dir, base) = (spec.dir.clone(), spec.root.base.clone().unwrap());
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
    for kind in ["net", "ipc", "mnt", "pid", "uts"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
    }
    let interfaces = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(interfaces.lines().skip(2).count(), 1, "only lo:\n{interfaces}");

    assert!(std::fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    let file = |path: &str| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap();
    assert_eq!(file(&format!("/proc/{pid}/cwd")), file(dir.as_str()), "it works in its directory");
    assert_eq!(status["NSpid"], format!("{pid}\t1"), "the first process of its namespace");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "128");
    let disk = std::fs::metadata(&base).unwrap().len();
    let largest: u64 = limit("Max file size").parse().unwrap();
    assert!((disk..disk + disk / 100 + (128 << 20)).contains(&largest), "{largest} for {disk}");

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
    let leaked = std::fs::File::open("/etc/hostname").unwrap();
    // SAFETY: a system call on an open descriptor; it only makes it inheritable.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&leaked), libc::F_SETFD, 0) };
    let spec = harness.spec().await;
    // Names mean something else in there, so files are compared by what they are.
    let file = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap();
    let disk = file(spec.root.file.as_std_path());
    let mut allowed = BTreeSet::from([disk, file(Path::new("/dev/null"))]);
    for given in [&spec.kernel, &spec.initramfs, spec.root.base.as_ref().unwrap()] {
        allowed.insert(file(given.as_std_path()));
    }
    let vm = harness.qemu().await.boot(spec).await.unwrap();
    harness.booted();

    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", vm.record().pid)).unwrap() {
        let entry = entry.unwrap().path();
        let Ok(target) = std::fs::read_link(&entry) else { continue };
        let text = target.to_string_lossy().into_owned();
        let nameless = ["socket:", "anon_inode:", "pipe:", "/memfd:"];
        if !nameless.iter().any(|kind| text.starts_with(kind)) {
            assert!(allowed.contains(&file(&entry)), "the VMM holds {text}");
            seen.insert(file(&entry));
        }
    }
    assert!(seen.contains(&disk), "{seen:?}");
    drop(leaked);
    vm.kill().await.unwrap();
}

/// What the VMM's root holds, seen from the host; nothing of the host is reached through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vmm_sees_its_own_files_only() {
    let harness = QemuHarness::new();
    std::fs::write(harness.path().join("state.db"), "all secrets").unwrap();
    let spec = harness.spec().await;
    let dir = spec.dir.clone();
    let vm = harness.qemu().await.boot(spec).await.unwrap();
    harness.booted();
    let pid = vm.record().pid;
    let root = Path::new("/proc").join(pid.to_string()).join("root");

    let names = |path: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let expected = ["dev", "firmware", "initramfs", "kernel", "machine"].map(str::to_owned);
    let mut top = names(&root);
    assert!(expected.iter().all(|name| top.remove(name)), "{top:?}");
    // What is left serves the loader.
    let loader = ["etc", "lib", "lib64", "usr", "opt"].map(str::to_owned);
    assert!(top.is_subset(&loader.into()), "{top:?}");
    assert_eq!(names(&root.join("dev")), ["null", "urandom"].map(str::to_owned).into());
    assert!(names(&root.join("etc")).is_subset(&["ld.so.cache".to_owned()].into()));
    assert_eq!(names(&root.join("machine")), names(dir.as_std_path()));
    for host in ["etc/passwd", "proc", "sys", "tmp", "run", "root", "usr/share", "var"] {
        assert!(!root.join(host).exists(), "{host} is reachable");
    }
    let state = harness.path().join("state.db");
    for host in [state.as_str(), "/etc/shadow", "/proc/1/cmdline"] {
        assert!(!root.join(host.trim_start_matches('/')).exists(), "{host} is reachable");
    }

    // The table of mounts says the same, and that all but the directory is read-only.
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (place, options) = (fields[4], fields[5]);
        assert!(options.contains("nosuid"), "{line}");
        match place {
            "/machine" => {
                assert!(options.contains("nodev") && options.contains("noexec"), "{line}")
            }
            _ => assert!(options.starts_with("ro,"), "{line}"),
        }
    }
    assert_eq!(mounts.matches("bhatti-vmm").count(), 1, "{mounts}");
    let hosts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!hosts.contains("bhatti-vmm") && !hosts.contains(dir.as_str()), "{hosts}");
    vm.kill().await.unwrap();
}

/// The default data directory lies below root's home, which nobody else may enter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_boots_below_a_closed_directory() {
    let harness = QemuHarness::new();
    let closed = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(harness.path(), closed).unwrap();
    let mut spec = harness.spec().await;
    let kernel = harness.path().join("vmlinux");
    std::fs::copy(&spec.kernel, &kernel).unwrap();
    spec.kernel = kernel;
    let vm = harness.qemu().await.boot(spec).await.unwrap();
    harness.booted();
    harness.ping(vm.open_link().await.unwrap()).await.unwrap();
    vm.kill().await.unwrap();
}
