//! Messages on any byte stream.

use std::io;

use bhatti_wire::codec::{self, CodecError, PREFIX_LEN};
use bhatti_wire::message::MAX_MESSAGE;
use bytes::BytesMut;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most memory set aside for a body before any of it has arrived.
const STEP: usize = 16 * 1024;

/// Reads one message of at most [`MAX_MESSAGE`] bytes and not a byte more. `None`: the stream
/// ended between messages.
///
/// Not cancel-safe; [`MessageReader`] is. An end inside a message is
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof), bytes that are no message are
/// [`InvalidData`](io::ErrorKind::InvalidData).
pub async fn read_message<M: Message + Default>(
    mut io: impl AsyncRead + Unpin,
) -> io::Result<Option<M>> {
    let mut prefix = [0; PREFIX_LEN];
    let first = io.read(&mut prefix).await?;
    if first == 0 {
        return Ok(None);
    }
    io.read_exact(&mut prefix[first..]).await?;
    let len = codec::body_len(prefix, MAX_MESSAGE).map_err(invalid)?;
    let mut body = BytesMut::new();
    while body.len() < len {
        let missing = len - body.len();
        body.reserve(missing.min(STEP.max(body.len())));
        if (&mut io).take(missing as u64).read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    codec::decode_body(body.freeze()).map(Some).map_err(invalid)
}

/// Writes one message and flushes.
///
/// Not cancel-safe: a dropped call leaves part of the message behind.
pub async fn write_message<M: Message>(
    mut io: impl AsyncWrite + Unpin,
    message: &M,
) -> io::Result<()> {
    let mut bytes = BytesMut::new();
    codec::encode(message, &mut bytes).map_err(invalid)?;
    io.write_all(&bytes).await?;
    io.flush().await
}

/// Reads messages, and may be interrupted while it waits for one.
#[derive(Debug)]
pub struct MessageReader<R> {
    io: R,
    buffer: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads from `io` messages of at most `limit` bytes.
    pub fn new(io: R, limit: usize) -> Self {
        Self { io, buffer: BytesMut::new(), limit }
    }

    /// The next message. `None`: the stream ended between messages. Cancel-safe. Fails as
    /// [`read_message`] does.
    pub async fn next<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        loop {
            if let Some(message) = codec::decode(&mut self.buffer, self.limit).map_err(invalid)? {
                return Ok(Some(message));
            }
            self.buffer.reserve(STEP);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }
}

fn invalid(error: CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
