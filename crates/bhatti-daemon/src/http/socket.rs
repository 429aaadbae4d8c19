//! WebSockets, from the upgrade to the end: a peer that is alive, and never more than one message
//! waiting for it.
//!
//! ```text
//!  upgrade ─▶ Sender ─── messages, pings ──▶ client
//!             Receiver ◀─ messages, pongs ──
//!             Pulse ◀──── when the last pong was
//! ```
//!
//! Promises:
//! - A message that is not taken within ten seconds ends the socket, as does a peer without a
//!   pong for ninety (`a_peer_that_does_not_answer_pings_is_dropped`,
//!   `a_peer_that_does_not_read_is_dropped`), unless it is we who do not listen
//!   (`a_peer_that_is_not_listened_to_is_not_blamed`).
//! - Sockets are counted, no account can have all of them, and shutdown waits for them as for
//!   requests.
//! - The last message before a clean end arrives: what the client still sends is read away
//!   first, since a connection closed over unread bytes is reset.
//!
//! Not here: what the messages mean.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequest, Request};
use axum::response::Response;
use bhatti_lifecycle::Tasks;
use bhatti_types::UserId;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::ApiError;
use super::shares::Shares;

/// The most sockets of one daemon. Each may hold a few hundred KiB on its way.
const MAX_SOCKETS: usize = 512;

/// How many of them may be one account's.
const MAX_SOCKETS_PER_USER: usize = 256;

/// How much of what a client says is kept while nobody has use for it, in bytes; and what each
/// message counts besides its content.
const AHEAD: usize = 64 * 1024;
const AHEAD_EACH: usize = 64;

/// How much is read from the connection at once, in bytes; held as long as the socket.
const READ_BUFFER: usize = 16 * 1024;

/// What closes a socket whose business is done.
pub(super) const NORMAL: u16 = 1000;

/// What is waited for, and how long.
#[derive(Clone, Copy, Debug)]
struct Patience {
    ping: Duration,
    pong: Duration,
    write: Duration,
}

impl Default for Patience {
    /// The figures of the contract.
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(30),
            pong: Duration::from_secs(90),
            write: Duration::from_secs(10),
        }
    }
}

/// All sockets of the daemon.
pub(crate) struct Sockets {
    tasks: Tasks,
    places: Arc<Semaphore>,
    shares: Shares,
    patience: Patience,
}

/// What a route's sockets are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// The subprotocol a client must offer.
    pub(super) protocol: Option<&'static str>,
    /// The largest message it may send, in bytes.
    pub(super) max_message: usize,
}

/// One upgraded connection.
pub(super) struct Socket {
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) pulse: Pulse,
    /// Fires when the daemon is about to stop.
    pub(super) stopping: CancellationToken,
}

/// Why there is nothing more to be said to a peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Gone {
    #[error("the client closed the connection")]
    Closed,
    #[error("the connection to the client broke, or carried what is no message")]
    Broken(#[source] axum::Error),
    #[error("the client did not take a message in time")]
    Slow,
    #[error("the client answered no ping")]
    Silent,
}

impl Sockets {
    /// Sockets that are tasks of `tasks`.
    pub(crate) fn new(tasks: Tasks) -> Self {
        let places = Arc::new(Semaphore::new(MAX_SOCKETS));
        let shares = Shares::new(MAX_SOCKETS_PER_USER);
        Self { tasks, places, shares, patience: Patience::default() }
    }

    /// Takes `request` for an upgrade, if it is one; nothing has happened yet. `user`: whose
    /// socket it will be, if that is known.
    pub(super) async fn prepare(
        &self,
        request: Request,
        kind: Kind,
        user: Option<&UserId>,
    ) -> Result<Upgrade, ApiError> {
        let upgrade = WebSocketUpgrade::from_request(request, &()).await;
        let upgrade = upgrade.map_err(|_| ApiError::NotAnUpgrade)?.protocols(kind.protocol);
        if upgrade.selected_protocol().is_none()
            && let Some(protocol) = kind.protocol
        {
            let text = format!("offer the WebSocket subprotocol {protocol}");
            return Err(ApiError::BadRequest(text));
        }
        let place =
            |of: Arc<Semaphore>| of.try_acquire_owned().map_err(|_| ApiError::TooManySockets);
        let of_user = user.map(|user| place(self.shares.of(user))).transpose()?;
        let places = (of_user, place(Arc::clone(&self.places))?);
        let upgrade = upgrade
            .read_buffer_size(READ_BUFFER)
            .max_message_size(kind.max_message)
            .max_frame_size(kind.max_message);
        Ok(Upgrade { upgrade, places, tasks: self.tasks.clone(), patience: self.patience })
    }
}

/// A request that can become a socket.
pub(super) struct Upgrade {
    upgrade: WebSocketUpgrade,
    places: (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit),
    tasks: Tasks,
    patience: Patience,
}

