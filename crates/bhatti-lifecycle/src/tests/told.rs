//! What operators are told of what happens by itself.

use bhatti_engine_sim::{Call, Fault};
use bhatti_store::{EventFilter, EventRow};
use serde_json::json;

use super::*;

/// The events there are, the oldest first, once there is one of kind `last`.
async fn events(daemon: &Daemon, last: &str) -> Vec<EventRow> {
    let all = async || {
        let all = |store: &mut Store| store.events(&EventFilter::default(), 1000);
        daemon.db.call(all).await.unwrap()
    };
    eventually(last, async || all().await.iter().any(|event| event.kind == last)).await;
    let mut events = all().await;
    events.reverse();
    events
}

fn kinds(events: &[EventRow]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

#[tokio::test]
async fn falling_asleep_is_told_with_what_went_wrong_first() {
    let house = House::sleepy(None, Some(5));
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.inject(Call::Save, Fault::Fail("no".to_owned()));
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let told = events(&daemon, "sandbox.stopped").await;
    let wanted = [
        "user.created",
        "sandbox.created",
        "thermal.snapshot_failed",
        "thermal.snapshot",
        "sandbox.stopped",
    ];
    assert_eq!(kinds(&told), wanted);
    assert_eq!((&told[2].meta["attempt"], &told[2].meta["sandbox"]), (&json!(1), &json!("dev")));
    assert_eq!(json!(told[4].meta), json!({ "name": "dev", "reason": "thermal" }));
    let row = daemon.row(&alice, "dev").await;
    for event in &told[1..] {
        let ids = (event.user.as_deref(), event.sandbox.as_deref());
        assert_eq!(ids, (Some(alice.id.as_str()), Some(row.id.as_str())), "{event:?}");
    }
}

#[tokio::test]
async fn a_guest_that_does_not_say_what_it_does_is_told_apart() {
    let house = House::sleepy(Some(5), None);
    *house.agents.busy.lock().unwrap() = None;
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let told = events(&daemon, "thermal.force_pause").await;
    assert_eq!(kinds(&told)[1..], ["sandbox.created", "thermal.force_pause"]);
    assert!(told[2].meta["consecutive_failures"].as_u64() >= Some(3), "{told:?}");
}

#[tokio::test]
async fn a_machine_that_died_or_was_lost_is_told() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    assert!(house.host.crash(&house.machine(), "out of memory"));
    daemon.comes_to(&alice, "dev", Phase::Stopped).await;
    drop(daemon.sandboxes.lease(&alice, "dev").await.unwrap());
    let told = events(&daemon, "thermal.wake").await;
    assert_eq!(kinds(&told)[1..], ["sandbox.created", "sandbox.stopped", "thermal.wake"]);
    assert_eq!(told[2].meta["reason"], "died");
    assert!(told[2].meta["detail"].as_str().unwrap().contains("memory is lost"), "{told:?}");
    assert_eq!(told[3].meta["from_state"], "stopped");
    assert!(told[3].meta["detail"].as_str().unwrap().contains("memory is lost"), "{told:?}");

    daemon.die().await;
    house.host.reboot();
    let daemon = house.daemon().await;
    let alice = daemon.known(&alice).await;
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    let told = events(&daemon, "sandbox.destroyed").await;
    assert_eq!(kinds(&told)[4..], ["sandbox.stopped", "sandbox.destroyed"]);
    assert_eq!(told[4].meta["reason"], "lost");
}
