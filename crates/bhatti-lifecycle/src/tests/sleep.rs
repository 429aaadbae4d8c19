//! Falling asleep and waking.

use bhatti_engine_sim::{Call, Fault};

use super::*;
use crate::WakeError;

fn fail() -> Fault {
    Fault::Fail("no luck".to_owned())
}

/// A daemon with one sandbox of alice's, `dev`.
async fn with_dev(house: &House) -> (Daemon, UserRow) {
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
    (daemon, alice)
}

#[tokio::test]
async fn it_cools_in_two_steps_and_says_why() {
    let house = House::sleepy(Some(60), Some(1500));
    let (daemon, alice) = with_dev(&house).await;
    let row = daemon.comes_to(&alice, "dev", Phase::Warm).await;
    assert!(row.reason.starts_with("idle for "), "{}", row.reason);
    assert_eq!(house.host.paused(&house.machine()), Some(true));
    let row = daemon.comes_to(&alice, "dev", Phase::Cold).await;
    assert_eq!(row.reason, "nobody used it for the time set");
    eventually("its process ends", async || house.host.running().is_empty()).await;
    assert!(row.stopped_at.is_some());

    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let row = daemon.row(&alice, "dev").await;
    assert_eq!((row.phase, row.reason.as_str()), (Phase::Hot, "woken"));
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    assert_eq!(house.host.started(), 2);
    assert_eq!(house.agents.configured.lock().unwrap().len(), 1, "it is who it was");
    drop(lease);
    let row = daemon.comes_to(&alice, "dev", Phase::Warm).await;
    assert_eq!(row.generations.len(), 1);
}

#[tokio::test]
async fn a_lease_keeps_it_hot() {
    let house = House::sleepy(Some(5), Some(10));
    let (daemon, alice) = with_dev(&house).await;
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let second = lease.clone();
    drop(lease);
    // A second sandbox shows that the time has passed twice over.
    daemon.sandboxes.create(&alice, named("other")).await.unwrap();
    daemon.comes_to(&alice, "other", Phase::Cold).await;
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Hot);
    drop(second);
    daemon.comes_to(&alice, "dev", Phase::Cold).await;
}

#[tokio::test]
async fn a_look_neither_wakes_it_nor_keeps_it_awake() {
    let house = House::sleepy(Some(5), Some(10));
    let (daemon, alice) = with_dev(&house).await;
    // Up for as long as this is held; without it the first look may come too late.
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let row = daemon.sandboxes.get(&alice, "dev").await.unwrap();
    let guest = daemon.sandboxes.guest_if_hot(&row).await.expect("it is up");
    drop(lease);
    // Held all the time, and asked for again and again.
    let looking = async {
        let mut again = tokio::time::interval(Duration::from_millis(1));
        loop {
            again.tick().await;
            daemon.sandboxes.guest_if_hot(&row).await;
        }
    };
    tokio::select! {
        () = looking => {}
        row = daemon.comes_to(&alice, "dev", Phase::Cold) => assert_eq!(row.phase, Phase::Cold),
    }
    drop(guest);
    assert!(daemon.sandboxes.guest_if_hot(&row).await.is_none());
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Cold, "it was woken");
}

#[tokio::test]
async fn keep_hot_is_heard_at_once_and_wakes() {
    let house = House::sleepy(Some(5), Some(10));
    let (daemon, alice) = with_dev(&house).await;
    daemon.comes_to(&alice, "dev", Phase::Cold).await;
    let keep = |keep| PatchSpec { keep_hot: Some(keep), ..PatchSpec::default() };
    let row = daemon.sandboxes.patch(&alice, "dev", keep(true)).await.unwrap();
    assert_eq!((row.phase, row.keep_hot), (Phase::Hot, true));
    daemon.sandboxes.create(&alice, named("other")).await.unwrap();
    daemon.comes_to(&alice, "other", Phase::Cold).await;
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Hot);
    daemon.sandboxes.patch(&alice, "dev", keep(false)).await.unwrap();
    daemon.comes_to(&alice, "dev", Phase::Cold).await;
}

#[tokio::test]
async fn a_guest_that_works_stays_hot() {
    let house = House::sleepy(Some(3), None);
    *house.agents.busy.lock().unwrap() = Some(50);
    let (daemon, alice) = with_dev(&house).await;
    let asked = || house.agents.questions.load(Ordering::Relaxed);
    eventually("it was asked often", async || asked() >= 12).await;
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Hot);
    *house.agents.busy.lock().unwrap() = Some(0);
    daemon.comes_to(&alice, "dev", Phase::Warm).await;
}

