//! Named snapshots: of what runs and what sleeps, and what comes of them.

use bhatti_engine_sim::{Call, Fault};

use super::*;

fn name(text: &str) -> bhatti_types::Name {
    text.parse().unwrap()
}

async fn with_dev(house: &House) -> (Daemon, UserRow) {
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 9).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
    daemon.write(&alice, "dev", "files,").await;
    (daemon, alice)
}

/// Another sandbox than its source, as that was.
async fn assert_copy(house: &House, daemon: &Daemon, alice: &UserRow, row: &SandboxRow) {
    let row = daemon.row(alice, row.name.as_str()).await;
    assert_eq!(row.phase, Phase::Hot);
    assert_eq!(house.host.memory(&row.engine_id).as_deref(), Some(&b"work"[..]));
    let disk = Daemon::disk(&row);
    assert!(disk.contains("files,") && !disk.contains("later,"), "{disk}");
    let told = house.agents.configured.lock().unwrap().clone();
    assert!(told.iter().any(|told| told.hostname == row.hostname
        && told.network.as_ref().unwrap().address == row.ip.to_string()));
}

#[tokio::test]
async fn of_what_is_hot_warm_or_cold() {
    for (phase, house) in [
        (Phase::Hot, House::with_goldens(2)),
        (Phase::Warm, House::sleepy(Some(5), None)),
        (Phase::Cold, House::with_goldens(2)),
    ] {
        let (daemon, alice) = with_dev(&house).await;
        if phase == Phase::Cold {
            daemon.sandboxes.stop(&alice, "dev").await.unwrap();
        }
        daemon.comes_to(&alice, "dev", phase).await;
        let started = house.host.started();
        let made = daemon.sandboxes.checkpoint(&alice, "dev", name("base")).await.unwrap();
        assert!(made.bytes > 0, "{phase}");
        assert_eq!(daemon.phase(&alice, "dev").await, phase, "none is woken");
        assert_eq!(house.host.started(), started, "{phase}");
        if phase != Phase::Cold {
            assert_eq!(house.host.paused(&house.machine()), Some(phase == Phase::Warm), "{phase}");
        }
        // What happens to the source afterwards is not in it.
        daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
        house.host.set_memory(&house.machine(), b"other".to_vec());
        daemon.write(&alice, "dev", "later,").await;
        let one = daemon.sandboxes.resume_snapshot(&alice, "base", None, None).await.unwrap();
        assert_eq!(one.reason, "resumed from snapshot base", "{phase}");
        assert!(one.name.as_str().starts_with("base-"), "{}", one.name);
        assert_copy(&house, &daemon, &alice, &one).await;
        // And the source goes on, sleeps and wakes.
        daemon.sandboxes.stop(&alice, "dev").await.unwrap();
        daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
        let disk = Daemon::disk(&daemon.row(&alice, "dev").await);
        assert!(disk.contains("files,") && disk.contains("later,"), "{disk}");
    }
}

#[tokio::test]
async fn a_snapshot_outlives_its_source_and_its_clones_outlive_it() {
    let house = House::with_goldens(2);
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.checkpoint(&alice, "dev", name("base")).await.unwrap();
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    let resume = |to: &str| daemon.sandboxes.resume_snapshot(&alice, "base", Some(name(to)), None);
    let (one, two) = tokio::join!(resume("one"), resume("two"));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!((one.ip, &one.engine_id), (two.ip, &two.engine_id));
    daemon.sandboxes.delete_snapshot(&alice, "base").await.unwrap();
    assert!(house.names("snapshots").is_empty());
    for row in [one, two] {
        assert_copy(&house, &daemon, &alice, &row).await;
        daemon.sandboxes.stop(&alice, row.name.as_str()).await.unwrap();
        daemon.sandboxes.start(&alice, row.name.as_str(), false).await.unwrap();
        assert_copy(&house, &daemon, &alice, &row).await;
    }
    let gone = daemon.sandboxes.resume_snapshot(&alice, "base", None, None).await;
    assert!(matches!(gone, Err(ServiceError::NoSnapshot(_))), "{gone:?}");
}

/// A snapshot of a clone, and of that one's clone: the layers add up.
#[tokio::test]
async fn a_snapshot_of_a_clone_of_a_snapshot() {
    let house = House::with_goldens(2);
    let (daemon, alice) = with_dev(&house).await;
    let mut source = name("dev");
    for round in ["one", "two", "three"] {
        daemon.sandboxes.checkpoint(&alice, source.as_str(), name(round)).await.unwrap();
        daemon.sandboxes.destroy(&alice, source.as_str()).await.unwrap();
        let row = daemon.sandboxes.resume_snapshot(&alice, round, None, None).await.unwrap();
        assert_copy(&house, &daemon, &alice, &row).await;
        daemon.write(&alice, row.name.as_str(), round).await;
        source = row.name;
    }
    assert!(Daemon::disk(&daemon.row(&alice, source.as_str()).await).contains("onesim disk\ntwo"));
    daemon.sandboxes.stop(&alice, source.as_str()).await.unwrap();
    daemon.sandboxes.start(&alice, source.as_str(), false).await.unwrap();
}

