//! Phases with what goes with them, generations, goldens.

use bhatti_types::{GoldenId, Mib, Phase, SandboxId};
use jiff::Timestamp;
use serde_json::json;

use super::{open, reserve, user, wanted};
use crate::{Change, Generation, GoldenRow, SandboxRow, Store, StoreError};

pub(super) fn golden(store: &mut Store, key: &str) -> GoldenRow {
    let now = Timestamp::now();
    let row = GoldenRow {
        id: GoldenId::random(),
        key: key.to_owned(),
        image: "minimal".to_owned(),
        vcpus: 2,
        memory: Mib(1024),
        bytes: 85 << 20,
        disk: json!({"file": "g"}),
        created_at: now,
        used_at: now,
    };
    store.add_golden(&row).unwrap();
    row
}

fn generation(number: u32, golden: Option<&GoldenId>) -> Generation {
    Generation {
        number,
        made_at: "2026-05-01T10:00:00.5Z".parse().unwrap(),
        golden: golden.cloned(),
        disk: json!({"file": "/d/7.qcow2", "layers": []}),
        bytes: 1 << 33,
        written: 4096,
    }
}

fn hot(store: &mut Store) -> SandboxRow {
    let alice = user(store, "alice", 5);
    let row = reserve(store, &wanted(&alice, "dev"));
    let change = Change { vm: Some(Some(json!({"pid": 1}))), ..Change::default() };
    store.set_phase(&row.id, &[Phase::Creating], Phase::Hot, "created", &change).unwrap();
    store.sandbox(&row.id).unwrap()
}

/// Changes what goes with the phase, which stays.
fn change(store: &mut Store, row: &SandboxRow, change: Change) -> Result<(), StoreError> {
    store.set_phase(&row.id, &[row.phase], row.phase, "because", &change)
}

fn stand_on(
    store: &mut Store,
    row: &SandboxRow,
    golden: Option<&GoldenId>,
) -> Result<(), StoreError> {
    change(store, row, Change { golden: Some(golden.cloned()), ..Change::default() })
}

fn keep(store: &mut Store, row: &SandboxRow, generations: &[Generation]) -> Result<(), StoreError> {
    change(store, row, Change { generations: Some(generations.to_vec()), ..Change::default() })
}

fn find_golden(store: &Store, id: &GoldenId) -> Option<GoldenRow> {
    store.goldens().unwrap().into_iter().map(|(row, _)| row).find(|row| row.id == *id)
}

/// Moves, changing nothing else, and reads it back.
fn moved(store: &mut Store, id: &SandboxId, from: Phase, to: Phase) -> SandboxRow {
    store.set_phase(id, &[from], to, "because", &Change::default()).unwrap();
    store.sandbox(id).unwrap()
}

#[test]
fn a_freeze_is_one_step_and_a_wake_keeps_it() {
    let (_dir, mut store) = open();
    let base = golden(&mut store, "k").id;
    let row = hot(&mut store);
    let warm = moved(&mut store, &row.id, Phase::Hot, Phase::Warm);
    assert!(warm.vm.is_some() && warm.stopped_at.is_none());
    let generations = vec![generation(2, Some(&base)), generation(1, None)];
    let change = Change {
        root_disk: Some(json!({"file": "sealed"})),
        golden: Some(Some(base.clone())),
        generations: Some(generations.clone()),
        ..Change::default()
    };
    store.set_phase(&row.id, &[Phase::Warm], Phase::Cold, "idle", &change).unwrap();
    let cold = store.sandbox(&row.id).unwrap();
    assert_eq!((cold.phase, &cold.vm, &cold.golden), (Phase::Cold, &None, &Some(base)));
    assert_eq!((&cold.root_disk, &cold.generations), (&change.root_disk, &generations));
    assert!(cold.stopped_at.is_some());

    let change = Change { vm: Some(Some(json!({"pid": 2}))), ..Change::default() };
    store.set_phase(&row.id, &[Phase::Cold], Phase::Hot, "used", &change).unwrap();
    let woken = store.sandbox(&row.id).unwrap();
    assert_eq!((&woken.vm, &woken.generations), (&Some(json!({"pid": 2})), &generations));
    assert_eq!((woken.golden, woken.root_disk), (cold.golden, cold.root_disk));
    let change = Change { golden: Some(None), vm: Some(None), ..Change::default() };
    store.set_phase(&row.id, &[Phase::Hot], Phase::Hot, "its own", &change).unwrap();
    let own = store.sandbox(&row.id).unwrap();
    assert_eq!((own.golden, own.vm, own.changed_at), (None, None, woken.changed_at));
}

