//! How machines end by themselves, with a guest that ends at once: a kernel without a usable
//! initramfs panics, which resets the machine.

use bhatti_engine::conformance::{Harness, patience};
use bhatti_engine::{Engine, Exit};

use crate::harness::QemuHarness;

/// A spec whose guest panics as soon as its kernel wants to run `/init`.
async fn doomed(harness: &QemuHarness) -> bhatti_engine::BootSpec {
    use std::os::unix::fs::PermissionsExt;
    let mut spec = harness.spec().await;
    spec.initramfs = harness.path().join("empty.cpio");
    std::fs::write(&spec.initramfs, vec![0u8; 512]).unwrap();
    std::fs::set_permissions(&spec.initramfs, PermissionsExt::from_mode(0o644)).unwrap();
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_the_guests_end_and_its_text_is_kept() {
    let harness = QemuHarness::new();
    let vm = harness.qemu().await.boot(doomed(&harness).await).await.unwrap();
    harness.booted();
    let exit = tokio::time::timeout(patience(), vm.exited()).await;
    let said = String::from_utf8_lossy(&vm.console().await).into_owned();
    assert_eq!(exit.ok(), Some(Exit::Guest), "the guest said: {said}");
    let console = String::from_utf8_lossy(&vm.console().await).into_owned();
    assert!(console.contains("Kernel panic"), "{console}");
    let saved = std::fs::read_to_string(vm.record().dir.join("console.log")).unwrap();
    assert_eq!(saved, console);
    assert!(harness.traces(&vm.record()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_nobody_watched_is_told_to_the_next_daemon() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let vm = engine.boot(doomed(&harness).await).await.unwrap();
    harness.booted();
    let record = vm.record();
    drop((vm, engine));
    // Wait, as an outsider, until QEMU has stopped the guest: it then uses no CPU any more.
    wait_until_stopped(&record.dir).await;

    let vm = harness.qemu().await.adopt(&record).await.unwrap().expect("the VMM waits");
    let exit = tokio::time::timeout(patience(), vm.exited()).await;
    assert_eq!(exit.unwrap(), Exit::Guest);
    let console = String::from_utf8_lossy(&vm.console().await).into_owned();
    assert!(console.contains("Kernel panic"), "{console}");
}

/// Asks QEMU itself, over the control socket that no daemon holds.
async fn wait_until_stopped(dir: &camino::Utf8Path) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let wait = async {
        let socket = tokio::net::UnixStream::connect(dir.join("qmp.sock")).await.unwrap();
        let mut socket = BufReader::new(socket);
        socket.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").await.unwrap();
        socket.write_all(b"{\"execute\": \"query-status\"}\n").await.unwrap();
        let mut line = String::new();
        while !line.contains("SHUTDOWN") && !line.contains("\"status\": \"shutdown\"") {
            line.clear();
            assert!(socket.read_line(&mut line).await.unwrap() > 0, "QEMU hung up");
        }
    };
    tokio::time::timeout(patience(), wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn being_asked_to_quit_from_outside_is_not_the_guests_end() {
    let harness = QemuHarness::new();
    let vm = harness.qemu().await.boot(harness.spec().await).await.unwrap();
    harness.booted();
    // Answered by the watcher, so it has looked for an end that came before it: from the status
    // alone it could not tell whose end that was.
    vm.console().await;
    let pid = nix::unistd::Pid::from_raw(vm.record().pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let exit = tokio::time::timeout(patience(), vm.exited()).await;
    assert!(matches!(exit.unwrap(), Exit::Died { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_cannot_start_says_why() {
    let harness = QemuHarness::new();
    let spec = harness.spec().await;
    // A file our own check lets pass, marked as damaged: that is for QEMU to refuse.
    let disk = std::fs::File::options().write(true).open(&spec.root.file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &[2], 79).unwrap();
    let error = harness.qemu().await.boot(spec).await.err().unwrap();
    assert!(matches!(error, bhatti_engine::EngineError::DiedEarly { .. }), "{error}");
    assert!(error.to_string().contains("corrupt"), "{error}");
}

/// The guest's end is seen also after the VMM was too slow to answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_after_a_late_answer_is_the_guests() {
    let harness = QemuHarness::new();
    let vm = harness.qemu().await.boot(doomed(&harness).await).await.unwrap();
    harness.booted();
    let pid = nix::unistd::Pid::from_raw(vm.record().pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // Comes back when the command was given up, and with it the connection.
    vm.console().await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    let exit = tokio::time::timeout(patience(), vm.exited()).await;
    assert_eq!(exit.unwrap(), Exit::Guest);
    let console = String::from_utf8_lossy(&vm.console().await).into_owned();
    assert!(console.contains("Kernel panic"), "{console}");
}
