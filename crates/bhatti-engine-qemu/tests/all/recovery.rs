//! A daemon that starts again meets what it may: another configuration, a VMM that does not
//! co-operate, names that are taken. Nothing of that hides a living machine from it.

use bhatti_engine::conformance::{Harness, patience};
use bhatti_engine::{Engine, Exit, Vm, VmRecord};
use nix::sys::signal::{Signal, kill};

use crate::harness::{OWNER, QemuHarness};

fn signal(record: &VmRecord, signal: Signal) {
    kill(nix::unistd::Pid::from_raw(record.pid), signal).unwrap();
}

/// Boots a machine and forgets it, as a daemon that is killed does.
async fn forgotten(harness: &QemuHarness) -> VmRecord {
    let vm = harness.qemu().await.boot(harness.spec().await).await.unwrap();
    harness.booted();
    harness.ping(vm.open_link().await.unwrap()).await.unwrap();
    vm.record()
}

async fn adopted(harness: &QemuHarness, record: &VmRecord) -> std::sync::Arc<dyn Vm> {
    harness.qemu().await.adopt(record).await.unwrap().expect("it lives")
}

/// It can be ended, and nothing of it stays.
async fn can_be_ended(harness: &QemuHarness, vm: &dyn Vm) {
    vm.kill().await.unwrap();
    assert_eq!(vm.exited().await, Exit::Killed);
    let left = harness.traces(&vm.record()).await;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_told_another_group_still_finds_the_machine() {
    let harness = QemuHarness::new();
    let record = forgotten(&harness).await;
    let moved = Moved(format!("{}-moved", harness.cgroup));
    let engine = harness.qemu_configured(moved.0.clone()).await;
    let vm = engine.adopt(&record).await.unwrap().expect("it lives");
    assert_eq!(vm.record(), record, "and stays in its group");
    harness.ping(vm.open_link().await.unwrap()).await.unwrap();
    can_be_ended(&harness, &*vm).await;

    let record = forgotten(&harness).await;
    engine.end(&record).await.unwrap();
    assert!(harness.traces(&record).await.is_empty());
}

/// Removes the second daemon's group.
struct Moved(String);

impl Drop for Moved {
    fn drop(&mut self) {
        for hierarchy in crate::harness::HIERARCHIES {
            let group = std::path::Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.0);
            std::fs::remove_dir(group).ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_without_its_control_socket_is_adopted() {
    let harness = QemuHarness::new();
    let record = forgotten(&harness).await;
    std::fs::remove_file(record.dir.join("qmp.sock")).unwrap();
    let vm = adopted(&harness, &record).await;
    harness.ping(vm.open_link().await.unwrap()).await.unwrap();
    assert!(vm.console().await.len() <= 64 * 1024, "what is on disk, if anything");
    can_be_ended(&harness, &*vm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_lies_on_its_control_socket_is_adopted() {
    use tokio::io::AsyncWriteExt;
    let harness = QemuHarness::new();
    let record = forgotten(&harness).await;
    let socket = record.dir.join("qmp.sock");
    std::fs::remove_file(&socket).unwrap();
    let liar = listen_as_the_vmm(&socket);
    let seen = tokio::net::UnixStream::connect(&socket).await.unwrap().peer_cred().unwrap();
    assert_eq!(seen.uid(), OWNER.uid, "or it would be refused before it lies");
    let lies = tokio::spawn(async move {
        while let Ok((mut peer, _)) = liar.accept().await {
            peer.write_all(&vec![b'{'; 1 << 20]).await.ok();
        }
    });
    let vm = adopted(&harness, &record).await;
    signal(&record, Signal::SIGKILL);
    let exit = tokio::time::timeout(patience(), vm.exited()).await;
    assert!(matches!(exit.unwrap(), Exit::Died { .. }), "its end is seen without control");
    lies.abort();
    assert!(harness.traces(&record).await.is_empty());
}

/// A listener that a client takes for the VMM's: the kernel keeps who called `listen`.
fn listen_as_the_vmm(socket: &camino::Utf8Path) -> tokio::net::UnixListener {
    let listen = || {
        // SAFETY: a system call on integers. The raw call changes this thread alone, which ends.
        unsafe { libc::syscall(libc::SYS_setresuid, -1, OWNER.uid, -1) };
        std::os::unix::net::UnixListener::bind(socket).unwrap()
    };
    let listener = std::thread::scope(|scope| scope.spawn(listen).join().unwrap());
    listener.set_nonblocking(true).unwrap();
    tokio::net::UnixListener::from_std(listener).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_vmm_is_adopted_and_ended() {
    let harness = QemuHarness::new();
    let record = forgotten(&harness).await;
    signal(&record, Signal::SIGSTOP);
    let vm = adopted(&harness, &record).await;
    can_be_ended(&harness, &*vm).await;
}

/// The link and the control come back when the VMM does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_was_silent_for_a_while_is_whole_again() {
    let harness = QemuHarness::new();
    let record = forgotten(&harness).await;
    std::fs::remove_file(record.dir.join("console.log")).ok();
    signal(&record, Signal::SIGSTOP);
    let vm = adopted(&harness, &record).await;
    signal(&record, Signal::SIGCONT);
    harness.ping(vm.open_link().await.unwrap()).await.unwrap();
    let deadline = tokio::time::Instant::now() + patience();
    // Only the control socket can give what the guest printed.
    while vm.console().await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "control did not come back");
        tokio::task::yield_now().await;
    }
    can_be_ended(&harness, &*vm).await;
}

/// Without its directory it cannot be controlled, but it is not gone, and it can be ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_machine_is_never_said_to_be_gone() {
    let harness = QemuHarness::new();
    let record = forgotten(&harness).await;
    let engine = harness.qemu().await;
    std::fs::rename(&record.dir, harness.path().join("elsewhere")).unwrap();
    assert!(engine.adopt(&record).await.is_err());
    let keep = [record.id.clone()];
    assert!(engine.sweep(&keep).await.unwrap().is_empty(), "an unknown machine is not swept");
    engine.end(&record).await.unwrap();
    assert!(harness.traces(&record).await.is_empty());
    assert!(engine.adopt(&record).await.unwrap().is_none());
}

/// A sweep knows no directories, so sockets stay; the next boot must not mind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swept_machine_boots_again_in_its_directory() {
    let harness = QemuHarness::new();
    let spec = harness.spec().await;
    let again = bhatti_engine::BootSpec {
        id: spec.id.clone(),
        dir: spec.dir.clone(),
        kernel: spec.kernel.clone(),
        initramfs: spec.initramfs.clone(),
        root: spec.root.clone(),
        nic: None,
        ..spec
    };
    let engine = harness.qemu().await;
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    let record = vm.record();
    drop(vm);
    signal(&record, Signal::SIGKILL);
    engine.sweep(&[]).await.unwrap();
    assert!(record.dir.join("qmp.sock").exists(), "or this tests nothing");

    let vm = engine.boot(again).await.unwrap();
    harness.booted();
    harness.ping(vm.open_link().await.unwrap()).await.unwrap();
    can_be_ended(&harness, &*vm).await;
}
