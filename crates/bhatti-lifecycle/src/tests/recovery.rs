//! What a daemon finds when it starts, and machines that end by themselves.

use bhatti_engine_sim::{Call, Fault};

use super::*;

#[tokio::test]
async fn a_restart_adopts_what_runs() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let running = house.host.running();
    daemon.stop().await;
    assert_eq!(house.host.running(), running, "a machine outlives the daemon");
    let daemon = house.daemon().await;
    assert_eq!(house.host.running(), running);
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.agents.configured.lock().unwrap().len(), 1, "it is not configured again");
    daemon.stop().await;
    house.host.reboot();
    let daemon = house.daemon().await;
    let row = daemon.sandboxes.get(&alice, "dev").await.unwrap();
    assert_eq!((row.phase, row.reason.as_str()), (Phase::Stopped, crate::recover::LOST));
    assert!(bhatti_types::tells_of_loss(&row.reason));
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    let row = daemon.sandboxes.get(&alice, "dev").await.unwrap();
    assert_eq!(row.phase, Phase::Hot);
    assert!(row.reason.ends_with(crate::recover::LOST), "who wakes it is told: {}", row.reason);
    assert_eq!(house.host.started(), 2);
}

/// A daemon that dies in the middle of a create leaves a row, a directory and a machine.
#[tokio::test]
async fn what_a_crash_cut_short_is_undone() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("half")).await.unwrap();
    daemon.stop().await;
    // The last step of a create is the move to `hot`; without it, it was cut short.
    let store = house.path("data/state.db");
    let mut store = Store::open(store.as_std_path()).unwrap();
    let id = store.all_sandboxes().unwrap().0[0].id.clone();
    store
        .set_phase(
            &id,
            &[Phase::Hot],
            Phase::Creating,
            "as before the last step",
            &bhatti_store::Change::default(),
        )
        .unwrap();
    drop(store);
    assert_eq!(house.host.running().len(), 1);
    let stray = house.path("data/sandboxes").join(EngineId::random().as_str());
    std::fs::create_dir(&stray).unwrap();

    let daemon = house.daemon().await;
    house.assert_nothing_left(&daemon).await;
    assert!(!stray.exists(), "directories nobody knows are swept");
    daemon.sandboxes.create(&alice, named("half")).await.unwrap();
}

/// A shutdown in the middle of a create undoes it.
#[tokio::test]
async fn a_shutdown_undoes_what_is_not_finished() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.inject(Call::OpenLink, Fault::Hang);
    let (sandboxes, caller) = (daemon.sandboxes.clone(), alice.clone());
    let create = tokio::spawn(async move { sandboxes.create(&caller, named("half")).await });
    while house.host.running().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(daemon.sandboxes.list(&alice).await.unwrap().is_empty(), "it is not listed yet");
    daemon.stop().await;
    assert!(create.await.unwrap().is_err());
    let daemon = house.daemon().await;
    house.assert_nothing_left(&daemon).await;
}

#[tokio::test]
async fn a_machine_that_ends_is_booted_on_use() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let [id] = house.host.running().into_iter().collect::<Vec<_>>().try_into().unwrap();
    assert!(house.host.power_off(&id));
    let row = loop {
        let row = daemon.sandboxes.get(&alice, "dev").await.unwrap();
        if row.phase != Phase::Hot {
            break row;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((row.phase, row.reason.as_str()), (Phase::Stopped, "the guest powered off"));
    assert!(row.stopped_at.is_some());
    let lease = || daemon.sandboxes.lease(&alice, "dev");
    let (a, b) = tokio::join!(lease(), lease());
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(house.host.started(), 2, "one boot for both");
    assert_eq!(house.agents.configured.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_destroy_that_fails_can_be_tried_again() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    house.host.inject(Call::Kill, Fault::Fail("busy".to_owned()));
    assert!(daemon.sandboxes.destroy(&alice, "dev").await.is_err());
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    house.assert_nothing_left(&daemon).await;
    let gone = daemon.sandboxes.destroy(&alice, "dev").await;
    assert!(matches!(gone, Err(ServiceError::NoSandbox(_))));
}

/// What is wrong with one sandbox must not keep the daemon from the others.
#[tokio::test]
async fn a_machine_that_cannot_be_told_is_unknown_and_the_rest_goes_on() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("odd")).await.unwrap();
    daemon.sandboxes.create(&alice, named("fine")).await.unwrap();
    let running = house.host.running();
    daemon.stop().await;
    // Rows are recovered oldest first.
    house.host.inject(Call::Adopt, Fault::Fail("its socket is gone".to_owned()));
    let daemon = house.daemon().await;
    assert_eq!(house.host.running(), running, "what cannot be told is left alone");
    let odd = daemon.sandboxes.get(&alice, "odd").await.unwrap();
    assert_eq!(odd.phase, Phase::Unknown);
    assert!(odd.reason.contains("its socket is gone"), "{}", odd.reason);
    let refused = daemon.sandboxes.lease(&alice, "odd").await.map(drop);
    assert!(matches!(refused, Err(ServiceError::Denied(_))), "{refused:?}");
    daemon.sandboxes.lease(&alice, "fine").await.unwrap();
    // What was wrong has passed: the next start takes it back, and an unknown one can be destroyed.
    daemon.stop().await;
    let daemon = house.daemon().await;
    assert_eq!(daemon.sandboxes.get(&alice, "odd").await.unwrap().phase, Phase::Hot);
    daemon.sandboxes.lease(&alice, "odd").await.unwrap();
    daemon.stop().await;
    house.host.inject(Call::Adopt, Fault::Fail("again".to_owned()));
    let daemon = house.daemon().await;
    daemon.sandboxes.destroy(&alice, "odd").await.unwrap();
    daemon.sandboxes.destroy(&alice, "fine").await.unwrap();
    house.assert_nothing_left(&daemon).await;
}

