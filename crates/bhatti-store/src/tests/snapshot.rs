//! Named snapshots.

use bhatti_types::{Cpus, GoldenId, Mib, NetPolicy, SandboxId, UserId};
use serde_json::json;

use super::sleep::golden;
use super::{open, user};
use crate::{NewSnapshot, ReservedSnapshot, SnapshotRow, SnapshotState, Store, StoreError};

fn wanted(owner: &UserId, name: &str) -> NewSnapshot {
    NewSnapshot {
        owner: owner.clone(),
        name: name.parse().unwrap(),
        source_sandbox: SandboxId::random(),
        image: "minimal".to_owned(),
        cpus: Cpus::from_milli(1500),
        memory: Mib(512),
        disk_size: Mib(64),
        hugepages: true,
        env: [("A".to_owned(), "1".to_owned())].into(),
        init: "run".to_owned(),
        hostname: "dev".to_owned(),
        net_policy: NetPolicy::closed(),
    }
}

fn reserve(store: &mut Store, new: &NewSnapshot) -> SnapshotRow {
    match store.reserve_snapshot(new).unwrap() {
        ReservedSnapshot::New(row) => *row,
        other => panic!("expected a new row, got {other:?}"),
    }
}

fn make(store: &mut Store, owner: &UserId, name: &str) -> SnapshotRow {
    let id = reserve(store, &wanted(owner, name)).id;
    store.finish_snapshot(&id, None, &json!({"file": "d"}), 4096).unwrap()
}

#[test]
fn a_snapshot_is_seen_when_it_is_complete() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let base = golden(&mut store, "k").id;
    let new = wanted(&alice, "v1");
    let row = reserve(&mut store, &new);
    assert_eq!(row.state, SnapshotState::Creating);
    assert_eq!(store.find_snapshot(&alice, "v1").unwrap(), None);
    assert!(store.snapshots_of(&alice).unwrap().is_empty());
    assert_eq!(store.all_snapshots().unwrap(), std::slice::from_ref(&row));

    let disk = json!({"file": "d"});
    let nowhere = store.finish_snapshot(&row.id, Some(&GoldenId::random()), &disk, 1);
    assert!(matches!(nowhere, Err(StoreError::NoGolden(_))), "{nowhere:?}");
    let ready = store.finish_snapshot(&row.id, Some(&base), &disk, 1 << 33).unwrap();
    let expected = SnapshotRow {
        state: SnapshotState::Ready,
        golden: Some(base.clone()),
        disk: Some(disk.clone()),
        bytes: 1 << 33,
        ..row.clone()
    };
    assert_eq!(ready, expected);
    assert_eq!(ready.net_policy, NetPolicy::closed());
    let NewSnapshot { cpus, memory, disk_size, hugepages, env, init, hostname, .. } = new;
    assert_eq!((ready.cpus, ready.memory, ready.disk_size), (cpus, memory, disk_size));
    assert_eq!((ready.hugepages, ready.env), (hugepages, env));
    assert_eq!((ready.init, ready.hostname), (init, hostname));
    assert_eq!(store.find_snapshot(&alice, "v1").unwrap(), Some(expected));
    let twice = store.finish_snapshot(&row.id, None, &disk, 1);
    assert!(matches!(twice, Err(StoreError::NoSnapshot(_))), "{twice:?}");

    assert!(!store.remove_golden(&base).unwrap(), "the snapshot stands on it");
    store.remove_snapshot(&row.id).unwrap();
    store.remove_snapshot(&row.id).unwrap();
    assert!(store.remove_golden(&base).unwrap());
}

#[test]
fn names_and_quota_are_the_owners() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let bob = user(&mut store, "bob", 5);
    let rows = ["a", "b", "c", "d"].map(|name| make(&mut store, &alice, name));
    let taken = store.reserve_snapshot(&wanted(&alice, "a")).unwrap();
    assert!(matches!(taken, ReservedSnapshot::Taken), "{taken:?}");
    // What is being made counts, and its name is taken.
    let fifth = reserve(&mut store, &wanted(&alice, "e"));
    let full = store.reserve_snapshot(&wanted(&alice, "f")).unwrap();
    assert!(matches!(full, ReservedSnapshot::Quota { used: 5, max: 5 }), "{full:?}");
    make(&mut store, &bob, "a");
    assert_eq!(store.find_snapshot(&alice, "a").unwrap().as_ref(), Some(&rows[0]));

    let newest_first: Vec<_> = rows.iter().rev().cloned().collect();
    assert_eq!(store.snapshots_of(&alice).unwrap(), newest_first);
    assert_eq!(store.all_snapshots().unwrap().len(), 6);
    store.remove_snapshot(&fifth.id).unwrap();
    reserve(&mut store, &wanted(&alice, "e"));
}

#[test]
fn an_unreadable_snapshot_keeps_its_files_and_hides_no_other() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let (odd, fine) = (make(&mut store, &alice, "odd"), make(&mut store, &alice, "fine"));
    let sql = "UPDATE snapshots SET env = 'nonsense' WHERE id = ?1";
    store.connection.execute(sql, [odd.id.as_str()]).unwrap();
    assert_eq!(store.all_snapshots().unwrap(), std::slice::from_ref(&fine));
    assert_eq!(store.snapshots_of(&alice).unwrap(), [fine]);
    assert!(store.snapshot_ids().unwrap().contains(&odd.id));
    // Its owner can have it removed all the same.
    assert!(matches!(store.find_snapshot(&alice, "odd"), Err(StoreError::Corrupt { .. })));
    let found = store.find_snapshot_id(&alice, "odd").unwrap().expect("it has a name");
    assert_eq!(found, odd.id);
    store.remove_snapshot(&found).unwrap();
    assert_eq!(store.find_snapshot_id(&alice, "odd").unwrap(), None);
}

#[test]
fn users_with_snapshots_stay() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let row = make(&mut store, &alice, "v1");
    let refused = store.delete_user("alice");
    assert!(matches!(refused, Err(StoreError::UserHasSnapshots(1))), "{refused:?}");
    store.remove_snapshot(&row.id).unwrap();
    store.delete_user("alice").unwrap();
}
