//! What another engine, or another host, has left.

use bhatti_engine::EngineName;
use bhatti_engine_sim::{Call, Fault};
use bhatti_store::Change;

use super::*;
use crate::WakeError;

/// A daemon with one sandbox of alice's, `dev`, that has slept once, is cold, and has been saved as
/// `base`.
async fn with_cold_dev(house: &House) -> (Daemon, UserRow) {
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
    daemon.write(&alice, "dev", "files,").await;
    daemon.sandboxes.checkpoint(&alice, "dev", "base".parse().unwrap()).await.unwrap();
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    (daemon, alice)
}

/// Memory is not given up for an engine that cannot use it: the other one still can.
#[tokio::test]
async fn foreign_memory_is_kept_until_somebody_insists() {
    let mut house = House::new();
    let (daemon, alice) = with_cold_dev(&house).await;
    let cold = daemon.row(&alice, "dev").await;
    daemon.stop().await;

    house.fingerprint = "another engine";
    house.host.set_disk_format(DiskFormat::Raw);
    let daemon = house.daemon().await;
    let before = house.host.started();
    let error = daemon.sandboxes.lease(&alice, "dev").await.map(drop).unwrap_err();
    let ServiceError::Wake(cause) = &error else { panic!("{error:?}") };
    assert!(cause.is_foreign() && matches!(cause, WakeError::NotAsItWas { .. }), "{cause:?}");
    let text = cause.public();
    assert!(text.contains("was saved by \"sim\"") && text.contains("--force"), "{text}");
    assert_eq!(daemon.row(&alice, "dev").await, cold);
    assert_eq!(house.host.started(), before, "nothing was tried");
    daemon.stop().await;

    // Back again.
    house.fingerprint = "sim";
    house.host.set_disk_format(DiskFormat::Qcow2);
    let daemon = house.daemon().await;
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(daemon.row(&alice, "dev").await.reason, "woken");
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    daemon.stop().await;

    house.fingerprint = "another engine";
    house.host.set_disk_format(DiskFormat::Raw);
    let daemon = house.daemon().await;
    let row = daemon.sandboxes.start(&alice, "dev", true).await.unwrap();
    assert!(row.reason.contains("memory and running processes are lost"), "{}", row.reason);
    assert_eq!(Daemon::disk(&row).matches("files,").count(), 1);
    // From now on it is this engine's.
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(daemon.row(&alice, "dev").await.reason, "woken");
}

/// Also if that is found out by trying only: it may be another kernel that could, and is not here now.
#[tokio::test]
async fn memory_that_is_refused_is_kept_and_tried_again() {
    let house = House::new();
    let (daemon, alice) = with_cold_dev(&house).await;
    let cold = daemon.row(&alice, "dev").await;
    house.host.inject(Call::Restore, Fault::Refuse("another kernel".to_owned()));
    let error = daemon.sandboxes.lease(&alice, "dev").await.map(drop).unwrap_err();
    let ServiceError::Wake(cause) = &error else { panic!("{error:?}") };
    assert!(cause.is_foreign() && cause.public().contains("another kernel"), "{cause:?}");
    assert_eq!(daemon.row(&alice, "dev").await, cold);
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(daemon.row(&alice, "dev").await.reason, "woken");
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
}

#[tokio::test]
async fn a_foreign_snapshot_is_refused_and_leaves_nothing() {
    let mut house = House::new();
    let (daemon, alice) = with_cold_dev(&house).await;
    daemon.stop().await;
    house.fingerprint = "another engine";
    house.host.set_disk_format(DiskFormat::Raw);
    let daemon = house.daemon().await;
    let before = house.names("layers");
    let resumed = daemon.sandboxes.resume_snapshot(&alice, "base", None, None).await;
    match resumed {
        Err(ServiceError::Create(cause)) => assert!(cause.is_foreign(), "{cause:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(house.names("layers"), before);
    assert_eq!(daemon.sandboxes.list(&alice).await.unwrap().len(), 1);
    assert_eq!(daemon.sandboxes.snapshots(&alice).await.unwrap().len(), 1, "it is kept");
    daemon.stop().await;

    house.fingerprint = "sim";
    house.host.set_disk_format(DiskFormat::Qcow2);
    let daemon = house.daemon().await;
    daemon.sandboxes.resume_snapshot(&alice, "base", None, None).await.unwrap();
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
}

/// The disk of a stopped sandbox goes from engine to engine, and everything works there.
#[tokio::test]
async fn a_stopped_disk_moves_both_ways() {
    let house = House::new();
    let (mut daemon, alice) = with_cold_dev(&house).await;
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    for format in [DiskFormat::Raw, DiskFormat::Qcow2, DiskFormat::Raw] {
        house.host.power_off(&house.machine());
        daemon.comes_to(&alice, "dev", Phase::Stopped).await;
        daemon.stop().await;
        house.host.set_disk_format(format);
        daemon = house.daemon().await;
        let before = Daemon::disk(&daemon.row(&alice, "dev").await);
        daemon.sandboxes.lease(&alice, "dev").await.unwrap();
        let row = daemon.row(&alice, "dev").await;
        let text = |disk: &str| disk.replace("sim disk\n", "");
        assert_eq!(text(&Daemon::disk(&row)), text(&before), "{format:?}");
        daemon.write(&alice, "dev", "more,").await;
        for _ in 0..2 {
            daemon.sandboxes.stop(&alice, "dev").await.unwrap();
            daemon.sandboxes.lease(&alice, "dev").await.unwrap();
            assert_eq!(daemon.row(&alice, "dev").await.reason, "woken");
        }
    }
    let disk = Daemon::disk(&daemon.row(&alice, "dev").await);
    assert_eq!((disk.matches("files,").count(), disk.matches("more,").count()), (1, 3), "{disk}");
    daemon.sandboxes.delete_snapshot(&alice, "base").await.unwrap();
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    house.assert_nothing_left(&daemon).await;
}

/// A machine that another engine started runs on; nobody speaks to it, and it can be destroyed.
#[tokio::test]
async fn a_foreign_machine_is_left_alone() {
    let house = House::new();
    let (daemon, alice) = with_cold_dev(&house).await;
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let row = daemon.row(&alice, "dev").await;
    let became = async |daemon: &Daemon, engine: EngineName| {
        let mut vm = row.vm.clone().unwrap();
        vm["engine"] = serde_json::to_value(engine).unwrap();
        let (id, change) = (row.id.clone(), Change { vm: Some(Some(vm)), ..Change::default() });
        let hot = &[Phase::Hot, Phase::Unknown];
        let set = move |store: &mut Store| store.set_phase(&id, hot, Phase::Hot, "test", &change);
        daemon.db.call(set).await.unwrap();
    };
    became(&daemon, EngineName::Firecracker).await;
    daemon.stop().await;
    let daemon = house.daemon().await;
    let found = daemon.row(&alice, "dev").await;
    assert_eq!(found.phase, Phase::Unknown);
    assert!(found.reason.contains("\"engine: firecracker\""), "{}", found.reason);
    assert_eq!(house.host.running().len(), 1, "it was not swept");
    daemon.sandboxes.lease(&alice, "dev").await.map(drop).unwrap_err();
    // Back again.
    became(&daemon, EngineName::Sim).await;
    daemon.stop().await;
    let daemon = house.daemon().await;
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    became(&daemon, EngineName::Firecracker).await;
    daemon.stop().await;
    let daemon = house.daemon().await;
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    assert!(house.host.running().is_empty());
}
