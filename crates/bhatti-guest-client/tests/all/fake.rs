//! An agent whose behaviour each test writes itself, on the other end of a real link.

use std::time::Duration;

use bhatti_guest_client::Guest;
use bhatti_link::{Link, Mode, Stream, connect, read_message, serve, write_message};
use bhatti_wire::message::{
    ErrorKind, ExecOutput, ExecOutputEvent, Failure, Operation, Request, Started,
};
use tokio::io::{AsyncWriteExt, duplex};
use tokio::task::JoinHandle;

/// Fails the test instead of hanging it. Long, because paused clocks run ahead.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(600), future).await.expect("happens soon")
}

pub(crate) struct Fake {
    pub(crate) guest: Guest,
    pub(crate) link: Link,
    pub(crate) driver: JoinHandle<()>,
}

/// A guest that handles each stream with `handler`.
pub(crate) async fn fake<F>(handler: impl Fn(Operation, Stream) -> F + Send + 'static) -> Fake
where
    F: Future<Output = ()> + Send + 'static,
{
    let (host_io, guest_io) = duplex(256 * 1024);
    let (accepted, mut streams) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move { serve(guest_io, move |stream| drop(accepted.send(stream))).await });
    tokio::spawn(async move {
        while let Some(mut stream) = streams.recv().await {
            let request: Request = read_message(&mut stream).await.unwrap().unwrap();
            tokio::spawn(handler(request.operation.unwrap(), stream));
        }
    });
    let (link, driver) = soon(connect(host_io, [4; 16], Mode::FirstBoot)).await.unwrap();
    let driver = tokio::spawn(async move { drop(driver.await) });
    Fake { guest: Guest::new(link.clone()), link, driver }
}

pub(crate) async fn say(stream: &Stream, event: ExecOutputEvent) {
    write_message(stream, &ExecOutput { event: Some(event) }).await.unwrap();
}

pub(crate) async fn started(stream: &Stream) {
    say(stream, ExecOutputEvent::Started(Started { pid: 42, output_file: String::new() })).await;
}

pub(crate) async fn half_close(stream: &Stream) {
    let mut writer = stream;
    writer.shutdown().await.unwrap();
}

pub(crate) fn failure(kind: ErrorKind, message: &str) -> Failure {
    Failure { kind: kind.into(), message: message.to_owned() }
}
