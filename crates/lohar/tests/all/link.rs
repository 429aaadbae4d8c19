//! Commands over a real link: what a stream given up means, and what a lost link does.

use std::path::Path;
use std::sync::Arc;

use bhatti_link::{Link, Mode, Stream, connect, read_message, write_message};
use bhatti_wire::message::{
    Exec, ExecInput, ExecInputEvent, ExecOutput, ExecOutputEvent, MAX_CHUNK, Operation, Request,
};
use bytes::Bytes;
use lohar::guest::{Guest, MAX_COMMANDS};
use lohar::serve::answer;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, group_lives, guest, sh, wait_for};

/// A guest's agent and the link to it; aborting the task is the loss of the carrier.
async fn linked(guest: &Arc<Guest>) -> (Link, JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let guest = Arc::clone(guest);
    tokio::spawn(bhatti_link::serve(theirs, move |stream| {
        let guest = Arc::clone(&guest);
        tokio::spawn(async move { answer(&guest, stream).await });
    }));
    let (link, driver) = connect(ours, [7; 16], Mode::FirstBoot).await.unwrap();
    let driving = tokio::spawn(async move {
        driver.await;
    });
    (link, driving)
}

async fn start(link: &Link, exec: Exec) -> (Stream, u32) {
    let mut stream = link.open().unwrap();
    write_message(&mut stream, &Request { operation: Some(Operation::Exec(exec)) }).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, read_message::<ExecOutput>(&mut stream)).await;
    match first.expect("in time").unwrap().unwrap().event {
        Some(ExecOutputEvent::Started(started)) => (stream, started.pid),
        other => panic!("{other:?} is no start"),
    }
}

async fn forgotten(guest: &Guest) {
    wait_for("the command is over", || guest.commands.available_permits() == MAX_COMMANDS).await;
}

#[tokio::test]
async fn a_stream_given_up_kills_the_group() {
    let guest = guest();
    let (link, _driving) = linked(&guest).await;
    let (stream, pid) = start(&link, sh("sleep 1000 & sleep 1000")).await;
    assert!(group_lives(pid));
    drop(stream);
    wait_for("the group is gone", || !group_lives(pid)).await;
    forgotten(&guest).await;
}

#[tokio::test]
async fn a_stream_given_up_kills_a_command_whose_stdin_is_full() {
    let guest = guest();
    let (link, _driving) = linked(&guest).await;
    let (mut stream, pid) = start(&link, Exec { stdin: true, ..sh("exec sleep 1000") }).await;
    let chunk = ExecInput { event: Some(ExecInputEvent::Data(Bytes::from(vec![0; MAX_CHUNK]))) };
    // Until nothing moves any more: the queue and the link are full.
    let stuck = std::time::Duration::from_millis(500);
    while tokio::time::timeout(stuck, write_message(&mut stream, &chunk)).await.is_ok() {}
    assert!(group_lives(pid), "held up, not killed");
    drop(stream);
    wait_for("the group is gone", || !group_lives(pid)).await;
    forgotten(&guest).await;
}

#[tokio::test]
async fn a_stream_given_up_after_its_half_close_kills_what_prints() {
    let guest = guest();
    let (link, _driving) = linked(&guest).await;
    let script = "while :; do echo again; sleep 0.02; done";
    let (mut stream, pid) = start(&link, sh(script)).await;
    stream.shutdown().await.unwrap();
    drop(stream);
    wait_for("the group is gone", || !group_lives(pid)).await;
    forgotten(&guest).await;
}

#[tokio::test]
async fn a_lost_link_kills_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let show = |path: &Path| path.display().to_string();
    let guest = guest();
    let (link, driving) = linked(&guest).await;
    // Prints more than all buffers hold, once the link is gone for certain.
    let script = format!(
        "until [ -e {} ]; do sleep 0.02; done; head -c 2000000 /dev/zero && echo fine >{}",
        show(&path("go")),
        show(&path("done"))
    );
    let (mut stream, _) = start(&link, sh(&script)).await;
    driving.abort();
    let lost = tokio::time::timeout(PATIENCE, read_message::<ExecOutput>(&mut stream)).await;
    lost.expect("in time").expect_err("the link is gone");
    drop(stream);
    std::fs::write(path("go"), "").unwrap();
    wait_for("the command ends well", || path("done").exists()).await;
    forgotten(&guest).await;
}
