//! Both ends in one process, and a deadline for everything.

use std::future::Future;
use std::time::Duration;

use bhatti_link::{Link, LinkEnd, Mode, Stream, connect, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Fails the test instead of hanging it.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("happens soon")
}

/// A guest whose accepted streams come out of the receiver.
pub(crate) fn guest(io: DuplexStream) -> mpsc::UnboundedReceiver<Stream> {
    let (accepted, streams) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        serve(io, move |stream| drop(accepted.send(stream))).await.unwrap();
    });
    streams
}

pub(crate) struct Pair {
    pub(crate) link: Link,
    pub(crate) accepted: mpsc::UnboundedReceiver<Stream>,
    pub(crate) driver: JoinHandle<LinkEnd>,
}

/// A host and a guest that have shaken hands.
pub(crate) async fn pair() -> Pair {
    let (host_io, guest_io) = duplex(64 * 1024);
    let accepted = guest(guest_io);
    let (link, driver) = soon(connect(host_io, [1; 16], Mode::FirstBoot)).await.unwrap();
    Pair { link, accepted, driver: tokio::spawn(driver) }
}

/// A stream with both its ends.
pub(crate) async fn stream(pair: &mut Pair) -> (Stream, Stream) {
    let host = pair.link.open().unwrap();
    let guest = soon(pair.accepted.recv()).await.unwrap();
    (host, guest)
}

/// Sends everything back until the end, then half-closes.
pub(crate) async fn echo(stream: Stream) {
    let mut buffer = vec![0; 64 * 1024];
    let mut stream = stream;
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            n => stream.write_all(&buffer[..n]).await.unwrap(),
        }
    }
    stream.shutdown().await.unwrap();
}

/// Bytes that show it when two of them change places.
pub(crate) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}