impl Upgrade {
    /// The answer to the request. `serve` gets the socket, as a task of its own; what fails from
    /// here on has to be told in there.
    pub(super) fn run<F>(self, serve: impl FnOnce(Socket) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { upgrade, places, tasks, patience } = self;
        upgrade.on_upgrade(move |socket| async move {
            tasks.spawn("socket", |stopping| async move {
                serve(Socket::new(socket, patience, stopping)).await;
                drop(places);
            });
        })
    }
}

impl Socket {
    fn new(socket: WebSocket, patience: Patience, stopping: CancellationToken) -> Self {
        let (sink, stream) = socket.split();
        let (heard, last_heard) = watch::channel(Instant::now());
        let listening = Arc::<AtomicBool>::default();
        let sender = Sender { sink: Arc::new(Mutex::new(sink)), patience: patience.write };
        let pulse =
            Pulse { sender: sender.clone(), last_heard, listening: listening.clone(), patience };
        let receiver = Receiver { stream, heard, listening, ahead: VecDeque::new() };
        Self { sender, receiver, pulse, stopping }
    }
}

/// The way to the client. Cheap to clone; messages go out whole and one after the other.
#[derive(Clone)]
pub(super) struct Sender {
    sink: Arc<Mutex<SplitSink<WebSocket, Message>>>,
    patience: Duration,
}

impl Sender {
    /// Sends one message, waiting while the client does not take it. After a failure the socket
    /// is good for nothing.
    pub(super) async fn send(&self, message: Message) -> Result<(), Gone> {
        let sending = async { self.sink.lock().await.send(message).await };
        match timeout(self.patience, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Gone::Broken(error)),
            Err(_) => Err(Gone::Slow),
        }
    }

    /// Says that this is the end, with `code`, and waits until the client has understood.
    pub(super) async fn close(self, mut receiver: Receiver, code: u16, reason: &'static str) {
        let frame = CloseFrame { code, reason: reason.into() };
        if self.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
        let understood = async { while let Ok(Some(_)) = receiver.next().await {} };
        // A client that does not answer has had its time.
        timeout(self.patience, understood).await.unwrap_or_default();
    }
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Text(String),
    Binary(Bytes),
}

impl Incoming {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// The way from the client.
pub(super) struct Receiver {
    stream: SplitStream<WebSocket>,
    heard: watch::Sender<Instant>,
    /// Somebody waits for what the client says.
    listening: Arc<AtomicBool>,
    /// What it said before anybody had use for it.
    ahead: VecDeque<Incoming>,
}

impl Receiver {
    /// The next message; `None` once the client has closed or gone. Cancel-safe.
    ///
    /// Pings are answered, and pongs noticed, only while somebody waits here or in
    /// [`Receiver::gone`].
    pub(super) async fn next(&mut self) -> Result<Option<Incoming>, Gone> {
        match self.ahead.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.read().await,
        }
    }

    /// Resolves when the client is gone. Cancel-safe.
    ///
    /// For as long as there is no use for what it says: that is kept for [`Receiver::next`]. One
    /// that says more than [`AHEAD`] waits, and its end is noticed later.
    pub(super) async fn gone(&mut self) -> Gone {
        let weight = |message: &Incoming| AHEAD_EACH + message.len();
        let mut held: usize = self.ahead.iter().map(weight).sum();
        while held < AHEAD {
            match self.read().await {
                Ok(Some(message)) => {
                    held += weight(&message);
                    self.ahead.push_back(message);
                }
                Ok(None) => return Gone::Closed,
                Err(gone) => return gone,
            }
        }
        pending().await
    }

    async fn read(&mut self) -> Result<Option<Incoming>, Gone> {
        let Self { stream, heard, listening, .. } = self;
        let _until_dropped = Listening::new(listening);
        loop {
            let Some(message) = stream.next().await else { return Ok(None) };
            match message.map_err(Gone::Broken)? {
                Message::Text(text) => return Ok(Some(Incoming::Text(text.as_str().to_owned()))),
                Message::Binary(bytes) => return Ok(Some(Incoming::Binary(bytes))),
                Message::Pong(_) => {
                    heard.send_replace(Instant::now());
                }
                Message::Ping(_) => {}
                Message::Close(_) => return Ok(None),
            }
        }
    }
}

/// Says that somebody listens, until it is dropped.
struct Listening<'a>(&'a AtomicBool);

impl<'a> Listening<'a> {
    fn new(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Finds out that a client is gone without having said so.
pub(super) struct Pulse {
    sender: Sender,
    last_heard: watch::Receiver<Instant>,
    listening: Arc<AtomicBool>,
    patience: Patience,
}

impl Pulse {
    /// Sends pings; resolves when the client has answered none of them for too long. What it
    /// cannot be heard to answer, because nobody listens, is not held against it.
    pub(super) async fn lost(&self) -> Gone {
        loop {
            sleep(self.patience.ping).await;
            let silent = self.last_heard.borrow().elapsed() >= self.patience.pong;
            if silent && self.listening.load(Ordering::Relaxed) {
                return Gone::Silent;
            }
            if let Err(gone) = self.sender.send(Message::Ping(Bytes::new())).await {
                return gone;
            }
        }
    }
}

#[cfg(test)]
mod tests;