#[tokio::test]
async fn a_guest_that_says_nothing_sleeps_after_three_questions() {
    let house = House::sleepy(Some(3), None);
    *house.agents.busy.lock().unwrap() = None;
    let (daemon, alice) = with_dev(&house).await;
    let row = daemon.comes_to(&alice, "dev", Phase::Warm).await;
    assert!(row.reason.contains("its agent does not answer"), "{}", row.reason);
    // Each time of quiet has two: that before the decision counts, but decides nothing.
    assert_eq!(house.agents.questions.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn without_a_warm_state_it_goes_cold_directly() {
    let house = House::sleepy(None, Some(5));
    let (daemon, alice) = with_dev(&house).await;
    let row = daemon.comes_to(&alice, "dev", Phase::Cold).await;
    assert!(row.reason.starts_with("idle for"), "{}", row.reason);
    assert!(daemon.sandboxes.lease(&alice, "dev").await.is_ok());
}

#[tokio::test]
async fn concurrent_uses_share_one_wake() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    house.host.set_latency(Call::Restore, Duration::from_millis(30));
    let uses = (0..20).map(|_| daemon.sandboxes.lease(&alice, "dev"));
    for lease in futures_util::future::join_all(uses).await {
        lease.unwrap();
    }
    assert_eq!(house.host.started(), 2);
}

/// An exec on a hot sandbox costs no write and no question to the engine or the guest.
#[tokio::test]
async fn a_use_of_what_is_hot_costs_nothing() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    drop(daemon.sandboxes.lease(&alice, "dev").await.unwrap());
    let (calls, row) = (house.host.calls(), daemon.row(&alice, "dev").await);
    let wal = || std::fs::read(house.path("data/state.db-wal")).unwrap();
    let written = wal();
    for _ in 0..50 {
        drop(daemon.sandboxes.lease(&alice, "dev").await.unwrap());
    }
    daemon.db.call(|_| Ok(())).await.unwrap();
    assert_eq!(house.host.calls(), calls);
    assert!(wal() == written, "something was written");
    assert_eq!(daemon.row(&alice, "dev").await, row);
}

/// However close to the moment in which it falls asleep somebody comes; which only real time has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_a_lease_of_one_that_stands() {
    let house = House::sleepy(Some(3), None);
    let (daemon, alice) = with_dev(&house).await;
    house.host.set_latency(Call::Pause, Duration::from_millis(2));
    let (row, machine) = (daemon.row(&alice, "dev").await, house.machine());
    let mut fell_asleep = 0;
    for turn in 0..150 {
        let lease = daemon.sandboxes.lease_of(&row).await.unwrap();
        for _ in 0..3 {
            assert_eq!(house.host.paused(&machine), Some(false), "turn {turn}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(lease);
        tokio::time::sleep(Duration::from_micros(turn * 107 % 7000)).await;
        fell_asleep += usize::from(house.host.paused(&machine) == Some(true));
    }
    assert!(fell_asleep > 0, "there was such a moment");
}

#[tokio::test]
async fn stop_and_start_may_be_said_twice() {
    let house = House::sleepy(Some(10), None);
    let (daemon, alice) = with_dev(&house).await;
    daemon.comes_to(&alice, "dev", Phase::Warm).await;
    // Whoever uses it meanwhile loses the link, not the sandbox.
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    for _ in 0..2 {
        let row = daemon.sandboxes.stop(&alice, "dev").await.unwrap();
        assert_eq!((row.phase, row.reason.as_str()), (Phase::Cold, "stop requested"));
        assert!(house.host.running().is_empty());
    }
    assert!(lease.guest().set_clock().await.is_err());
    for _ in 0..2 {
        let row = daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
        assert_eq!(row.phase, Phase::Hot);
    }
    drop(lease);
    daemon.comes_to(&alice, "dev", Phase::Warm).await;
    let row = daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
    assert_eq!(row.phase, Phase::Hot);
    assert_eq!(house.host.started(), 2);
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
}

#[tokio::test]
async fn a_failed_freeze_leaves_it_running() {
    for call in [Call::Pause, Call::Save] {
        let house = House::new();
        let (daemon, alice) = with_dev(&house).await;
        house.host.inject(call, fail());
        daemon.sandboxes.stop(&alice, "dev").await.unwrap_err();
        let row = daemon.row(&alice, "dev").await;
        assert_eq!((row.phase, row.generations.len()), (Phase::Hot, 0), "{call:?}");
        assert_eq!(house.host.paused(&house.machine()), Some(false), "{call:?}");
        assert!(house.names(&format!("frozen/{}", row.engine_id)).is_empty(), "{call:?}");
        daemon.sandboxes.lease(&alice, "dev").await.unwrap().guest().set_clock().await.unwrap();
        daemon.sandboxes.stop(&alice, "dev").await.unwrap();
        assert_eq!(house.host.faults_left(), 0);
    }
}

/// A machine that neither freezes nor goes on: the next use lets it, and is answered.
#[tokio::test]
async fn a_machine_that_could_not_go_on_does_on_use() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    house.host.inject(Call::Save, fail());
    house.host.inject(Call::Resume, fail());
    daemon.sandboxes.stop(&alice, "dev").await.unwrap_err();
    assert_eq!(house.host.paused(&house.machine()), Some(true));
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    lease.guest().set_clock().await.unwrap();
    assert_eq!((house.host.paused(&house.machine()), house.host.started()), (Some(false), 1));
}

