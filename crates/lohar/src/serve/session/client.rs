//! The one who is attached.

use std::io;
use std::time::Duration;

use bhatti_link::MessageReader;
use bhatti_wire::codec;
use bhatti_wire::message::{MAX_CHUNK, SessionInput, SessionOutput, SessionOutputEvent as Event};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::{sleep, timeout};

/// Room for the largest chunk and the bytes that say it is one.
const MAX_INPUT: usize = MAX_CHUNK + 64;

/// How long somebody who is to hear the last of a session may take for the next part of it.
const FAREWELL: Duration = Duration::from_secs(60);

/// How often to look whether a client is still there while it is not listened to.
const LOOK: Duration = Duration::from_millis(200);

/// What a client comes on.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// A client's stream.
pub(super) type Io = Box<dyn Duplex>;

/// Its two directions, apart, so that one can be waited for without the other.
pub(super) struct Client {
    pub(super) hears: Outbox,
    pub(super) says: Inbox,
    /// Its first word about its size makes the program paint itself anew.
    pub(super) is_new: bool,
}

impl Client {
    pub(super) fn new(io: Io) -> Self {
        let (read, write) = split(io);
        Self {
            hears: Outbox { io: write, pending: BytesMut::new() },
            says: Inbox { messages: MessageReader::new(read, MAX_INPUT) },
            is_new: true,
        }
    }

    /// Sends the last event and everything before it, to somebody who may be slow.
    pub(super) fn farewell(mut self, last: Event) {
        self.hears.push(last);
        // Ends by itself: with the client, or with its patience.
        drop(tokio::spawn(async move {
            while !self.hears.pending.is_empty() {
                if !matches!(timeout(FAREWELL, self.hears.flush_some()).await, Ok(Ok(()))) {
                    return;
                }
            }
            self.hears.io.shutdown().await.ok();
        }));
    }
}

/// To the client.
pub(super) struct Outbox {
    io: WriteHalf<Io>,
    /// Whole messages, of which the beginning may already be on its way.
    pending: BytesMut,
}

impl Outbox {
    /// Queues an event.
    pub(super) fn push(&mut self, event: Event) {
        // Never too long: events are at most a scrollback or a chunk.
        codec::encode(&SessionOutput { event: Some(event) }, &mut self.pending).ok();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends as much as the client takes. Cancel-safe.
    pub(super) async fn flush_some(&mut self) -> io::Result<()> {
        let written = self.io.write(&self.pending).await?;
        self.pending.advance(written);
        Ok(())
    }

    /// Resolves when the client is gone, while nothing is said to it.
    ///
    /// Nobody is woken for that, so it looks from time to time.
    pub(super) async fn gone(&mut self) {
        loop {
            sleep(LOOK).await;
            if self.io.write(&[]).await.is_err() {
                return;
            }
        }
    }
}

/// From the client.
pub(super) struct Inbox {
    messages: MessageReader<ReadHalf<Io>>,
}

impl Inbox {
    /// What it says next; `None` once it has nothing more to say. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<SessionInput> {
        // What is no message is the end too.
        self.messages.next().await.ok().flatten()
    }
}
