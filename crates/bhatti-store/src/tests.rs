//! The store against a real file.

mod event;
mod migration;
mod network;
mod publish;
mod shell_token;
mod sleep;
mod snapshot;

use std::net::Ipv4Addr;

use bhatti_types::{Cpus, ImageId, Labels, Mib, NetPolicy, Phase, UserId};

use crate::sandbox::{FIND, OF_OWNER};
use crate::{
    Change, Db, ImageRow, NewSandbox, NewUser, PatchRow, Reserved, SandboxRow, Store, StoreError,
};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    (dir, store)
}

fn user(store: &mut Store, name: &str, max_sandboxes: u32) -> UserId {
    let new = NewUser { name: name.to_owned(), max_sandboxes, max_cpus: 4, max_memory: Mib(4096) };
    store.create_user(&new).unwrap().0.id
}

fn wanted(owner: &UserId, name: &str) -> NewSandbox {
    NewSandbox {
        owner: owner.clone(),
        name: name.parse().unwrap(),
        image: "minimal".to_owned(),
        cpus: Cpus::ONE,
        memory: Mib(1024),
        disk_size: Mib(0),
        hugepages: true,
        keep_hot: false,
        labels: Labels::new(),
        env: [("A".to_owned(), "1".to_owned())].into(),
        init: String::new(),
        files_digest: String::new(),
        net_policy: NetPolicy::default(),
        uids: (1000, 3),
    }
}

fn lowest(used: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    (2..255).map(|last| Ipv4Addr::new(10, 0, 1, last)).find(|ip| !used.contains(ip))
}

fn reserve(store: &mut Store, new: &NewSandbox) -> SandboxRow {
    match store.reserve_sandbox(new, lowest).unwrap() {
        Reserved::New(row) => *row,
        other => panic!("expected a new row, got {other:?}"),
    }
}

#[test]
fn who_reads_before_writing_waits_for_other_writers() {
    let (dir, mut store) = open();
    let owner = user(&mut store, "alice", 5);
    let id = reserve(&mut store, &wanted(&owner, "dev")).id;
    let path = dir.path().join("state.db");
    let image = ImageRow {
        id: ImageId::tier("minimal", "amd64"),
        owner: None,
        name: "minimal".to_owned(),
        source: "built-in".to_owned(),
        file: "/images/minimal".into(),
        size: Mib(1),
        created_at: jiff::Timestamp::now(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = Store::open(&path).unwrap();
            for _ in 0..200 {
                other.next_serial(&id).unwrap();
            }
        });
        for _ in 0..200 {
            store.set_builtin_images(std::slice::from_ref(&image)).unwrap();
        }
    });
}

#[test]
fn the_file_is_private_and_opens_again() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, mut store) = open();
    user(&mut store, "alice", 5);
    drop(store);
    let path = dir.path().join("state.db");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Store::open(&path).unwrap().users().unwrap().len(), 1);
}

#[test]
fn a_newer_database_is_refused() {
    let (dir, store) = open();
    store.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    let refused = Store::open(&dir.path().join("state.db")).err().unwrap();
    assert!(matches!(refused, StoreError::TooNew { found: 99, .. }), "{refused}");
}

#[test]
fn keys_open_only_their_own_account() {
    let (_dir, mut store) = open();
    let new = |name: &str| NewUser {
        name: name.to_owned(),
        max_sandboxes: 5,
        max_cpus: 4,
        max_memory: Mib(4096),
    };
    let (alice, key) = store.create_user(&new("alice")).unwrap();
    let (bob, _) = store.create_user(&new("bob")).unwrap();
    assert_eq!((alice.subnet_index, bob.subnet_index), (1, 2));
    assert_eq!(store.user_by_key(&key).unwrap().unwrap().id, alice.id);
    assert!(store.user_by_key(&"bht_nobody".parse().unwrap()).unwrap().is_none());
    let fresh = store.rotate_key("alice").unwrap();
    assert!(store.user_by_key(&key).unwrap().is_none());
    assert!(store.user_by_key(&fresh).unwrap().is_some());
    assert!(matches!(store.create_user(&new("bob")), Err(StoreError::UserExists(_))));
    assert!(matches!(store.rotate_key("carol"), Err(StoreError::NoUser(_))));
}

#[test]
fn a_reservation_takes_name_address_and_uid_together() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 2);
    let bob = user(&mut store, "bob", 5);
    let a = reserve(&mut store, &wanted(&alice, "dev"));
    assert_eq!((a.phase, a.ip, a.vmm_uid), (Phase::Creating, Ipv4Addr::new(10, 0, 1, 2), 1000));
    assert!(a.hugepages && a.changed_at == a.created_at && a.generations.is_empty());
    let again = store.reserve_sandbox(&wanted(&alice, "dev"), lowest).unwrap();
    assert!(matches!(again, Reserved::Existing(row) if row.id == a.id));
    let b = reserve(&mut store, &wanted(&bob, "dev"));
    assert_eq!((b.ip, b.vmm_uid), (Ipv4Addr::new(10, 0, 1, 2), 1001));
    reserve(&mut store, &wanted(&alice, "two"));
    let full = store.reserve_sandbox(&wanted(&alice, "three"), lowest).unwrap();
    assert!(matches!(full, Reserved::Quota { used: 2, max: 2 }));
    // The existing one is found even at the quota.
    let again = store.reserve_sandbox(&wanted(&alice, "dev"), lowest).unwrap();
    assert!(matches!(again, Reserved::Existing(_)));
    assert!(matches!(store.reserve_sandbox(&wanted(&bob, "x"), lowest), Err(StoreError::NoUid)));
    store.remove_sandbox(&a.id).unwrap();
    assert_eq!(reserve(&mut store, &wanted(&bob, "x")).vmm_uid, 1000);
}