#[test]
fn a_refused_move_changes_nothing() {
    let (_dir, mut store) = open();
    let row = hot(&mut store);
    let change = Change {
        root_disk: Some(json!(1)),
        vm: Some(None),
        generations: Some(vec![generation(1, None)]),
        ..Change::default()
    };
    let wrong = store.set_phase(&row.id, &[Phase::Warm], Phase::Cold, "idle", &change);
    assert!(matches!(wrong, Err(StoreError::NoSandbox(_))), "{wrong:?}");
    let nowhere = Change { golden: Some(Some(GoldenId::random())), ..change };
    let wrong = store.set_phase(&row.id, &[Phase::Hot], Phase::Cold, "idle", &nowhere);
    assert!(matches!(wrong, Err(StoreError::NoGolden(_))), "{wrong:?}");
    let three = [3, 2, 1].map(|number| generation(number, None));
    assert!(keep(&mut store, &row, &three).is_err());
    assert_eq!(store.sandbox(&row.id).unwrap(), row);
}

#[test]
fn times_tell_when_it_changed_and_when_it_stopped() {
    let (_dir, mut store) = open();
    let row = hot(&mut store);
    assert!(row.changed_at > row.created_at);
    let cold = moved(&mut store, &row.id, Phase::Hot, Phase::Cold);
    assert!(cold.changed_at > row.changed_at);
    assert_eq!(cold.stopped_at, Some(cold.changed_at));
    // It only fell back to its disk; it has stood since it was frozen.
    let stopped = moved(&mut store, &row.id, Phase::Cold, Phase::Stopped);
    assert!(stopped.changed_at > cold.changed_at);
    assert_eq!(stopped.stopped_at, cold.stopped_at);
    let same = moved(&mut store, &row.id, Phase::Stopped, Phase::Stopped);
    assert_eq!((same.changed_at, same.reason.as_str()), (stopped.changed_at, "because"));
    // What is recorded late was so since before.
    let at = stopped.changed_at + jiff::SignedDuration::from_secs(1);
    let late = Change { at: Some(at), ..Change::default() };
    for to in [Phase::Stopped, Phase::Hot] {
        store.set_phase(&row.id, &[Phase::Stopped], to, "late", &late).unwrap();
        assert_eq!(store.sandbox(&row.id).unwrap().changed_at, at, "{to}");
    }
    let again = moved(&mut store, &row.id, Phase::Hot, Phase::Stopped);
    assert!(again.stopped_at > stopped.stopped_at);
}

#[test]
fn generation_numbers_are_never_used_again() {
    let (dir, mut store) = open();
    let row = hot(&mut store);
    assert_eq!([(); 3].map(|()| store.next_serial(&row.id).unwrap()), [1, 2, 3]);
    keep(&mut store, &row, &[generation(3, None)]).unwrap();
    keep(&mut store, &row, &[]).unwrap();
    drop(store);
    let mut store = Store::open(&dir.path().join("state.db")).unwrap();
    assert_eq!(store.next_serial(&row.id).unwrap(), 4);
    for (named, serial) in [(9, 9), (2, 9)] {
        let change = Change { serial: Some(named), ..Change::default() };
        store.set_phase(&row.id, &[Phase::Hot], Phase::Hot, "layers came", &change).unwrap();
        assert_eq!(store.sandbox(&row.id).unwrap().serial, serial);
    }
    store.connection.execute("UPDATE sandboxes SET serial = 4294967295", []).unwrap();
    assert!(store.next_serial(&row.id).is_err());
    let nobody = store.next_serial(&SandboxId::random());
    assert!(matches!(nobody, Err(StoreError::NoSandbox(_))), "{nobody:?}");
}

