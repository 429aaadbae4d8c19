//! Raw bytes on a stream, in one direction: contents of files, archives.

use std::time::Duration;

use bhatti_link::{MessageReader, Stream};
use bhatti_wire::message::{ArchiveReply, Failure, Reply};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};

use crate::GuestError;
use crate::guest::{MAX_REPLY, within};

/// How long a guest may be without giving or taking a byte. Its disk may be slow, and the host's
/// busy.
const STALL: Duration = Duration::from_secs(120);

/// The most bytes given out at a time.
const CHUNK: usize = 128 * 1024;

/// Bytes on their way out of the guest. Dropping it ends the transfer.
#[derive(Debug)]
pub struct Download {
    stream: Stream,
    /// What is still to come, if that was said.
    left: Option<u64>,
    buffer: BytesMut,
    ended: bool,
}

impl Download {
    /// What `stream` brings: exactly `length` bytes, or what comes before its half-close.
    pub(crate) fn new(stream: Stream, length: Option<u64>) -> Self {
        Self { stream, left: length, buffer: BytesMut::new(), ended: false }
    }

    /// The next bytes; `None` when all have come. A transfer that breaks off, or is shorter than
    /// was said, is an error. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, GuestError> {
        if self.ended || self.left == Some(0) {
            return Ok(None);
        }
        let room = self.left.map_or(CHUNK, |left| usize::try_from(left).unwrap_or(CHUNK));
        self.buffer.reserve(room.min(CHUNK));
        let mut stream = (&mut self.stream).take(room.min(CHUNK) as u64);
        let n = within(STALL, "go on sending", async {
            stream.read_buf(&mut self.buffer).await.map_err(GuestError::reading)
        })
        .await?;
        self.ended = n == 0;
        match (&mut self.left, n) {
            (Some(_), 0) => return Err(GuestError::LinkLost(None)),
            (None, 0) => return Ok(None),
            (Some(left), n) => *left -= n as u64,
            (None, _) => {}
        }
        Ok(Some(self.buffer.split().freeze()))
    }
}

/// The one answer to an upload.
pub(crate) trait Verdict: prost::Message + Default {
    fn take_failure(&mut self) -> Option<Failure>;
}

impl Verdict for Reply {
    fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }
}

impl Verdict for ArchiveReply {
    fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }
}

/// Bytes on their way into the guest. Dropped before it was finished, the guest sees its stream
/// reset, and knows that it has not got everything.
#[derive(Debug)]
pub(crate) struct Upload {
    content: WriteHalf<Stream>,
    answers: MessageReader<ReadHalf<Stream>>,
}

impl Upload {
    pub(crate) fn new(stream: Stream) -> Self {
        let (answers, content) = split(stream);
        Self { content, answers: MessageReader::new(answers, MAX_REPLY) }
    }

    /// Sends all of `bytes`, waiting while the guest does not take them.
    ///
    /// A guest that gives up half-way (its disk is full) says why, and that is the error. Not
    /// cancel-safe, and of no use after an error.
    pub(crate) async fn write<V: Verdict>(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        let Self { content, answers } = self;
        within(STALL, "take what is sent", async {
            tokio::select! {
                biased;
                verdict = answers.next::<V>() => Err(early(verdict)),
                sent = content.write_all(bytes) => match sent {
                    Ok(()) => Ok(()),
                    // It may have said why before it hung up.
                    Err(_) => Err(early(answers.next::<V>().await)),
                },
            }
        })
        .await
    }

    /// Says that this was all, and waits for what the guest makes of it.
    pub(crate) async fn finish<V: Verdict>(mut self, patience: Duration) -> Result<V, GuestError> {
        within(patience, "put the files on its disk", async {
            // If nobody listens any more, the answer says why, or its absence that.
            let closed = self.content.shutdown().await;
            match self.answers.next::<V>().await.map_err(GuestError::reading)? {
                Some(mut verdict) => match verdict.take_failure() {
                    Some(failure) => Err(failure.into()),
                    None => closed.map_err(GuestError::writing).map(|()| verdict),
                },
                None => Err(GuestError::LinkLost(None)),
            }
        })
        .await
    }
}

/// What an answer means that comes before everything was sent.
fn early<V: Verdict>(verdict: std::io::Result<Option<V>>) -> GuestError {
    match verdict {
        Ok(Some(mut verdict)) => match verdict.take_failure() {
            Some(failure) => failure.into(),
            None => GuestError::Protocol("a transfer finished before its content"),
        },
        Ok(None) => GuestError::LinkLost(None),
        Err(error) => GuestError::reading(error),
    }
}
