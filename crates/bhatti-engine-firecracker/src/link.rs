//! The host's end of the link: a vsock connection that may not be there yet.
//!
//! The guest can be reached once it runs and its agent listens; who opens a link must not have to wait
//! for that, because a machine's link is opened while it still stands. So the carrier is given out at
//! once, and a task makes the connection behind it, again and again until the guest takes it.
//!
//! A guest that was saved or restored drops all its connections the moment it goes on, and tells nobody.
//! One made while it stood would be among them; so none is made before it goes on, and one counts only
//! when the agent has sent its first byte, which it does unasked.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bhatti_engine::Private;
use bhatti_vmm::link::close_both;
use bhatti_vmm::machine_dir::MachineDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::config::{AGENT_PORT, VSOCK};

/// After a refusal, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(20));
/// How long guest and agent may take until the agent's first byte, at first and at most. A connection
/// that was dropped never says anything, and the first one after a restore mostly is: so all of the first
/// is part of each clone's start. A guest on a busy host may be slow, and is given more each time.
const FIRST_BYTE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(16));
/// `OK 1073741824` and a line's end.
const MOST_ANSWER: usize = 32;

/// The carrier given out. Closing it is closing for everybody.
pub(crate) struct Link(Arc<Shared>);

/// What lets the next link close the former one.
#[derive(Clone)]
pub(crate) struct Closer(Arc<Shared>);

struct Shared(Mutex<Inner>);

struct Inner {
    stage: Stage,
    /// Who makes the connection.
    connecting: Option<AbortHandle>,
    /// Who waits for the connection: a reader and a writer, in maybe two tasks.
    waiting: Vec<Waker>,
}

enum Stage {
    Connecting,
    /// The first byte is there until it has been read.
    Up(UnixStream, Option<u8>),
    Closed,
}

/// Opens a link to the agent of the machine in `dir`; `runs` tells whether it does now.
pub(crate) fn open(
    dir: Arc<MachineDir>,
    owner: Private,
    runs: watch::Receiver<bool>,
) -> (Link, Closer) {
    let inner = Inner { stage: Stage::Connecting, connecting: None, waiting: Vec::new() };
    let shared = Arc::new(Shared(Mutex::new(inner)));
    let task = Arc::clone(&shared);
    let connecting = tokio::spawn(async move {
        // Whoever cannot reach the socket finds no machine there.
        let connected = connect(&dir, owner, runs).await;
        let stage =
            connected.map_or(Stage::Closed, |(stream, first)| Stage::Up(stream, Some(first)));
        task.settle(stage);
    });
    shared.lock().connecting = Some(connecting.abort_handle());
    (Link(Arc::clone(&shared)), Closer(shared))
}

async fn connect(
    dir: &MachineDir,
    owner: Private,
    mut runs: watch::Receiver<bool>,
) -> io::Result<(UnixStream, u8)> {
    let (mut pause, mut patience) = (PAUSE.0, FIRST_BYTE.0);
    loop {
        runs.wait_for(|runs| *runs).await.map_err(io::Error::other)?;
        let stream = dir.connect(VSOCK, owner).await?;
        // The VMM hangs up if the guest does not listen. It does nothing if the guest never answers, which
        // one does that takes the request for part of a connection of its former life.
        let answered = async {
            let mut stream = greet(stream).await?;
            let first = stream.read_u8().await?;
            Ok::<_, io::Error>((stream, first))
        };
        match timeout(patience, answered).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(_)) => {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
            // That was a pause. Whoever refuses next has just begun to: a guest whose kernel is up, and
            // whose agent will be in a moment.
            Err(_) => (pause, patience) = (PAUSE.0, (patience * 2).min(FIRST_BYTE.1)),
        }
    }
}