#[test]
fn phases_move_only_from_where_they_were_expected() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let row = reserve(&mut store, &wanted(&alice, "dev"));
    let vm = serde_json::json!({"pid": 1});
    store.set_vm(&row.id, &vm).unwrap();
    let wrong = store.set_phase(&row.id, &[Phase::Stopped], Phase::Hot, "x", &Change::default());
    assert!(matches!(wrong, Err(StoreError::NoSandbox(_))));
    store
        .set_phase(&row.id, &[Phase::Creating], Phase::Hot, "created", &Change::default())
        .unwrap();
    assert_eq!(store.sandbox(&row.id).unwrap().vm, Some(vm));
    store
        .set_phase(&row.id, &[Phase::Hot], Phase::Stopped, "guest powered off", &Change::default())
        .unwrap();
    let stopped = store.sandbox(&row.id).unwrap();
    assert_eq!((stopped.vm, stopped.reason.as_str()), (None, "guest powered off"));
    assert!(stopped.stopped_at.is_some());
}

#[test]
fn a_patch_is_all_or_nothing() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let dev = reserve(&mut store, &wanted(&alice, "dev"));
    reserve(&mut store, &wanted(&alice, "taken"));
    let patch = PatchRow {
        name: Some("fresh".parse().unwrap()),
        labels_add: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
        labels_remove: vec!["a".to_owned()],
        keep_hot: Some(true),
        net_policy: Some(NetPolicy::closed()),
    };
    let changed = store.patch_sandbox(&dev.id, &patch).unwrap();
    assert_eq!((changed.name.as_str(), changed.keep_hot), ("fresh", true));
    assert_eq!(changed.net_policy, NetPolicy::closed());
    assert_eq!(changed.labels, Labels::from([("b".to_owned(), "2".to_owned())]));
    let clash = PatchRow {
        name: Some("taken".parse().unwrap()),
        keep_hot: Some(false),
        ..PatchRow::default()
    };
    let refused = store.patch_sandbox(&dev.id, &clash);
    assert!(matches!(refused, Err(StoreError::NameTaken(_))), "{refused:?}");
    assert!(store.sandbox(&dev.id).unwrap().keep_hot);
}

#[test]
fn one_unreadable_row_does_not_hide_the_others() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let odd = reserve(&mut store, &wanted(&alice, "odd"));
    let fine = reserve(&mut store, &wanted(&alice, "fine"));
    let sql = "UPDATE sandboxes SET labels = 'nonsense' WHERE id = ?1";
    store.connection.execute(sql, [odd.id.as_str()]).unwrap();
    let (found, unreadable) = store.all_sandboxes().unwrap();
    assert_eq!(found, std::slice::from_ref(&fine));
    assert_eq!(store.sandboxes_of(&alice).unwrap(), [fine]);
    assert_eq!(unreadable[0].engine_id, Some(odd.engine_id));
    assert!(unreadable[0].error.to_string().contains("labels"), "{}", unreadable[0].error);
    // It still has its address, and counts.
    let third = reserve(&mut store, &wanted(&alice, "third"));
    assert_eq!(third.ip, Ipv4Addr::new(10, 0, 1, 4));
    store.connection.execute("UPDATE users SET max_sandboxes = 3", []).unwrap();
    let full = store.reserve_sandbox(&wanted(&alice, "fourth"), lowest).unwrap();
    assert!(matches!(full, Reserved::Quota { used: 3, max: 3 }), "{full:?}");
}

#[test]
fn users_with_sandboxes_stay() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let row = reserve(&mut store, &wanted(&alice, "dev"));
    assert!(matches!(store.delete_user("alice"), Err(StoreError::UserHasSandboxes(1))));
    store.remove_sandbox(&row.id).unwrap();
    store.delete_user("alice").unwrap();
    assert!(matches!(store.delete_user("alice"), Err(StoreError::NoUser(_))));
}

#[test]
fn lookups_see_only_the_owners() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let bob = user(&mut store, "bob", 5);
    let row = reserve(&mut store, &wanted(&alice, "dev"));
    assert!(store.find_sandbox(&alice, "dev").unwrap().is_some());
    assert!(store.find_sandbox(&alice, row.id.as_str()).unwrap().is_some());
    assert!(store.find_sandbox(&bob, "dev").unwrap().is_none());
    assert!(store.find_sandbox(&bob, row.id.as_str()).unwrap().is_none());
}

/// Compiling one costs more than running it, and every request runs two.
#[test]
fn a_statement_is_compiled_once_whatever_it_is_asked() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let row = reserve(&mut store, &wanted(&alice, "dev"));
    let compiled_again = |sql: &str| {
        let statement = store.connection.prepare_cached(sql).unwrap();
        statement.get_status(rusqlite::StatementStatus::RePrepare)
    };
    for key in ["dev", row.id.as_str(), "other"] {
        store.find_sandbox(&alice, key).unwrap();
        store.sandboxes_of(&alice).unwrap();
    }
    assert_eq!([FIND, OF_OWNER].map(compiled_again), [0, 0]);
}

#[tokio::test]
async fn a_call_runs_to_its_end_though_nobody_waits() {
    let (_dir, store) = open();
    let db = Db::start(store).unwrap();
    let writing = db.call(|store| Ok(user(store, "alice", 5)));
    // Polled once so that the closure is sent, then dropped.
    tokio::select! {
        biased;
        _ = writing => {}
        () = std::future::ready(()) => {}
    }
    let users = db.call(|store| store.users()).await.unwrap();
    assert_eq!(users.len(), 1);
}
