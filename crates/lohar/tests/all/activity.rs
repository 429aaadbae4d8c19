//! What the agent says about its machine: here the one the tests run on, which is never idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bhatti_link::read_message;
use bhatti_wire::message::*;
use lohar::guest::Guest;

use crate::support::{PATIENCE, guest, open, sh, wait_for};

async fn report(guest: &Arc<Guest>) -> ActivityReply {
    let mut host = open(guest, Some(Operation::Activity(Activity {}))).await;
    let reply = tokio::time::timeout(PATIENCE, read_message::<ActivityReply>(&mut host.from));
    let reply = reply.await.expect("in time").unwrap().expect("a report");
    assert_eq!(reply.failure, None);
    reply
}

#[tokio::test]
async fn each_report_counts_from_the_one_before() {
    let guest = guest();
    let before = Instant::now();
    let first = report(&guest).await;
    assert!(first.since_millis > 0, "since boot: {first:?}");
    let second = report(&guest).await;
    let passed = before.elapsed().as_millis() as u64;
    assert!(second.since_millis <= passed, "{second:?} in {passed} ms");
    // All CPUs, and ticks of 10 ms where the kernel has nothing better.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(second.busy_millis <= (passed + 20) * cpus, "{second:?} in {passed} ms");
}

#[tokio::test]
async fn a_command_at_work_is_seen_until_it_ends() {
    let guest = guest();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    report(&guest).await;
    let script = format!("while [ ! -e {} ]; do :; done", go.display());
    let output_file = dir.path().join("log").to_string_lossy().into_owned();
    let exec = Exec { detach: true, output_file, ..sh(&script) };
    open(&guest, Some(Operation::Exec(exec))).await.finish().await;
    let start = Instant::now();
    let mut busy = 0;
    while busy < 100 {
        assert!(start.elapsed() < PATIENCE, "it spins, but {busy} ms were reported");
        let now = report(&guest).await;
        assert_eq!(now.commands, 1);
        busy += now.busy_millis;
    }
    std::fs::write(&go, "").unwrap();
    wait_for("its end", || guest.commands.available_permits() == lohar::guest::MAX_COMMANDS).await;
    assert_eq!(report(&guest).await.commands, 0);
}

#[tokio::test]
async fn a_disk_is_written_out_for_the_next_caller_too() {
    let guest = guest();
    for _ in 0..2 {
        let mut host = open(&guest, Some(Operation::Quiesce(Quiesce {}))).await;
        let reply = tokio::time::timeout(PATIENCE, read_message::<Reply>(&mut host.from)).await;
        assert_eq!(reply.expect("in time").unwrap().expect("a reply").failure, None);
    }
}

#[tokio::test]
async fn a_stuck_disk_holds_up_one_thread_and_nothing_else() {
    let guest = guest();
    // Stands for a sync that does not return.
    let stuck = Arc::clone(&guest.quiesce).acquire_owned().await.unwrap();
    let mut host = open(&guest, Some(Operation::Quiesce(Quiesce {}))).await;
    let reply = read_message::<Reply>(&mut host.from);
    assert!(tokio::time::timeout(Duration::from_millis(50), reply).await.is_err());
    assert_eq!(report(&guest).await.commands, 0, "others are answered");
    drop(stuck);
}