/// The store takes nothing more while the machine stands.
#[tokio::test]
async fn a_freeze_that_cannot_be_recorded_is_none() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    let row = daemon.row(&alice, "dev").await;
    // What is in the way of a directory is as good as a full disk.
    std::fs::write(house.path("data/frozen").join(row.engine_id.as_str()), "").unwrap();
    daemon.sandboxes.stop(&alice, "dev").await.unwrap_err();
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Hot);
    assert_eq!(house.host.paused(&house.machine()), Some(false));
}

/// From the record on it is cold, whatever becomes of the process.
#[tokio::test]
async fn a_machine_that_does_not_end_is_ended_before_it_wakes() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.write(&alice, "dev", "before").await;
    house.host.inject(Call::Kill, fail());
    house.host.inject(Call::End, fail());
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Cold);
    assert_eq!(house.host.running().len(), 1);
    // Still not: a wake must not begin beside it.
    house.host.inject(Call::End, fail());
    daemon.sandboxes.lease(&alice, "dev").await.map(drop).unwrap_err();
    assert_eq!((house.host.running().len(), house.host.started()), (1, 1));
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    assert!(Daemon::disk(&daemon.row(&alice, "dev").await).contains("before"));
    assert_eq!(house.host.faults_left(), 0);
}

#[tokio::test]
async fn a_failed_wake_can_be_repeated() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    let cold = daemon.row(&alice, "dev").await;
    let refused = async |what: &str| {
        let error = daemon.sandboxes.lease(&alice, "dev").await.map(drop).unwrap_err();
        let row = daemon.row(&alice, "dev").await;
        assert_eq!(row, cold, "{what}: {error}");
        assert!(house.host.running().is_empty(), "{what}");
        let left = house.names(&format!("sandboxes/{}", row.engine_id));
        assert_eq!(left, BTreeSet::new(), "{what}");
        crate::chain(&error)
    };
    for call in [Call::CreateRoot, Call::Restore, Call::Resume, Call::OpenLink] {
        house.host.inject(call, fail());
        let error = refused(&format!("{call:?}")).await;
        assert!(error.contains("use 'bhatti start --force'"), "{call:?}: {error}");
    }
    house.host.inject(Call::Restore, Fault::Die("out of memory".to_owned()));
    assert!(refused("death").await.contains("--force"));
    *house.agents.mute.lock().unwrap() = true;
    refused("hello").await;
    *house.agents.mute.lock().unwrap() = false;
    *house.network.broken.lock().unwrap() = true;
    let error = refused("TAP").await;
    assert!(!error.contains("--force"), "it is the host's fault: {error}");
    *house.network.broken.lock().unwrap() = false;

    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    assert_eq!(house.host.faults_left(), 0);
}

/// What is wrong with the host costs nobody their memory, however much they insist.
#[tokio::test]
async fn force_gives_up_nothing_for_the_hosts_sake() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    // Another attempt would work, and lose what this one does not.
    house.network.stumbles.store(1, Ordering::Relaxed);
    daemon.sandboxes.start(&alice, "dev", true).await.unwrap_err();
    let row = daemon.sandboxes.start(&alice, "dev", true).await.unwrap();
    assert_eq!(row.reason, "woken");
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
}

/// Damages the newest generation of a sandbox's memory.
fn damage(house: &House, row: &SandboxRow, generation: usize) {
    let number = row.generations[generation].number;
    let file = format!("data/frozen/{}/{number}/state.sim", row.engine_id);
    std::fs::write(house.path(&file), "rubbish").unwrap();
}

