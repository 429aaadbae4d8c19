//! What a running VMM can and cannot do, read from the kernel: everything Firecracker's own jailer
//! gives, and what this jail gives beyond (ADR 0013).

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bhatti_engine::conformance::Harness;
use bhatti_engine::{Engine, Vm};

use crate::golden::Golden;
use crate::harness::{FirecrackerHarness, OWNER};
use crate::network::Network;

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: impl AsRef<Path>) -> Identity {
    std::fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap()
}

fn names(path: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = std::fs::read_dir(path).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn of(pid: i32, rest: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{rest}"))
}

fn status(path: &Path) -> HashMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// User, group, capabilities, privileges and the filter, of each thread.
fn every_thread_is_nobody(pid: i32) {
    let (uid, gid) = (OWNER.uid, OWNER.gid);
    let mut threads = BTreeSet::new();
    for task in std::fs::read_dir(of(pid, "task")).unwrap() {
        let status = status(&task.unwrap().path().join("status"));
        let name = &status["Name"];
        assert_eq!(status["Uid"], format!("{uid}\t{uid}\t{uid}\t{uid}"), "{name}");
        assert_eq!(status["Gid"], format!("{gid}\t{gid}\t{gid}\t{gid}"), "{name}");
        assert_eq!(status["Groups"], "", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{name}: {set}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        assert_eq!(status["Seccomp"], "2", "{name}");
        assert_eq!(status["Umask"], "0077", "{name}");
        threads.insert(name.clone());
    }
    for thread in ["firecracker", "fc_api", "fc_vcpu 0"] {
        assert!(threads.contains(thread), "{threads:?}");
    }
}

/// Namespaces of its own, in one of which it is the first process.
fn it_is_alone(pid: i32) {
    for kind in ["net", "ipc", "mnt", "pid", "uts"] {
        let kind = format!("ns/{kind}");
        assert_ne!(
            identity(of(pid, &kind)),
            identity(Path::new("/proc/self").join(&kind)),
            "{kind}"
        );
    }
    assert_eq!(status(&of(pid, "status"))["NSpid"], format!("{pid}\t1"));
}

/// What it can use up.
fn it_is_bounded(harness: &FirecrackerHarness, vm: &dyn Vm, disk: u64) {
    let pid = vm.record().pid;
    let limits = std::fs::read_to_string(of(pid, "limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "128");
    assert_eq!(limit("Max file size"), disk.to_string(), "it writes no file larger than its disk");
    let groups = harness.groups(vm.record().id.as_str());
    assert!(!groups.is_empty());
    let mut bounds = BTreeSet::new();
    for group in &groups {
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        // KVM has a thread of the kernel's own for each machine, which is in its group.
        let own = |line: &&str| status(&of(line.parse().unwrap(), "status"))["PPid"] != "2";
        let procs: Vec<_> = procs.lines().filter(own).collect();
        assert_eq!(procs, [pid.to_string()], "{}", group.display());
        for bound in
            ["cpu.max", "cpu.cfs_quota_us", "memory.max", "memory.limit_in_bytes", "pids.max"]
        {
            let Ok(value) = std::fs::read_to_string(group.join(bound)) else { continue };
            assert!(!value.starts_with("max") && !value.starts_with('-'), "{bound}: {value}");
            bounds.extend(bound.split('.').next().map(str::to_owned));
        }
    }
    assert_eq!(bounds, set(&["cpu", "memory", "pids"]));
}

/// Its root, which it cannot change but for the machine's own directory.
fn it_sees_its_own_files(pid: i32, dir: &Path, given: &[&str], devices: &[&str]) {
    let root = of(pid, "root");
    assert_ne!(identity(&root), identity("/"), "its root is its own");
    assert_eq!(identity(root.join("machine")), identity(dir));
    assert_eq!(identity(of(pid, "cwd")), identity(dir), "it works in its directory");
    let mut top = names(&root);
    for name in given.iter().chain(&["dev", "machine"]) {
        assert!(top.remove(*name), "{name} is missing");
    }
    // What is left is the program, and what serves its loader.
    let exe = std::fs::read_link(of(pid, "exe")).unwrap();
    let (place, program) = (exe.parent().unwrap(), exe.file_name().unwrap().to_str().unwrap());
    let place = place.strip_prefix("/").unwrap();
    let first = place.iter().next().unwrap().to_str().unwrap();
    let loader = set(&["etc", "lib", "lib64", "usr", "seccomp.bpf", first]);
    assert!(top.is_subset(&loader), "{top:?}");
    assert!(names(root.join(place)).contains(program));
    if !["lib", "lib64", "usr"].contains(&first) {
        assert_eq!(names(root.join(place)), set(&[program]), "nothing beside the program");
    }
    assert_eq!(names(root.join("dev")), set(devices));
    for device in ["kvm", "net/tun"].map(|name| root.join("dev").join(name)) {
        let Ok(node) = device.metadata() else { continue };
        let permission = (node.uid(), node.gid(), node.mode() & 0o7777);
        assert_eq!(permission, (OWNER.uid, OWNER.gid, 0o600), "the VMM's alone");
    }
    for host in ["etc/passwd", "proc", "sys", "tmp", "run", "root", "home", "usr/share", "var"] {
        assert!(!root.join(host).exists(), "{host} is reachable");
    }
    let mounts = std::fs::read_to_string(of(pid, "mountinfo")).unwrap();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (place, options) = (fields[4], fields[5]);
        assert!(options.contains("nosuid"), "{line}");
        match place {
            "/machine" => assert!(options.contains("nodev,noexec"), "{line}"),
            _ => assert!(options.starts_with("ro,"), "{line}"),
        }
    }
    let hosts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!hosts.contains("bhatti-vmm") && !hosts.contains(dir.to_str().unwrap()), "{hosts}");
}

/// The named files it has open are its disk and what it was given; what it has no name for is its own.
fn it_holds_only(pid: i32, allowed: &[Identity]) {
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(of(pid, "fd")).unwrap() {
        let entry = entry.unwrap().path();
        let Ok(target) = std::fs::read_link(&entry) else { continue };
        let text = target.to_str().unwrap();
        let nameless = ["socket:", "anon_inode:", "pipe:", "/memfd:"];
        let devices = ["/dev/kvm", "/dev/net/tun", "/dev/null", "/dev/urandom"];
        if devices.contains(&text) || nameless.iter().any(|kind| text.starts_with(kind)) {
            continue;
        }
        assert!(allowed.contains(&identity(&entry)), "the VMM holds {text}");
        seen.insert(identity(&entry));
    }
    assert!(seen.contains(&allowed[0]), "its disk is open, or this looked at the wrong process");
    let environment = std::fs::read(of(pid, "environ")).unwrap();
    assert_eq!(String::from_utf8_lossy(&environment), "MALLOC_ARENA_MAX=1\0");
}

/// Nobody else can speak to it: not even with the name of the socket.
fn its_sockets_are_its_own(dir: &Path) {
    let connect = |uid: u32, path: PathBuf| {
        let as_that_user = move || {
            // SAFETY: a system call on integers, which acts on this thread alone.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
            assert_eq!(changed, 0);
            UnixStream::connect(path).map(drop).map_err(|error| error.kind())
        };
        std::thread::spawn(as_that_user).join().unwrap()
    };
    for socket in ["api.sock", "vsock.sock"] {
        let path = dir.join(socket);
        let node = path.metadata().unwrap();
        assert!(node.file_type().is_socket() && node.uid() == OWNER.uid, "{socket}");
        assert_eq!(node.mode() & 0o077, 0, "{socket}: {:o}", node.mode());
        connect(OWNER.uid, path.clone()).unwrap();
        let refused = connect(OWNER.uid + 7, path.clone()).unwrap_err();
        assert_eq!(refused, std::io::ErrorKind::PermissionDenied, "{socket}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn the_vmm_is_nobody_and_sees_its_own_files_only() {
    let harness = FirecrackerHarness::new();
    // A descriptor without close-on-exec, as a library might leave one.
    let leaked = std::fs::File::open("/etc/passwd").unwrap();
    // SAFETY: a system call on an open descriptor; it only makes it inheritable.
    unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0) };
    let spec = harness.spec().await;
    let (dir, disk) = (spec.dir.clone(), identity(&spec.root.file));
    let bytes = spec.root.file.metadata().unwrap().len();
    let allowed = [disk, identity(&spec.kernel), identity(&spec.initramfs)];
    let vm = harness.firecracker().await.boot(spec).await.unwrap();
    harness.booted();
    let pid = vm.record().pid;

    every_thread_is_nobody(pid);
    it_is_alone(pid);
    it_is_bounded(&harness, &*vm, bytes);
    let devices = ["kvm", "null", "urandom", "zero"];
    it_sees_its_own_files(pid, dir.as_ref(), &["kernel", "initramfs"], &devices);
    it_holds_only(pid, &allowed);
    its_sockets_are_its_own(dir.as_ref());
    let interfaces = std::fs::read_to_string(of(pid, "net/dev")).unwrap();
    assert_eq!(interfaces.lines().skip(2).count(), 1, "only lo:\n{interfaces}");
    drop(leaked);
    vm.kill().await.unwrap();
}

/// The same of a clone with a network; beside its own descriptors and the device of its TAP it sees
/// less, and its template cannot be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn so_is_that_of_a_clone_with_a_network() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    let network = Network::new();
    let mut spec = harness.spec().await;
    spec.nic = Some(network.tap("first"));
    let golden = Golden::of(&harness, &engine, spec).await;
    let mut machine = golden.machine(&harness, &engine).await;
    machine.nic = Some(network.tap("second"));
    let (dir, disk) = (machine.dir.clone(), identity(&machine.root.file));
    let bytes = machine.root.file.metadata().unwrap().len();
    let vm = golden.restore(&harness, &engine, machine).await;
    let pid = vm.record().pid;

    every_thread_is_nobody(pid);
    it_is_alone(pid);
    it_is_bounded(&harness, &*vm, bytes);
    let devices = ["kvm", "net", "null", "urandom", "zero"];
    it_sees_its_own_files(pid, dir.as_ref(), &["fd"], &devices);
    // In there it is a magic link that leads to the process itself, and to nobody else.
    assert_eq!(names(of(pid, "root/fd")), names(of(pid, "fd")));
    it_holds_only(pid, &[disk]);
    its_sockets_are_its_own(dir.as_ref());
    let mut templates = 0;
    for entry in std::fs::read_dir(of(pid, "fd")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(target) = std::fs::read_link(&path) else { continue };
        if target.to_string_lossy().contains("bhatti-memory") {
            let template = std::fs::File::open(&path).unwrap();
            // SAFETY: a system call on an open descriptor.
            let seals = unsafe { libc::fcntl(template.as_raw_fd(), libc::F_GET_SEALS) };
            assert_ne!(seals & libc::F_SEAL_WRITE, 0, "{seals:x}");
            templates += 1;
        }
    }
    assert!(templates > 0, "or this looked at the wrong process");
    vm.kill().await.unwrap();
}
