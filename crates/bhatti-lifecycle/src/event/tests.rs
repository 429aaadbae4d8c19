//! What is said is recorded, and what cannot be is counted.

use super::*;
use bhatti_store::{EventFilter, EventRow, Store};
use serde_json::json;

fn db() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("state.db")).expect("a store");
    (dir, Db::start(store).expect("its thread"))
}

async fn recorded(db: &Db) -> Vec<EventRow> {
    let all = |store: &mut Store| store.events(&EventFilter::default(), 10_000);
    db.call(all).await.expect("events")
}

#[tokio::test]
async fn what_is_said_before_the_end_is_recorded_in_order() {
    let (_dir, db) = db();
    let (events, recorder) = Events::start(db.clone());
    let (user, sandbox) = (UserId::random(), SandboxId::random());
    for number in 0..250 {
        let meta = json!({ "number": number });
        events.record(EventKind::SandboxStarted, Some(&user), Some(&sandbox), meta);
    }
    recorder.close().await;
    events.record(EventKind::SandboxStopped, None, None, json!({}));
    let rows = recorded(&db).await;
    let numbers: Vec<_> = rows.iter().rev().map(|row| row.meta["number"].clone()).collect();
    assert_eq!(json!(numbers), json!((0..250).collect::<Vec<_>>()), "and nothing after the end");
    assert_eq!(rows[0].user.as_deref(), Some(user.as_str()));
    assert_eq!(rows[0].sandbox.as_deref(), Some(sandbox.as_str()));
}

#[tokio::test]
async fn one_event_does_not_wait_for_others() {
    let (_dir, db) = db();
    let (events, _recorder) = Events::start(db.clone());
    events.record(EventKind::DaemonStarted, None, None, json!({ "version": "v1" }));
    crate::tests::eventually("it is recorded", async || recorded(&db).await.len() == 1).await;
}

#[tokio::test]
async fn a_store_that_does_not_write_holds_up_nobody() {
    let (_dir, db) = db();
    let (events, recorder) = Events::start(db.clone());
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let busy = db.clone();
    let blocked = tokio::spawn(async move {
        busy.call(move |_| {
            wait.recv().ok();
            Ok(())
        })
        .await
    });
    for _ in 0..QUEUE * 3 {
        events.record(EventKind::SandboxStarted, None, None, json!({}));
    }
    let dropped = events.dropped.load(Ordering::Relaxed);
    assert_eq!(dropped, 2 * QUEUE as u64, "counted");
    go_on.send(()).expect("it waits");
    blocked.await.expect("no panic").expect("written");
    recorder.close().await;
    assert_eq!(recorded(&db).await.len(), QUEUE);
}

#[tokio::test]
async fn a_flood_from_outside_is_a_few_rows() {
    let (_dir, db) = db();
    let (events, recorder) = Events::start(db.clone());
    for _ in 0..100_000 {
        events.record(EventKind::AuthFailed, None, None, json!({ "ip": "192.0.2.1" }));
    }
    recorder.close().await;
    let rows = recorded(&db).await;
    let untold: u64 = rows.iter().filter_map(|row| row.meta.get("not_recorded")?.as_u64()).sum();
    assert_eq!(rows.len() as u64 + untold, 100_000, "and every one is accounted for");
    assert!(rows.len() < 30, "{}", rows.len());
}
