//! A stream joined to a port of this machine's loopback.

use std::time::Duration;

use bhatti_link::read_message;
use bhatti_wire::message::{Dial, ErrorKind, Operation, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::{Host, PATIENCE, guest, open};

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("happens soon")
}

/// A program that listens, and a stream that was dialled to it.
async fn joined(address: &str) -> (Host, TcpStream) {
    let listener = TcpListener::bind(address).await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let mut host = open(&guest(), Some(Operation::Dial(Dial { port }))).await;
    let (program, _) = soon(listener.accept()).await.unwrap();
    let reply: Reply = soon(read_message(&mut host.from)).await.unwrap().unwrap();
    assert_eq!(reply.failure, None);
    (host, program)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (mut host, mut program) = joined(address).await;
        host.to.write_all(b"ask").await.unwrap();
        host.to.shutdown().await.unwrap();
        let mut asked = String::new();
        soon(program.read_to_string(&mut asked)).await.unwrap();
        assert_eq!(asked, "ask");
        let answer: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 7) as u8).collect();
        let sent = answer.clone();
        let sending = tokio::spawn(async move { program.write_all(&sent).await });
        let mut heard = Vec::new();
        soon(host.from.read_to_end(&mut heard)).await.unwrap();
        assert!(heard == answer, "{address}");
        sending.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_refused_at_once() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        u32::from(listener.local_addr().unwrap().port())
    };
    for (port, kind) in [
        (port, ErrorKind::Refused),
        (0, ErrorKind::Invalid),
        (65_536, ErrorKind::Invalid),
        (u32::MAX, ErrorKind::Invalid),
    ] {
        let host = open(&guest(), Some(Operation::Dial(Dial { port }))).await;
        let reply = timeout(Duration::from_secs(5), host.reply()).await.expect("at once");
        assert_eq!(reply.failure.unwrap().kind, i32::from(kind), "{port}");
    }
}

#[tokio::test]
async fn a_program_that_takes_no_more_is_still_heard() {
    let (mut host, mut program) = joined("127.0.0.1:0").await;
    // More than anybody on the way holds.
    let sending = tokio::spawn(async move {
        let chunk = vec![1; 1 << 20];
        while host.to.write_all(&chunk).await.is_ok() {}
    });
    program.read_exact(&mut [0; 10]).await.unwrap();
    program.write_all(b"too large").await.unwrap();
    // With bytes unread, so it resets the connection.
    drop(program);
    let mut heard = String::new();
    soon(host.from.read_to_string(&mut heard)).await.ok();
    assert_eq!(heard, "too large");
    drop(host.from);
    soon(sending).await.unwrap();
}

#[tokio::test]
async fn a_host_that_goes_takes_the_connection_along() {
    let (host, mut program) = joined("127.0.0.1:0").await;
    drop(host);
    let end = soon(program.read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}
