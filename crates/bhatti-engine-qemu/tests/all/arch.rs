//! A machine is of the architecture that was asked for, all the way up to what runs in it.

use bhatti_engine::conformance::Harness;
use bhatti_engine::{Accel, Engine};
use bhatti_engine_qemu::{AccelChoice, Arch, QemuConfig, QemuEngine};

use crate::harness::{QemuHarness, arch, ask};
use crate::snapshot::Golden;

fn uname() -> &'static str {
    match arch() {
        Arch::X86_64 => "x86_64",
        Arch::Aarch64 => "aarch64",
    }
}

/// The kernel, a program of the image and the agent agree; so does a clone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guest_is_what_was_asked_for() {
    let harness = QemuHarness::new();
    let vm = harness.qemu().await.boot(harness.spec().await).await.unwrap();
    harness.booted();
    assert_eq!(ask(&*vm, "uname -m").await, uname());
    // The machine field of an ELF header.
    let elf = ask(&*vm, "od -An -t x1 -j 18 -N 2 /bin/sh | tr -d ' '").await;
    assert_eq!(elf, if arch() == Arch::X86_64 { "3e00" } else { "b700" });
    vm.kill().await.unwrap();

    let engine = harness.qemu().await;
    let golden = Golden::new(&harness, &engine).await;
    let machine = golden.machine(&harness, &engine).await;
    let clone = golden.restore(&engine, machine).await;
    clone.resume().await.unwrap();
    assert_eq!(ask(&*clone, "uname -m").await, uname());
    clone.kill().await.unwrap();
}

/// Nothing but emulation runs another architecture, and its snapshots are not this one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_says_which_machines_it_has() {
    let harness = QemuHarness::new();
    let config =
        QemuConfig { arch: arch(), cgroup: harness.cgroup.clone(), ..QemuConfig::default() };
    let auto = QemuEngine::start(QemuConfig { accel: AccelChoice::Auto, ..config }).await.unwrap();
    let machine = if arch() == Arch::X86_64 { " microvm " } else { " virt " };
    assert!(auto.fingerprint().contains(machine), "{}", auto.fingerprint());
    if arch() != Arch::HOST {
        assert_eq!(auto.info().accel, Accel::Tcg);
        assert!(auto.info().why.contains("not this host's"), "{}", auto.info().why);
    }
}
