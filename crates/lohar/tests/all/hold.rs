//! Holding: what is told to the kernel, what waits, and who lets go. On a directory that looks
//! like the kernel's groups.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bhatti_link::read_message;
use bhatti_wire::message::*;
use lohar::guest::Guest;
use lohar::process::Groups;
use lohar::serve::hold::{FAILSAFE, Hold as Holding};

use crate::support::{Host, PATIENCE, guest, open, sh};

/// A guest whose commands are in a group that says this of itself when it is told to freeze.
fn guest_in(root: &Path, events: &str) -> Arc<Guest> {
    for group in ["commands", "agent"] {
        let group = root.join(group);
        std::fs::create_dir(&group).unwrap();
        for (file, text) in
            [("cgroup.procs", ""), ("cgroup.freeze", "0"), ("cgroup.events", events)]
        {
            std::fs::write(group.join(file), text).unwrap();
        }
    }
    let mut guest = guest();
    Arc::get_mut(&mut guest).unwrap().hold = Holding::new(Some(Groups::set_up(root).unwrap()));
    guest
}

fn is_frozen(root: &Path) -> bool {
    std::fs::read_to_string(root.join("commands/cgroup.freeze")).unwrap() == "1"
}

async fn answer<M: prost::Message + Default>(mut host: Host) -> M {
    let reply = tokio::time::timeout(PATIENCE, read_message::<M>(&mut host.from));
    reply.await.expect("in time").unwrap().expect("a reply")
}

async fn hold(guest: &Arc<Guest>) -> Option<Failure> {
    answer::<Reply>(open(guest, Some(Operation::Hold(Hold {}))).await).await.failure
}

async fn hello(guest: &Arc<Guest>, identity: Option<Configure>) -> HelloReply {
    answer(open(guest, Some(Operation::Hello(Hello { identity, ..Hello::default() }))).await).await
}

#[tokio::test]
async fn a_command_waits_until_it_is_let_go() {
    let root = tempfile::tempdir().unwrap();
    let guest = guest_in(root.path(), "frozen 1\n");
    assert_eq!(hold(&guest).await, None);
    assert!(is_frozen(root.path()));
    let moved = std::fs::read_to_string(root.path().join("agent/cgroup.procs")).unwrap();
    assert_eq!(moved, "0", "the agent stepped aside");
    let says = format!("cat {}/commands/cgroup.freeze", root.path().display());
    let command = open(&guest, Some(Operation::Exec(sh(&says)))).await;
    hello(&guest, None).await;
    assert_eq!(command.finish().await.text(), "0", "it started after the release");
    // And again, which costs the first one nothing.
    assert_eq!(hold(&guest).await, None);
    assert_eq!(hold(&guest).await, None);
    hello(&guest, None).await;
    assert!(!is_frozen(root.path()));
}

#[tokio::test]
async fn an_identity_that_was_not_taken_on_lets_nothing_go() {
    let root = tempfile::tempdir().unwrap();
    let guest = guest_in(root.path(), "frozen 1\n");
    assert_eq!(hold(&guest).await, None);
    let wrong = Configure { hostname: "x".repeat(65), ..Configure::default() };
    let reply = hello(&guest, Some(wrong)).await;
    assert!(reply.applied.unwrap().failure.is_some());
    assert!(is_frozen(root.path()));
    hello(&guest, None).await;
    assert!(!is_frozen(root.path()));
}

#[tokio::test]
async fn what_does_not_stop_is_told_and_let_go_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let guest = guest_in(root.path(), "frozen 0\n");
    let failure = hold(&guest).await.unwrap();
    assert!(failure.message.starts_with("not everything is held: "), "{}", failure.message);
    assert_eq!(failure.kind, i32::from(ErrorKind::Other));
    assert!(is_frozen(root.path()));
    hello(&guest, None).await;
    assert!(!is_frozen(root.path()));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_never_greets_holds_nothing_up_for_long() {
    let root = tempfile::tempdir().unwrap();
    let guest = guest_in(root.path(), "frozen 1\n");
    let begun = tokio::time::Instant::now();
    assert_eq!(hold(&guest).await, None);
    // One that was let go meanwhile is not mistaken for it.
    tokio::time::advance(FAILSAFE / 2).await;
    hello(&guest, None).await;
    assert_eq!(hold(&guest).await, None);
    drop(guest.hold.wait_until_let_go().await);
    assert!(begun.elapsed() >= FAILSAFE * 3 / 2, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < FAILSAFE * 2 + Duration::from_secs(1));
    assert!(!is_frozen(root.path()));
}

#[tokio::test]
async fn without_groups_it_is_not_known_how() {
    let failure = hold(&guest()).await.unwrap();
    assert_eq!(failure.kind, i32::from(ErrorKind::Unsupported));
}
