//! Machines that sleep and wake, and their copies.

use std::sync::Arc;

use bhatti_engine::conformance::Harness;
use bhatti_engine::{
    Below, BootSpec, Carrier, Engine, EngineError, RestoreSpec, RootDisk, Save, Vm,
};
use bhatti_engine_qemu::QemuEngine;
use bhatti_guest_client::{ExecEvent, ExecSpec, Guest};
use bhatti_link::Mode;
use camino::Utf8PathBuf;

use crate::harness::{OWNER, QemuHarness};

/// Talks to the agent of a machine.
async fn guest(vm: &dyn Vm, mode: Mode) -> Guest {
    let Carrier::Single(stream) = vm.open_link().await.unwrap();
    let connect = Guest::connect(stream, mode);
    let (guest, driver) =
        tokio::time::timeout(std::time::Duration::from_secs(90), connect).await.unwrap().unwrap();
    tokio::spawn(driver);
    guest.hello("test").await.unwrap();
    guest
}

/// What a script prints; it must succeed.
async fn run(guest: &Guest, script: &str) -> String {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let mut running = guest.exec(ExecSpec { argv, ..ExecSpec::default() }).await.unwrap();
    let mut output = Vec::new();
    while let Some(event) = running.next().await.unwrap() {
        match event {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => output.extend_from_slice(&bytes),
            ExecEvent::Exit { code, .. } => {
                let output = String::from_utf8_lossy(&output);
                assert_eq!(code, 0, "{script}: {output}");
            }
        }
    }
    String::from_utf8(output).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let spec = harness.spec().await;
    let root = spec.root.clone();
    let vm = engine.boot(spec).await.unwrap();
    let g = guest(&*vm, Mode::FirstBoot).await;
    eprintln!(
        "{}",
        run(&g, "id; df /dev/shm /tmp; echo hello > /dev/shm/x; cat /proc/uptime").await
    );
    vm.pause().await.unwrap();
    let into = harness.path().join("snap");
    std::fs::create_dir(&into).unwrap();
    let t = std::time::Instant::now();
    let saved = vm.save(Save { into: into.clone(), since: None, base: None }).await.unwrap();
    eprintln!("{saved:?} {:?}", t.elapsed());
    let sealed = harness.path().join("layer");
    let disk = vm.seal_disk(&root, &sealed).await.unwrap();
    eprintln!("{disk:?}");
    vm.resume().await.unwrap();
    eprintln!("{}", run(&g, "cat /dev/shm/x; cat /proc/uptime; sync").await);
    let log = std::process::Command::new("ls")
        .arg("-la")
        .arg(&into)
        .arg(vm.record().dir)
        .output()
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&log.stdout));
    eprintln!("{}", std::fs::read_to_string(into.join("manifest.json")).unwrap());
    let mut again = harness.spec().await;
    std::fs::remove_file(&again.root.file).unwrap();
    again.root = engine
        .create_root(
            Below { base: disk.base.clone().unwrap(), layers: disk.layers.clone() },
            &again.dir,
            Some(bhatti_types::Mib(4096)),
            OWNER,
        )
        .await
        .unwrap();
    let t = std::time::Instant::now();
    let clone = engine
        .restore(RestoreSpec { machine: again, snapshot: into.clone(), base: Some(into.clone()) })
        .await
        .unwrap();
    eprintln!("restored {:?}", t.elapsed());
    clone.resume().await.unwrap();
    let g2 = guest(&*clone, Mode::Reconnect).await;
    eprintln!(
        "{:?} {}",
        t.elapsed(),
        run(&g2, "cat /dev/shm/x; cat /proc/uptime; cat /sys/block/vda/size").await
    );
    clone.kill().await.unwrap();
    vm.kill().await.unwrap();
}