#[tokio::test]
async fn what_cannot_be_used_is_booted_from_disk_and_said() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.write(&alice, "dev", "on disk").await;
    let cold = daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    damage(&house, &cold, 0);
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let row = daemon.row(&alice, "dev").await;
    assert!(row.reason.contains("memory and running processes are lost"), "{}", row.reason);
    assert!(row.reason.contains("its state is damaged"), "{}", row.reason);
    assert_eq!((row.phase, row.generations.len()), (Phase::Hot, 0));
    assert!(Daemon::disk(&row).contains("on disk"));
    let frozen = format!("frozen/{}", row.engine_id);
    eventually("the generation goes", async || house.names(&frozen).is_empty()).await;
}

#[tokio::test]
async fn two_generations_are_kept_until_the_newer_has_woken() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    let kept = async |count: usize| {
        let row = daemon.row(&alice, "dev").await;
        let numbers: Vec<_> = row.generations.iter().map(|made| made.number).collect();
        let names: BTreeSet<_> = numbers.iter().map(u32::to_string).collect();
        let frozen = format!("frozen/{}", row.engine_id);
        eventually("only those are there", async || house.names(&frozen) == names).await;
        assert_eq!(numbers.len(), count);
        numbers
    };
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    assert_eq!(kept(1).await, [1]);
    daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
    assert_eq!(kept(1).await, [1]);
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    assert_eq!(kept(2).await, [2, 1]);
    daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
    assert_eq!(kept(1).await, [2]);
}

#[tokio::test]
async fn only_force_goes_back_to_the_older_one() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.write(&alice, "dev", "old,").await;
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
    house.host.set_memory(&house.machine(), b"newer".to_vec());
    daemon.write(&alice, "dev", "new,").await;
    let cold = daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    damage(&house, &cold, 0);
    // Booting from the newest disk fails too.
    house.host.inject(Call::Boot, fail());
    let refused = daemon.sandboxes.start(&alice, "dev", false).await.unwrap_err();
    assert!(matches!(refused, ServiceError::Wake(WakeError::NotAsItWas { .. })), "{refused:?}");
    assert_eq!(daemon.row(&alice, "dev").await, cold);
    house.host.inject(Call::Boot, fail());
    let row = daemon.sandboxes.start(&alice, "dev", true).await.unwrap();
    assert!(row.reason.starts_with("woken as it was at "), "{}", row.reason);
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    let disk = Daemon::disk(&row);
    assert!(disk.contains("old,") && !disk.contains("new,"), "{disk}");
    // And it sleeps and wakes as before, under a number of its own.
    let cold = daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    assert_eq!(cold.generations[0].number, 3);
    daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_dies_awake_has_nothing_to_wake_from() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
    daemon.write(&alice, "dev", "later").await;
    let looked_up = daemon.row(&alice, "dev").await;
    let loss = |row: &SandboxRow| daemon.sandboxes.loss_since(row);
    assert_eq!(loss(&looked_up), None);
    house.host.crash(&house.machine(), "oom");
    let row = daemon.comes_to(&alice, "dev", Phase::Stopped).await;
    assert_eq!(loss(&looked_up).as_ref(), Some(&row.reason), "who came before is told");
    assert_eq!(loss(&row), None, "and who has seen it is not");
    assert_eq!((row.generations.len(), row.golden.as_ref()), (0, None));
    assert_eq!(row.reason, "the VMM died: oom; memory is lost, the disk is kept");
    assert!(bhatti_types::tells_of_loss(&row.reason));
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let row = daemon.row(&alice, "dev").await;
    assert!(bhatti_types::tells_of_loss(&row.reason), "still, after it has booted: {}", row.reason);
    assert_eq!(loss(&looked_up), Some(row.reason.clone()), "by whoever had it booted");
    assert_eq!(loss(&row), None);
    assert!(Daemon::disk(&daemon.row(&alice, "dev").await).contains("later"));
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b""[..]));
}

/// A machine that dies while it is written is not cold, and not hot.
#[tokio::test]
async fn a_machine_that_dies_in_a_freeze_is_stopped() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    house.host.inject(Call::Save, Fault::Die("oom".to_owned()));
    daemon.sandboxes.stop(&alice, "dev").await.unwrap_err();
    daemon.comes_to(&alice, "dev", Phase::Stopped).await;
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
}

