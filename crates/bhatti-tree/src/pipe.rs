//! Between the thread that packs or unpacks and the task that sends or receives.
//!
//! A channel of a few chunks, so that neither gets far ahead of the other. Its end means that all
//! has come; whatever goes wrong is passed through it as an error, and never looks like the end.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

/// Bytes in a chunk.
pub const CHUNK: usize = 256 * 1024;

/// Chunks that wait.
const AHEAD: usize = 1;

/// What passes through.
pub type Piece = io::Result<Bytes>;

/// From a task to a thread.
pub fn to_thread() -> (mpsc::Sender<Piece>, PieceReader) {
    let (sender, pieces) = mpsc::channel(AHEAD);
    (sender, PieceReader { pieces, piece: Bytes::new() })
}

/// From a thread to a task.
pub fn from_thread() -> (PieceWriter, mpsc::Receiver<Piece>) {
    let (pieces, receiver) = mpsc::channel(AHEAD);
    (PieceWriter { pieces, chunk: BytesMut::with_capacity(CHUNK) }, receiver)
}

/// The thread's end, to be read. Blocks.
#[derive(Debug)]
pub struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let n = into.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut into[..n]);
        Ok(n)
    }
}

/// The thread's end, to be written. Blocks.
#[derive(Debug)]
pub struct PieceWriter {
    pieces: mpsc::Sender<Piece>,
    chunk: BytesMut,
}

impl PieceWriter {
    /// Sends what is left, or why there is no more.
    pub fn finish(mut self, outcome: io::Result<()>) {
        let sent = outcome.and_then(|()| self.flush());
        if let Err(error) = sent {
            // If the task is gone it needs to know nothing.
            self.pieces.blocking_send(Err(error)).ok();
        }
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        let n = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK));
        self.pieces.blocking_send(Ok(full.freeze())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
