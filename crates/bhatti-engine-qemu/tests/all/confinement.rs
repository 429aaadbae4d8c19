//! What a running VMM can and cannot do, read from the kernel.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bhatti_engine::conformance::Harness;
use bhatti_engine::{Accel, Engine};
use bhatti_engine_qemu::Arch;
use camino::Utf8Path;

use crate::harness::{OWNER, QemuHarness, accel, arch};
use crate::snapshot::Golden;

fn status(pid: i32) -> std::collections::HashMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vmm_is_nobody_and_sees_nothing() {
    let harness = QemuHarness::new();
    // A descriptor without close-on-exec, as a library might leave one.
    let leaked = nix::unistd::dup(std::fs::File::open("/etc/passwd").unwrap()).unwrap();
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
        // KVM has a thread of the kernel's own for each machine, which is in its group.
        let own = |line: &&str| self::status(line.parse().unwrap())["PPid"] != "2";
        let procs: Vec<_> = procs.lines().filter(own).collect();
        assert_eq!(procs, [pid.to_string()], "{}", group.display());
    }
    drop(leaked);
    vm.kill().await.unwrap();
}

/// Every open file of the VMM is one it was given, one in its directory, or nameless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vmm_holds_no_file_it_was_not_given() {
    let harness = QemuHarness::new();
    let leaked = std::fs::File::open("/etc/passwd").unwrap();
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

    let seen = holds_only(vm.record().pid, &allowed);
    assert!(seen.contains(&disk), "{seen:?}");
    drop(leaked);
    vm.kill().await.unwrap();
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: &Path) -> Identity {
    std::fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap()
}

/// The named files a VMM has open, all of them allowed.
fn holds_only(pid: i32, allowed: &BTreeSet<Identity>) -> BTreeSet<Identity> {
    let number = |device: &str| std::fs::metadata(device).unwrap().rdev();
    // What its memory comes from, and what it runs on.
    let mut devices = vec![number("/dev/zero")];
    devices.extend((accel().0 == Accel::Kvm).then(|| number("/dev/kvm")));
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap().path();
        let Ok(target) = std::fs::read_link(&entry) else { continue };
        let text = target.to_string_lossy().into_owned();
        let nameless = ["socket:", "anon_inode:", "pipe:", "/memfd:"];
        // Its root has nodes of its own for these.
        let is_device = std::fs::metadata(&entry).is_ok_and(|m| devices.contains(&m.rdev()));
        if !is_device && !nameless.iter().any(|kind| text.starts_with(kind)) {
            assert!(allowed.contains(&identity(&entry)), "the VMM holds {text}");
            seen.insert(identity(&entry));
        }
    }
    seen
}

/// A clone sees what a booted machine sees, but for the kernel, and its own descriptors; it holds
/// the layers of its disk read-only, and its memory's template is sealed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_sees_its_own_descriptors_and_no_more() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let golden = Golden::new(&harness, &engine).await;
    let machine = golden.machine(&harness, &engine).await;
    let (disk, layers) = (machine.root.file.clone(), machine.root.layers.clone());
    let _locks: Vec<_> = layers.iter().map(|layer| lock_as_a_vmm_could(layer)).collect();
    let vm = golden.restore(&engine, machine).await;
    let pid = vm.record().pid;
    let (root, fds) = (format!("/proc/{pid}/root"), format!("/proc/{pid}/fd"));

    let names = |path: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let top = names(&root);
    assert!(!top.contains("kernel") && !top.contains("initramfs"), "{top:?}");
    // In there it is a magic link that leads to the process itself, and to nobody else.
    assert_eq!(names(&format!("{root}/fd")), names(&fds));
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/fd")).unwrap();
    let options = line.split(' ').nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|given| given == option), "{line}");
    }
    assert!(!mounts.contains(" /proc "), "{mounts}");

    let base = golden.disk.base.clone().unwrap();
    let mut allowed = BTreeSet::from([identity(Path::new("/dev/null"))]);
    allowed.extend([&disk, &base].into_iter().chain(&layers).map(|p| identity(p.as_std_path())));
    let seen = holds_only(pid, &allowed);
    for layer in &layers {
        assert!(seen.contains(&identity(layer.as_std_path())), "{layer}");
    }
    let mut templates = 0;
    for entry in std::fs::read_dir(&fds).unwrap() {
        let entry = entry.unwrap();
        let (path, number) = (entry.path(), entry.file_name().into_string().unwrap());
        let Ok(target) = std::fs::read_link(&path) else { continue };
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let writable = i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_ACCMODE != 0;
        let is_file = std::fs::metadata(&path).is_ok_and(|m| m.is_file());
        if is_file && writable && identity(&path) != identity(disk.as_std_path()) {
            // Its log, and its memory as QEMU insists on opening it.
            let text = target.to_string_lossy().into_owned();
            assert!(text.starts_with("/memfd:"), "it can write {text}");
            if text.contains("bhatti-memory") {
                let template = std::fs::File::open(&path).unwrap();
                // SAFETY: a system call on an open descriptor.
                let seals = unsafe {
                    libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&template), libc::F_GET_SEALS)
                };
                assert_ne!(seals & libc::F_SEAL_WRITE, 0, "{text}");
                templates += 1;
            }
        }
    }
    assert!(templates > 0, "or this looked at the wrong process");
    vm.kill().await.unwrap();
}

/// The strongest lock that a VMM which was broken into can take on what it shares with others: it
/// must keep none of them from starting.
fn lock_as_a_vmm_could(shared: &Utf8Path) -> std::fs::File {
    let file = std::fs::File::open(shared).unwrap();
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    file
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
    let mut expected = vec!["dev", "initramfs", "kernel", "machine"];
    expected.extend((arch() == Arch::X86_64).then_some("firmware"));
    let mut top = names(&root);
    assert!(expected.into_iter().all(|name| top.remove(name)), "{top:?}");
    // What is left serves the loader.
    let loader = ["etc", "lib", "lib64", "usr", "opt"].map(str::to_owned);
    assert!(top.is_subset(&loader.into()), "{top:?}");
    let mut devices: BTreeSet<_> = ["null", "urandom", "zero"].map(str::to_owned).into();
    if accel().0 == Accel::Kvm {
        devices.insert("kvm".to_owned());
        let kvm = std::fs::metadata(root.join("dev/kvm")).unwrap();
        let permission = (kvm.uid(), kvm.gid(), kvm.mode() & 0o7777);
        assert_eq!(permission, (OWNER.uid, OWNER.gid, 0o600), "the VMM's alone");
    }
    assert_eq!(names(&root.join("dev")), devices);
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