#[tokio::test]
async fn a_wake_that_fails_leaves_no_machine_and_can_be_tried_again() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    daemon.sandboxes.power_off_all(LONG).await;
    assert_eq!(daemon.sandboxes.get(&alice, "dev").await.unwrap().phase, Phase::Stopped);
    assert!(house.host.running().is_empty());
    house.host.inject(Call::OpenLink, Fault::Fail("no".to_owned()));
    assert!(daemon.sandboxes.lease(&alice, "dev").await.is_err());
    assert!(house.host.running().is_empty(), "half a wake is no wake");
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.running().len(), 1);
}

/// A boot that hangs does not stand in the way of whoever wants the sandbox gone.
#[tokio::test]
async fn a_destroy_interrupts_a_wake() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    daemon.sandboxes.power_off_all(LONG).await;
    house.host.inject(Call::OpenLink, Fault::Hang);
    let wake = daemon.sandboxes.lease(&alice, "dev");
    let destroy = async {
        while house.host.running().is_empty() {
            tokio::task::yield_now().await;
        }
        daemon.sandboxes.destroy(&alice, "dev").await
    };
    let both = async { tokio::join!(wake, destroy) };
    let (woken, destroyed) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert!(woken.is_err() && destroyed.is_ok());
    house.assert_nothing_left(&daemon).await;
}

/// A daemon that went while some slept, and one on a host that was restarted meanwhile.
#[tokio::test]
async fn a_restart_keeps_the_warm_warm_and_the_cold_cold() {
    let house = House::sleepy(Some(10), None);
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("cold")).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
    daemon.sandboxes.stop(&alice, "cold").await.unwrap();
    daemon.sandboxes.create(&alice, named("warm")).await.unwrap();
    daemon.comes_to(&alice, "warm", Phase::Warm).await;
    let machine = house.machine();
    daemon.die().await;
    let daemon = house.daemon().await;
    assert_eq!((house.machine(), house.host.paused(&machine)), (machine.clone(), Some(true)));
    assert_eq!(daemon.phase(&alice, "warm").await, Phase::Warm);
    assert_eq!(daemon.phase(&alice, "cold").await, Phase::Cold);
    let lease = daemon.sandboxes.lease(&alice, "warm").await.unwrap();
    lease.guest().set_clock().await.unwrap();
    drop(lease);
    daemon.comes_to(&alice, "warm", Phase::Warm).await;
    daemon.die().await;
    house.host.reboot();
    let daemon = house.daemon().await;
    let row = daemon.row(&alice, "warm").await;
    assert_eq!((row.phase, row.reason.as_str()), (Phase::Stopped, crate::recover::LOST));
    daemon.sandboxes.lease(&alice, "cold").await.unwrap();
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
}

#[tokio::test]
async fn what_is_kept_hot_is_woken_when_the_daemon_starts() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    let spec = CreateSpec { keep_hot: Some(true), ..named("dev") };
    daemon.sandboxes.create(&alice, spec).await.unwrap();
    house.host.set_memory(&house.machine(), b"work".to_vec());
    daemon.sandboxes.create(&alice, named("other")).await.unwrap();
    daemon.sandboxes.freeze_all(LONG).await;
    daemon.stop().await;
    let daemon = house.daemon().await;
    daemon.comes_to(&alice, "dev", Phase::Hot).await;
    assert_eq!(house.host.memory(&house.machine()).as_deref(), Some(&b"work"[..]));
    assert_eq!(daemon.phase(&alice, "other").await, Phase::Cold);
}

/// A machine that is found but does not go on when it is told to: the next use tells it again.
#[tokio::test]
async fn an_adopted_machine_that_stands_goes_on_on_use() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    // It dies in a freeze: the machine stands, the record says hot.
    house.host.inject(Call::Save, Fault::Hang);
    let stop = daemon.sandboxes.stop(&alice, "dev");
    let stands = async || house.host.calls().contains(&Call::Save);
    tokio::select! {
        _ = stop => panic!("it hangs"),
        () = eventually("it stands", stands) => {}
    }
    daemon.die().await;
    house.host.inject(Call::Resume, Fault::Fail("no luck".to_owned()));
    let daemon = house.daemon().await;
    assert_eq!(house.host.paused(&house.machine()), Some(true));
    let lease = daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    lease.guest().set_clock().await.unwrap();
    assert_eq!(house.host.paused(&house.machine()), Some(false));
}

/// A request that an actor did not come to is not done, and is not said to be.
#[tokio::test]
async fn a_shutdown_is_told_to_those_who_wait() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    house.host.inject(Call::Save, Fault::Slow(Duration::from_millis(50)));
    let stop = daemon.sandboxes.stop(&alice, "dev");
    let others = async {
        let busy = async || house.host.calls().contains(&Call::Save);
        eventually("the actor is busy", busy).await;
        let lease = daemon.sandboxes.lease(&alice, "dev");
        let destroy = daemon.sandboxes.destroy(&alice, "dev");
        let shut_down = daemon.tasks.clone().shut_down(Duration::from_secs(10));
        let (lease, destroy, shut_down) = tokio::join!(lease, destroy, shut_down);
        shut_down.unwrap();
        [lease.map(drop).unwrap_err(), destroy.unwrap_err()]
    };
    let (stopped, refused) = tokio::join!(stop, others);
    stopped.unwrap();
    for refused in refused {
        assert!(matches!(refused, ServiceError::ShuttingDown), "{refused}");
    }
    daemon.stop().await;
    let daemon = house.daemon().await;
    assert_eq!(daemon.phase(&alice, "dev").await, Phase::Cold);
}
