//! The disk that an engine without layers has left: a whole file, of root's, which is to be read
//! and not written.

use std::os::unix::fs::PermissionsExt;

use bhatti_engine::conformance::Harness;
use bhatti_engine::{Below, DiskFormat, Engine, RestoreSpec, Save};
use camino::Utf8Path;

use crate::harness::{OWNER, QemuHarness, ask};

/// It boots, sleeps and wakes over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_file_is_stood_on() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let mut spec = harness.spec().await;
    let image = spec.root.base.clone().unwrap();
    std::fs::remove_file(&spec.root.file).unwrap();
    let whole = harness.shelf().join("3.qcow2");
    let copy = ["--sparse=always", "--reflink=auto", image.as_str(), whole.as_str()];
    assert!(std::process::Command::new("cp").args(copy).status().unwrap().success());
    // What the other engine's guest has written.
    let place = "write /proc/version was-there";
    let debugfs = ["-w", "-R", place, whole.as_str()];
    assert!(std::process::Command::new("debugfs").args(debugfs).status().unwrap().success());
    std::fs::set_permissions(&whole, PermissionsExt::from_mode(0o400)).unwrap();
    let stamp = |file: &Utf8Path| file.metadata().unwrap().modified().unwrap();
    let before = stamp(&whole);

    // The older layer is not needed, and its name says nothing.
    let layers = vec![harness.shelf().join("2.qcow2"), whole.clone()];
    let bytes = Some(whole.metadata().unwrap().len());
    let below = Below { base: image, layers, format: DiskFormat::Raw, bytes };
    spec.root = engine.create_root(below, &spec.dir, None, OWNER).await.unwrap();
    let disk = spec.root.clone();
    assert_eq!((disk.base.as_ref(), disk.layers.len()), (Some(&whole), 0));
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    let marks =
        "test -e /was-there && echo later > /workspace/later && sync && cat /workspace/later";
    assert_eq!(ask(&*vm, marks).await, "later");

    vm.pause().await.unwrap();
    let snapshot = harness.shelf();
    vm.save(Save { into: snapshot.clone(), since: None, base: None }).await.unwrap();
    let disk = vm.seal_disk(&disk, &harness.shelf().join("layer")).await.unwrap();
    vm.kill().await.unwrap();
    let mut machine = harness.spec().await;
    std::fs::remove_file(&machine.root.file).unwrap();
    let (layers, format, bytes) = (disk.layers, disk.format, disk.bytes);
    let below = Below { base: disk.base.unwrap(), layers, format, bytes };
    machine.root = engine.create_root(below, &machine.dir, None, OWNER).await.unwrap();
    let woken = engine.restore(RestoreSpec { machine, snapshot, base: None }).await.unwrap();
    harness.booted();
    woken.resume().await.unwrap();
    assert_eq!(ask(&*woken, "test -e /was-there && cat /workspace/later").await, "later");
    woken.kill().await.unwrap();
    assert_eq!(stamp(&whole), before, "it was written");
}
