//! Events: what is asked for is found, and nothing grows for ever.

use bhatti_types::{EventKind, SandboxId, UserId};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{open, reserve, user, wanted};
use crate::{EventFilter, NewEvent, PatchRow, Store};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn add(
    store: &mut Store,
    seconds: i64,
    kind: EventKind,
    user: &UserId,
    sandbox: &SandboxId,
    meta: Value,
) {
    let event = NewEvent::now(kind, Some(user), Some(sandbox), meta);
    store.record(&[NewEvent { at: at(seconds), ..event }]).unwrap();
}

fn kinds(store: &Store, filter: &EventFilter) -> Vec<String> {
    let kinds: Vec<_> =
        store.events(filter, 1000).unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(store.count_events(filter).unwrap(), kinds.len() as u64);
    kinds
}

#[test]
fn what_is_asked_for_is_found_the_newest_first() {
    let (_dir, mut store) = open();
    let (alice, bob) = (user(&mut store, "alice", 5), user(&mut store, "bob", 5));
    let dev = reserve(&mut store, &wanted(&alice, "dev")).id;
    let gone = SandboxId::random();
    add(&mut store, 0, EventKind::SandboxCreated, &alice, &dev, json!({ "name": "dev" }));
    add(&mut store, 1, EventKind::SandboxCreated, &bob, &gone, json!({ "name": "his" }));
    add(&mut store, 2, EventKind::ThermalPause, &alice, &dev, json!({ "sandbox": "dev" }));
    add(&mut store, 3, EventKind::SandboxDestroyed, &bob, &gone, json!({ "name": "his" }));
    let named = |name: &str| Some(name.to_owned());
    let of = |filter: EventFilter| kinds(&store, &filter);
    let sandbox = |key: &str| of(EventFilter { sandbox: named(key), ..EventFilter::default() });
    assert_eq!(sandbox("dev"), ["thermal.pause", "sandbox.created"]);
    assert_eq!(sandbox(dev.as_str()), sandbox("dev"));
    assert_eq!(sandbox("his"), ["sandbox.destroyed", "sandbox.created"], "it is gone");
    assert_eq!(sandbox("%"), [""; 0]);
    let user = |key: &str| of(EventFilter { user: named(key), ..EventFilter::default() });
    assert_eq!(user("bob"), ["sandbox.destroyed", "sandbox.created", "user.created"]);
    assert_eq!(user(bob.as_str()), user("bob"));
    assert_eq!(user("nobody"), [""; 0]);
    let kind = |kind: &str| of(EventFilter { kind: named(kind), ..EventFilter::default() }).len();
    assert_eq!(
        ["sandbox", "sandbox.created", "sand", "sandbox.", "user", ""].map(kind),
        [3, 2, 0, 0, 2, 0]
    );
    let since = |seconds| EventFilter { since: Some(at(seconds)), ..EventFilter::default() };
    assert_eq!(of(since(2)), ["sandbox.destroyed", "thermal.pause"]);
    assert_eq!(of(since(4)), [""; 0]);
    let both = EventFilter { kind: named("thermal"), user: named("bob"), ..since(0) };
    assert_eq!(of(both), [""; 0]);
    let newest = store.events(&EventFilter::default(), 1).unwrap();
    assert_eq!(json!(newest[0].meta), json!({ "name": "his" }));
    let renamed = PatchRow { name: Some("new".parse().unwrap()), ..PatchRow::default() };
    store.patch_sandbox(&dev, &renamed).unwrap();
    let now = EventFilter { sandbox: named("new"), ..EventFilter::default() };
    assert_eq!(kinds(&store, &now).len(), 2, "by the name it has now");
}