#[test]
fn goldens_are_found_by_key_and_listed_by_use() {
    let (_dir, mut store) = open();
    let (a, b) = (golden(&mut store, "a"), golden(&mut store, "b"));
    assert_eq!(store.golden_by_key("a").unwrap().as_ref(), Some(&a));
    assert_eq!(store.golden_by_key("b").unwrap().as_ref(), Some(&b));
    assert_eq!(store.golden_by_key("c").unwrap(), None);
    let twin = GoldenRow { id: GoldenId::random(), ..a.clone() };
    assert!(matches!(store.add_golden(&twin), Err(StoreError::GoldenExists(_))));
    assert_eq!(find_golden(&store, &twin.id), None);

    store.use_golden(&a.id).unwrap();
    let order = store.goldens().unwrap().into_iter().map(|(row, _)| row.id);
    assert_eq!(order.collect::<Vec<_>>(), [b.id.clone(), a.id.clone()]);
    assert!(find_golden(&store, &a.id).unwrap().used_at > a.used_at);
    assert!(matches!(store.use_golden(&twin.id), Err(StoreError::NoGolden(_))));

    store.connection.execute("UPDATE goldens SET used_at = 'x' WHERE key = 'a'", []).unwrap();
    assert_eq!(store.goldens().unwrap(), [(b.clone(), false)]);
    let mut kept = store.golden_ids().unwrap();
    kept.sort();
    let mut both = [a.id, b.id];
    both.sort();
    assert_eq!(kept, both, "what cannot be read is not swept");
}

#[test]
fn a_retired_golden_makes_room_for_another() {
    let (_dir, mut store) = open();
    let row = hot(&mut store);
    let old = golden(&mut store, "k");
    stand_on(&mut store, &row, Some(&old.id)).unwrap();
    store.retire_golden(&old.id).unwrap();
    assert_eq!(store.golden_by_key("k").unwrap(), None);
    let new = golden(&mut store, "k");
    store.retire_golden(&new.id).unwrap();
    let (kept, in_use) = store.goldens().unwrap().swap_remove(0);
    assert!(kept.id == old.id && kept.is_retired() && in_use && !old.is_retired());
    assert!(!store.remove_golden(&old.id).unwrap() && store.remove_golden(&new.id).unwrap());
}

#[test]
fn a_golden_that_something_stands_on_stays() {
    let (_dir, mut store) = open();
    let base = golden(&mut store, "k").id;
    let row = hot(&mut store);
    let in_use = |store: &Store| store.goldens().unwrap()[0].1;
    assert!(!in_use(&store));

    stand_on(&mut store, &row, Some(&base)).unwrap();
    assert!(in_use(&store) && !store.remove_golden(&base).unwrap());
    // The machine has left it; the older of its generations has not.
    stand_on(&mut store, &row, None).unwrap();
    assert!(!in_use(&store));
    let generations = [generation(2, None), generation(1, Some(&base))];
    keep(&mut store, &row, &generations).unwrap();
    assert!(in_use(&store) && !store.remove_golden(&base).unwrap());
    assert!(find_golden(&store, &base).is_some());

    keep(&mut store, &row, &generations[..1]).unwrap();
    assert!(store.remove_golden(&base).unwrap());
    assert!(store.remove_golden(&base).unwrap(), "twice is fine");
    assert_eq!(find_golden(&store, &base), None);
    let gone = stand_on(&mut store, &row, Some(&base));
    assert!(matches!(gone, Err(StoreError::NoGolden(_))), "{gone:?}");
}