#[tokio::test]
async fn names_quotas_and_what_does_not_run() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    let bob = daemon.user("bob", 5).await;
    let save = |to: &str| daemon.sandboxes.checkpoint(&alice, "dev", name(to));
    save("base").await.unwrap();
    let taken = save("base").await;
    assert!(matches!(taken, Err(ServiceError::SnapshotExists(_))), "{taken:?}");
    let twin = daemon.sandboxes.resume_snapshot(&alice, "base", Some(name("dev")), None).await;
    assert!(matches!(twin, Err(ServiceError::NameTaken(_))), "{twin:?}");
    let others = daemon.sandboxes.resume_snapshot(&bob, "base", None, None).await;
    assert!(matches!(others, Err(ServiceError::NoSnapshot(_))), "{others:?}");
    let max = daemon.known(&alice).await.max_snapshots;
    for i in 1..max {
        save(&format!("s{i}")).await.unwrap();
    }
    let full = save("more").await;
    assert!(matches!(full, Err(ServiceError::SnapshotQuota { used, .. }) if used == max));
    daemon.sandboxes.delete_snapshot(&alice, "base").await.unwrap();
    daemon.sandboxes.power_off_all(LONG).await;
    let off = save("more").await;
    assert!(matches!(off, Err(ServiceError::NotRunning(_))), "{off:?}");
    assert_eq!(daemon.sandboxes.snapshots(&alice).await.unwrap().len(), max as usize - 1);
}

/// Each step may fail: the sandbox goes on as it was, and the name is free again.
#[tokio::test]
async fn a_failed_checkpoint_changes_nothing() {
    for call in [Call::Pause, Call::Save, Call::SealDisk] {
        let house = House::new();
        let (daemon, alice) = with_dev(&house).await;
        house.host.inject(call, Fault::Fail("no luck".to_owned()));
        daemon.sandboxes.checkpoint(&alice, "dev", name("base")).await.unwrap_err();
        assert_eq!(daemon.phase(&alice, "dev").await, Phase::Hot, "{call:?}");
        assert_eq!(house.host.paused(&house.machine()), Some(false), "{call:?}");
        assert!(house.names("snapshots").is_empty(), "{call:?}");
        daemon.sandboxes.checkpoint(&alice, "dev", name("base")).await.unwrap();
        let row = daemon.sandboxes.resume_snapshot(&alice, "base", None, None).await.unwrap();
        assert_copy(&house, &daemon, &alice, &row).await;
    }
}

/// Its disk has been sealed, and nobody heard of it: whatever is written afterwards counts.
#[tokio::test]
async fn a_seal_nobody_heard_of_loses_nothing() {
    for then in ["stop", "die", "daemon"] {
        let house = House::new();
        let (mut daemon, mut alice) = with_dev(&house).await;
        daemon.write(&alice, "dev", "before,").await;
        house.host.inject(Call::SealDisk, Fault::Unheard("no answer".to_owned()));
        daemon.sandboxes.checkpoint(&alice, "dev", name("base")).await.unwrap_err();
        assert_eq!(house.host.paused(&house.machine()), Some(false), "{then}");
        daemon.write(&alice, "dev", "after,").await;
        match then {
            "stop" => drop(daemon.sandboxes.stop(&alice, "dev").await.unwrap()),
            "die" => {
                house.host.crash(&house.machine(), "oom");
                daemon.comes_to(&alice, "dev", Phase::Stopped).await;
            }
            _ => {
                daemon.die().await;
                house.host.reboot();
                daemon = house.daemon().await;
                alice = daemon.known(&alice).await;
            }
        }
        daemon.sandboxes.lease(&alice, "dev").await.unwrap();
        let disk = Daemon::disk(&daemon.row(&alice, "dev").await);
        assert!(disk.contains("before,") && disk.contains("after,"), "{then}: {disk}");
    }
}

/// Until it is known what it writes to, it stands: nothing can be lost meanwhile.
#[tokio::test]
async fn a_machine_whose_disk_is_not_known_stands() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    house.host.inject(Call::SealDisk, Fault::Unheard("no answer".to_owned()));
    house.host.inject(Call::DiskTop, Fault::Fail("no answer".to_owned()));
    daemon.sandboxes.checkpoint(&alice, "dev", name("base")).await.unwrap_err();
    assert_eq!(house.host.paused(&house.machine()), Some(true));
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.paused(&house.machine()), Some(false));
}

/// Whoever began to continue from it gets it whole.
#[tokio::test]
async fn deleting_waits_for_a_resume_under_way() {
    let house = House::with_goldens(2);
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.checkpoint(&alice, "dev", name("base")).await.unwrap();
    let roots = || house.host.calls().into_iter().filter(|call| *call == Call::CreateRoot).count();
    let before = roots();
    house.host.inject(Call::CreateRoot, Fault::Slow(Duration::from_millis(50)));
    let resume = daemon.sandboxes.resume_snapshot(&alice, "base", None, None);
    let delete = async {
        eventually("it is being linked", async || roots() > before).await;
        daemon.sandboxes.delete_snapshot(&alice, "base").await
    };
    let (resumed, deleted) = tokio::join!(resume, delete);
    deleted.unwrap();
    assert_copy(&house, &daemon, &alice, &resumed.unwrap()).await;
    assert!(house.names("snapshots").is_empty());
}
