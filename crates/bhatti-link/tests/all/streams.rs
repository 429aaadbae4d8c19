//! What a stream promises.

use std::io::ErrorKind;
use std::time::Duration;

use bhatti_link::{LinkEnd, LinkError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::support::{Pair, echo, pair, pattern, soon, stream};

#[tokio::test]
async fn many_streams_at_once_deliver_their_own_bytes() {
    let Pair { link, mut accepted, .. } = pair().await;
    tokio::spawn(async move {
        while let Some(stream) = accepted.recv().await {
            tokio::spawn(echo(stream));
        }
    });
    let tasks: Vec<_> = (0..40u32)
        .map(|n| {
            let stream = link.open().unwrap();
            tokio::spawn(async move {
                let sent = pattern(50_000 * (n as usize % 9) + n as usize, n);
                let (mut reader, mut writer) = tokio::io::split(stream);
                let to_send = sent.clone();
                let writing = tokio::spawn(async move {
                    writer.write_all(&to_send).await.unwrap();
                    writer.shutdown().await.unwrap();
                    writer
                });
                let mut got = Vec::new();
                reader.read_to_end(&mut got).await.unwrap();
                writing.await.unwrap();
                assert!(got == sent, "stream {n} differs");
            })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap();
    }
}

#[tokio::test]
async fn half_close_leaves_the_other_direction_open() {
    let mut pair = pair().await;
    let (mut host, mut guest) = stream(&mut pair).await;
    host.write_all(b"question").await.unwrap();
    host.shutdown().await.unwrap();
    let mut question = String::new();
    soon(guest.read_to_string(&mut question)).await.unwrap();
    guest.write_all(b"answer").await.unwrap();
    guest.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(host.read_to_string(&mut answer)).await.unwrap();
    assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    assert_eq!(host.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn dropping_without_half_close_resets() {
    let mut pair = pair().await;
    let (host, mut guest) = stream(&mut pair).await;
    drop(host);
    let error = soon(guest.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(guest.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_was_queued_before_half_close_and_drop_arrives() {
    let mut pair = pair().await;
    let (mut host, mut guest) = stream(&mut pair).await;
    let sent = pattern(200_000, 3);
    soon(host.write_all(&sent)).await.unwrap();
    host.shutdown().await.unwrap();
    drop(host);
    let mut got = Vec::new();
    soon(guest.read_to_end(&mut got)).await.unwrap();
    assert!(got == sent);
    // Nobody reads the answer, and the guest is told rather than left to wait for credit.
    let long = vec![0; 1 << 20];
    let error = soon(guest.write_all(&long)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reader_that_stands_still_holds_up_nobody_else() {
    let mut pair = pair().await;
    let (mut stuck, _unread) = stream(&mut pair).await;
    let (mut host, guest) = stream(&mut pair).await;
    tokio::spawn(echo(guest));
    let filler = tokio::spawn(async move { stuck.write_all(&vec![0; 4 << 20]).await });
    let sent = pattern(3 << 20, 5);
    let mut got = vec![0; sent.len()];
    for (to_send, into) in sent.chunks(100_000).zip(got.chunks_mut(100_000)) {
        soon(host.write_all(to_send)).await.unwrap();
        soon(host.read_exact(into)).await.unwrap();
    }
    assert!(got == sent);
    assert!(!filler.is_finished(), "a full window must hold its writer back");
}

#[tokio::test]
async fn losing_the_carrier_fails_every_stream_but_keeps_what_arrived() {
    let mut pair = pair().await;
    let (mut host, mut guest) = stream(&mut pair).await;
    host.write_all(b"last words").await.unwrap();
    let mut first = [0; 4];
    soon(guest.read_exact(&mut first)).await.unwrap();
    pair.driver.abort();
    soon(pair.link.closed()).await;
    assert!(pair.link.is_closed());
    assert!(matches!(pair.link.open(), Err(LinkError::Closed)));
    assert_eq!(soon(host.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let mut rest = Vec::new();
    let error = soon(guest.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!((error.kind(), rest.as_slice()), (ErrorKind::ConnectionAborted, &b" words"[..]));
}

#[tokio::test]
async fn closing_the_link_ends_its_driver() {
    let pair = pair().await;
    pair.link.close();
    assert!(matches!(soon(pair.driver).await.unwrap(), LinkEnd::Closed));
}

#[tokio::test]
async fn the_number_of_streams_is_bounded_and_recovers() {
    let Pair { link, accepted: _accepted, driver: _driver } = pair().await;
    let mut streams: Vec<_> = (0..512).map(|_| link.open().unwrap()).collect();
    assert!(matches!(link.open(), Err(LinkError::TooManyStreams)));
    streams.pop();
    link.open().unwrap();
}

#[tokio::test]
async fn an_interrupted_read_loses_nothing() {
    let mut pair = pair().await;
    let (mut host, mut guest) = stream(&mut pair).await;
    for byte in 0..50u8 {
        let interrupted = timeout(Duration::ZERO, guest.read_u8()).await;
        assert!(interrupted.is_err(), "nothing was sent yet");
        host.write_u8(byte).await.unwrap();
        assert_eq!(soon(guest.read_u8()).await.unwrap(), byte);
    }
}