/// Asks for the agent's port, and waits until the guest has taken the connection.
async fn greet(mut stream: UnixStream) -> io::Result<UnixStream> {
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(MOST_ANSWER);
    // Byte by byte: what follows the line is the guest's.
    while answer.last() != Some(&b'\n') {
        if answer.len() == MOST_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        answer.push(stream.read_u8().await?);
    }
    if answer.starts_with(b"OK ") { Ok(stream) } else { Err(io::ErrorKind::InvalidData.into()) }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is there, or never will be.
    fn settle(&self, stage: Stage) {
        let mut inner = self.lock();
        if matches!(inner.stage, Stage::Connecting) {
            inner.stage = stage;
        }
        inner.waiting.drain(..).for_each(Waker::wake);
    }

    fn close(&self) {
        let mut inner = self.lock();
        // A connection that came too late would be the guest's newest, and push out a better one.
        if let Some(connecting) = inner.connecting.take() {
            connecting.abort();
        }
        if let Stage::Up(stream, _) = &inner.stage {
            close_both(stream);
        }
        drop(inner);
        self.settle(Stage::Closed);
    }

    /// Does something with the connection; `closed` is the answer if there is none any more.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        closed: T,
        work: impl FnOnce(Pin<&mut UnixStream>, &mut Option<u8>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let mut inner = self.lock();
        match &mut inner.stage {
            Stage::Up(stream, first) => work(Pin::new(stream), first, cx),
            Stage::Closed => Poll::Ready(closed),
            Stage::Connecting => {
                if !inner.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    inner.waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl Closer {
    /// Ends the link in both directions, whoever has it.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn gone<T>() -> io::Result<T> {
    Err(io::ErrorKind::BrokenPipe.into())
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll(cx, Ok(()), |stream, first, cx| match first.take_if(|_| buf.remaining() > 0) {
            Some(byte) => {
                buf.put_slice(&[byte]);
                Poll::Ready(Ok(()))
            }
            None => stream.poll_read(cx, buf),
        })
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll(cx, gone(), |stream, _, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll(cx, gone(), |stream, _, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll(cx, Ok(()), |stream, _, cx| stream.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll(cx, gone(), |stream, _, cx| stream.poll_write_vectored(cx, bufs))
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use tokio::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(600);

    /// A machine's directory with somebody who listens where a VMM does.
    struct Place {
        _scratch: tempfile::TempDir,
        dir: Arc<MachineDir>,
        listener: UnixListener,
        runs: watch::Sender<bool>,
    }

    impl Place {
        fn new(runs: bool) -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(scratch.path().join(VSOCK)).unwrap();
            let dir = MachineDir::open(Utf8Path::from_path(scratch.path()).unwrap()).unwrap();
            let runs = watch::Sender::new(runs);
            Self { _scratch: scratch, dir: Arc::new(dir), listener, runs }
        }

        fn open(&self) -> (Link, Closer) {
            let owner = self.dir.owner().unwrap();
            open(Arc::clone(&self.dir), owner, self.runs.subscribe())
        }

        /// The next connection, and what it asks for.
        async fn asked(&self) -> UnixStream {
            let (mut stream, _) = timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
            let mut asked = [0; 11];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"CONNECT 52\n");
            stream
        }
    }

    async fn read(link: &mut Link, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        timeout(PATIENCE, link.read_exact(&mut bytes)).await.unwrap()?;
        Ok(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_is_asked_again() {
        let place = Place::new(true);
        let (mut link, _closer) = place.open();
        // One whose guest says nothing, one that breaks off, one whose agent says nothing.
        let mute = place.asked().await;
        drop(place.asked().await);
        let mut silent = place.asked().await;
        silent.write_all(b"OK 1\n").await.unwrap();
        let mut good = place.asked().await;
        good.write_all(b"OK 1073741824\nhello").await.unwrap();
        assert_eq!(read(&mut link, 5).await.unwrap(), b"hello", "the first byte is not lost");
        link.write_all(b"you").await.unwrap();
        let mut heard = [0; 3];
        good.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"you");
        drop((mute, silent));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_while_the_machine_stands() {
        let place = Place::new(false);
        let (mut link, _closer) = place.open();
        let early = timeout(PATIENCE, place.listener.accept()).await;
        assert!(early.is_err(), "the connection would be lost when it goes on");
        place.runs.send_replace(true);
        let mut good = place.asked().await;
        good.write_all(b"OK 1\nx").await.unwrap();
        assert_eq!(read(&mut link, 1).await.unwrap(), b"x");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_link_is_closed_for_everybody_and_asks_no_more() {
        let place = Place::new(true);
        let (mut link, closer) = place.open();
        let mut good = place.asked().await;
        good.write_all(b"OK 1\nx").await.unwrap();
        assert_eq!(read(&mut link, 1).await.unwrap(), b"x");
        closer.close();
        let end = read(&mut link, 1).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(good.read(&mut [0]).await.unwrap(), 0, "the guest learns of it");
        link.write_all(b"x").await.unwrap_err();

        // Before there is a connection, by who has it.
        let (link, _closer) = place.open();
        let mut asking = place.asked().await;
        drop(link);
        assert_eq!(asking.read(&mut [0]).await.unwrap(), 0);
        assert!(timeout(PATIENCE, place.listener.accept()).await.is_err(), "it asks no more");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_machine_there_is_no_link() {
        let place = Place::new(true);
        place.dir.remove(VSOCK).unwrap();
        let (mut link, _closer) = place.open();
        let end = read(&mut link, 1).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);

        let place = Place::new(false);
        let (mut link, _closer) = place.open();
        drop(place.runs);
        let end = read(&mut link, 1).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof, "its machine is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_end_is_given_up() {
        let place = Place::new(true);
        let (mut link, _closer) = place.open();
        let mut hostile = place.asked().await;
        hostile.write_all(&[b'x'; 4096]).await.ok();
        let mut good = place.asked().await;
        good.write_all(b"OK 1\nx").await.unwrap();
        assert_eq!(read(&mut link, 1).await.unwrap(), b"x");
    }
}
