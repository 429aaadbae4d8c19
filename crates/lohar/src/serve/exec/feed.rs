//! From the host to a command's stdin, and the host's wish to kill it.
//!
//! The host says that in two ways: with a message, and by giving the stream up, which overtakes
//! whatever is queued before it. A stream that ends because the link did says nothing: the command
//! goes on without a host.
//!
//! Messages are read on while the command does not read its stdin, or a kill would wait behind
//! input that nobody takes; as far as [`QUEUE`] reaches.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, ErrorKind};
use std::time::Duration;

use bhatti_wire::codec;
use bhatti_wire::message::{ExecInput, ExecInputEvent as Event, MAX_CHUNK};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::time::sleep;

/// Bytes queued for a command that does not read before the host is held up. One window of the
/// link: a host that has written that much ahead can still say that it wants a kill.
const QUEUE: usize = bhatti_wire::mux::WINDOW;

/// Room for the largest chunk and the bytes that say it is one.
const MAX_INPUT: usize = MAX_CHUNK + 64;

/// Memory set aside for input of which nothing has come yet; afterwards it is a whole message.
const STEP: usize = 16 * 1024;

/// How often to look whether the host gave up while the queue is full.
const LOOK: Duration = Duration::from_millis(200);

/// Passes input on until the command has ended, which is when the caller drops this.
///
/// The end of the input, good or bad, ends stdin; only a stream given up by the host also kills.
pub(super) async fn feed<R>(mut input: R, stdin: Option<pipe::Sender>, kill: &Notify) -> Infallible
where
    R: AsyncRead + Unpin,
{
    let mut stdin = Stdin { pipe: stdin, queue: BytesMut::new(), ended: false };
    let mut received = BytesMut::new();
    let mut hearing = Hearing::Messages;
    loop {
        if stdin.queue.len() < QUEUE {
            hearing = take_messages(hearing, &mut received, &mut stdin, kill);
        }
        let full = stdin.queue.len() >= QUEUE;
        let news = async {
            if full {
                given_up(&mut input).await
            } else {
                received.reserve(if received.is_empty() { STEP } else { MAX_INPUT });
                end_of(&input.read_buf(&mut received).await)
            }
        };
        tokio::select! {
            end = news, if hearing != Hearing::Nothing => {
                if let Some(end) = end {
                    hearing = Hearing::Nothing;
                    stdin.end();
                    if end == End::GivenUp {
                        kill.notify_one();
                    }
                }
            }
            () = stdin.write_some() => {}
        }
    }
}

/// What to make of further input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hearing {
    Messages,
    /// Bytes were no message. The rest means nothing, but its end does.
    Noise,
    /// It has ended.
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Half-closed, or lost with the link.
    Silent,
    /// The host does not want this command any more.
    GivenUp,
}

fn end_of(outcome: &io::Result<usize>) -> Option<End> {
    match outcome {
        Ok(1..) => None,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(End::GivenUp),
        Ok(0) | Err(_) => Some(End::Silent),
    }
}

/// Acts on the whole messages in `received`, as many as the queue takes.
fn take_messages(
    hearing: Hearing,
    received: &mut BytesMut,
    stdin: &mut Stdin,
    kill: &Notify,
) -> Hearing {
    if hearing == Hearing::Noise {
        received.clear();
    }
    while hearing != Hearing::Noise && stdin.queue.len() < QUEUE {
        match codec::decode::<ExecInput>(received, MAX_INPUT) {
            Ok(Some(message)) => match message.event {
                Some(Event::Data(bytes)) => stdin.push(&bytes),
                Some(Event::Eof(_)) => stdin.end(),
                Some(Event::Kill(_)) => kill.notify_one(),
                // Something this agent does not know.
                None => {}
            },
            Ok(None) => break,
            Err(_) => {
                stdin.end();
                received.clear();
                return Hearing::Noise;
            }
        }
    }
    hearing
}

/// Resolves when the host has given the stream up, without taking a byte from it.
///
/// Nobody is woken for that while there are bytes to read, so it looks from time to time.
async fn given_up<R: AsyncRead + Unpin>(input: &mut R) -> Option<End> {
    loop {
        sleep(LOOK).await;
        // Reading nothing tells a failure, and no end: bytes may be before it.
        let outcome = input.read(&mut []).await.map(|_| 1);
        if end_of(&outcome) == Some(End::GivenUp) {
            return Some(End::GivenUp);
        }
    }
}

/// The command's stdin and what waits for it.
struct Stdin {
    /// `None` once it is closed, or if there never was one.
    pipe: Option<pipe::Sender>,
    queue: BytesMut,
    /// Nothing comes after the queue.
    ended: bool,
}

impl Stdin {
    fn push(&mut self, bytes: &[u8]) {
        // Input for a stdin that nobody reads any more is dropped.
        if self.pipe.is_some() && !self.ended {
            self.queue.extend_from_slice(bytes);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if self.queue.is_empty() {
            self.pipe = None;
        }
    }

    /// Writes what the pipe takes; never resolves if nothing waits. Cancel-safe.
    async fn write_some(&mut self) {
        let Some(pipe) = self.pipe.as_mut().filter(|_| !self.queue.is_empty()) else {
            return pending().await;
        };
        match pipe.write(&self.queue).await {
            Ok(written) => self.queue.advance(written),
            Err(_) => {
                self.pipe = None;
                self.queue.clear();
            }
        }
        if self.ended && self.queue.is_empty() {
            self.pipe = None;
        }
    }
}