#[test]
fn accounts_change_together_with_their_event() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let key = store.rotate_key("alice").unwrap();
    assert!(store.rotate_key("nobody").is_err());
    store.delete_user("alice").unwrap();
    let events = store.events(&EventFilter::default(), 10).unwrap();
    let seen: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(seen, ["user.deleted", "user.key_rotated", "user.created"]);
    assert!(events.iter().all(|event| event.user.as_deref() == Some(alice.as_str())));
    assert_eq!(
        json!(events[2].meta),
        json!({ "name": "alice", "max_sandboxes": 5, "subnet_index": 1 })
    );
    assert!(!format!("{events:?}").contains(key.reveal()));
}

#[test]
fn what_is_noted_has_a_bounded_length() {
    let long = |meta| NewEvent::now(EventKind::ProxyError, None, None, meta).meta;
    let cut = long(json!({ "error": "é".repeat(1000), "n": 1 }));
    let error = cut["error"].as_str().unwrap();
    assert!(error.len() <= 515 && error.ends_with("é…"), "{}", error.len());
    let many: serde_json::Map<_, _> =
        (0..1000).map(|n| (format!("label{n}"), Value::from("x"))).collect();
    assert_eq!(json!(long(many.into())), json!({ "too_long": true }));
    assert_eq!(json!(long(json!("no object"))), json!({}));
}

#[test]
fn whoever_has_most_loses_his_oldest() {
    let (_dir, mut store) = open();
    let (quiet, loud, sandbox) = (UserId::random(), UserId::random(), SandboxId::random());
    let kind = EventKind::SandboxUpdated;
    for number in 0..10 {
        add(&mut store, number, kind, &quiet, &sandbox, json!({ "n": number }));
    }
    for number in 10..100 {
        add(&mut store, number, kind, &loud, &sandbox, json!({ "n": number }));
    }
    let left = |store: &Store, user: &UserId| {
        let filter = EventFilter { user: Some(user.to_string()), ..EventFilter::default() };
        let events = store.events(&filter, 1000).unwrap();
        events.iter().rev().map(|event| event.meta["n"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    while store.forget_events(at(0), 30, 8).unwrap() > 0 {}
    assert_eq!(left(&store, &quiet), (0..10).collect::<Vec<_>>());
    assert_eq!(left(&store, &loud), (80..100).collect::<Vec<_>>());
    while store.forget_events(at(0), 10, 8).unwrap() > 0 {}
    assert_eq!(left(&store, &quiet), (5..10).collect::<Vec<_>>(), "a share each");
    assert_eq!(left(&store, &loud), (95..100).collect::<Vec<_>>());
}

#[test]
fn the_old_and_the_too_many_are_forgotten() {
    let (_dir, mut store) = open();
    let (user, sandbox) = (UserId::random(), SandboxId::random());
    for number in 0..100 {
        let meta = json!({ "n": number });
        add(&mut store, number, EventKind::SandboxStarted, &user, &sandbox, meta);
    }
    let left = |store: &Store| {
        let events = store.events(&EventFilter::default(), 1000).unwrap();
        events.iter().rev().map(|event| event.meta["n"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    let day = SignedDuration::from_hours(24);
    assert_eq!(store.forget_events(at(0) - day, 100, 10).unwrap(), 0);
    assert_eq!(store.forget_events(at(15), 1000, 10).unwrap(), 10, "no more at once");
    assert_eq!(store.forget_events(at(15), 1000, 10).unwrap(), 5);
    assert_eq!(left(&store), (15..100).collect::<Vec<_>>());
    assert_eq!(store.forget_events(at(0), 20, 1000).unwrap(), 65);
    assert_eq!(left(&store), (80..100).collect::<Vec<_>>());
    assert_eq!(store.forget_events(at(0), 20, 1000).unwrap(), 0);
    assert_eq!(store.forget_events(at(1000), 20, 1000).unwrap(), 20);
    add(&mut store, 2000, EventKind::SandboxStarted, &user, &sandbox, json!({ "n": 7 }));
    assert_eq!(store.events(&EventFilter::default(), 1).unwrap()[0].id, 101, "no id twice");
}