/// Its link may break at any time of a freeze, and somebody asks why.
#[tokio::test]
async fn who_asks_in_a_freeze_hears_what_came_of_it() {
    for (fault, sleeps) in [(Fault::Slow(Duration::from_millis(50)), true), (fail(), false)] {
        let house = House::new();
        let (daemon, alice) = with_dev(&house).await;
        let row = daemon.row(&alice, "dev").await;
        assert!(!daemon.sandboxes.has_fallen_asleep(&row).await);
        house.host.inject(Call::Save, fault);
        let freezes = async || house.host.calls().contains(&Call::Save);
        let asked = async {
            eventually("it is saved", freezes).await;
            daemon.sandboxes.has_fallen_asleep(&row).await
        };
        let (stopped, asleep) = tokio::join!(daemon.sandboxes.stop(&alice, "dev"), asked);
        assert_eq!((stopped.is_ok(), asleep), (sleeps, sleeps));
    }
}

#[tokio::test]
async fn a_shutdown_may_freeze_everything() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.create(&alice, named("other")).await.unwrap();
    daemon.sandboxes.freeze_all(LONG).await;
    assert!(house.host.running().is_empty());
    daemon.stop().await;
    house.host.reboot();
    let daemon = house.daemon().await;
    for name in ["dev", "other"] {
        let row = daemon.row(&alice, name).await;
        assert_eq!((row.phase, row.reason.as_str()), (Phase::Cold, "the daemon stopped"));
    }
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
}

/// One that hangs holds up neither the others nor the end of the daemon.
#[tokio::test]
async fn freezing_everything_has_an_end() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.sandboxes.create(&alice, named("other")).await.unwrap();
    house.host.inject(Call::Save, Fault::Hang);
    daemon.sandboxes.freeze_all(Duration::from_millis(200)).await;
    assert_eq!(house.host.running().len(), 1);
    daemon.die().await;
    let daemon = house.daemon().await;
    let alice = daemon.known(&alice).await;
    for name in ["dev", "other"] {
        daemon.sandboxes.lease(&alice, name).await.unwrap();
    }
}

/// A disk that cannot be sealed now is sealed before anything is made of it.
#[tokio::test]
async fn a_freeze_that_could_not_seal_is_finished_by_the_wake() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    daemon.write(&alice, "dev", "before").await;
    let row = daemon.row(&alice, "dev").await;
    let in_the_way = house.path("data/layers").join(row.engine_id.as_str());
    std::fs::write(&in_the_way, "").unwrap();
    let row = daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    assert_eq!(row.phase, Phase::Cold);
    assert!(house.host.running().is_empty());
    daemon.sandboxes.lease(&alice, "dev").await.map(drop).unwrap_err();
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Cold);
    std::fs::remove_file(&in_the_way).unwrap();
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    assert!(Daemon::disk(&daemon.row(&alice, "dev").await).contains("before"));
}

#[tokio::test]
async fn it_may_sleep_as_often_as_it_likes() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    for name in ["a", "b"] {
        for _ in 0..25 {
            daemon.sandboxes.stop(&alice, "dev").await.unwrap();
            daemon.sandboxes.start(&alice, "dev", false).await.unwrap();
        }
        // One that stands on a snapshot's layers stops being able to no sooner.
        let name = name.parse().unwrap();
        let snapshot = daemon.sandboxes.checkpoint(&alice, "dev", name).await.unwrap();
        assert!(snapshot.disk.is_some());
    }
    let disk = crate::disk::current(&daemon.row(&alice, "dev").await).unwrap();
    assert!(disk.layers.len() < 24, "{} layers", disk.layers.len());
    assert!(house.host.calls().contains(&Call::MergeDisk), "or nothing was merged");
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
}

/// Whoever reads it sees a phase with its own reason and time, recorded or not.
#[tokio::test]
async fn what_is_seen_is_of_one_moment() {
    let house = House::new();
    let (daemon, alice) = with_dev(&house).await;
    let made = daemon.row(&alice, "dev").await;
    let recorded = daemon.sandboxes.stop(&alice, "dev").await.unwrap();
    assert_eq!(recorded.stopped_at, Some(recorded.changed_at));
    // As if it had been read before it slept, and looked at afterwards.
    let mut late = made.clone();
    daemon.sandboxes.inner.up_to_date(&mut late);
    assert_eq!(
        (late.phase, late.reason, late.changed_at, late.stopped_at),
        (Phase::Cold, recorded.reason, recorded.changed_at, recorded.stopped_at)
    );
    let stored = daemon.comes_to(&alice, "dev", Phase::Cold).await;
    assert_eq!(stored.changed_at, recorded.changed_at, "a restart changes nothing of that");
}
