//! Moves bytes between a carrier and a session; the same for both ends.
//!
//! One write and one read are under way at a time, both large: under QEMU a write of 256 KiB is
//! several times cheaper per byte than one of 32 KiB. A chunk that was begun is always finished,
//! so what goes out never stops in the middle of a frame.
//!
//! Memory: one input buffer of [`READ`] plus a frame, one output buffer of a chunk plus the
//! handshake records that one read can provoke.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bhatti_wire::Violation;
use bhatti_wire::frame::MAX_FRAME;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::Shared;

/// How much is read at once.
const READ: usize = 256 * 1024;

/// With so many bytes still to be written, nothing is read that could make more of them.
const OUTPUT_LIMIT: usize = 512 * 1024;

/// Rounds of reading and writing before other tasks get a turn.
const ROUNDS: usize = 32;

/// What differs between the ends.
pub(crate) trait Role {
    /// Takes what it can from the front of `input` and says how much. Handshake records to send
    /// are appended to `output`. An error ends the pump.
    fn receive(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Violation>;

    /// The streams of the session, if there is one.
    fn streams(&self) -> Option<&Shared>;
}

/// Why a pump stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The carrier is at its end.
    Eof,
    /// The carrier failed.
    Io(io::Error),
    Violation(Violation),
    /// The session was ended from this side.
    Closed,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(crate) struct Pump<IO, R> {
    io: IO,
    pub(crate) role: R,
    input: Box<[u8]>,
    /// Received and not yet understood: `input[start..end]`.
    start: usize,
    end: usize,
    output: Vec<u8>,
    written: usize,
    flushed: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Pump<IO, R> {
    pub(crate) fn new(io: IO, role: R) -> Self {
        Self {
            io,
            role,
            input: vec![0; READ + MAX_FRAME].into_boxed_slice(),
            start: 0,
            end: 0,
            output: Vec::new(),
            written: 0,
            flushed: true,
        }
    }

    /// Appends handshake records to what is being written.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Whether everything so far went into the carrier.
    pub(crate) fn is_drained(&self) -> bool {
        self.written == self.output.len()
    }

    /// Works until `enough` says so or it cannot go on. Cancel-safe.
    pub(crate) fn poll_until(
        &mut self,
        context: &mut Context<'_>,
        enough: impl Fn(&R) -> bool,
    ) -> Poll<Result<(), Stop>> {
        for _ in 0..ROUNDS {
            if enough(&self.role) {
                return Poll::Ready(Ok(()));
            }
            let closed = self.role.streams().is_some_and(|streams| {
                streams.with(|mux| {
                    mux.set_transmitter(context.waker());
                    mux.is_dead()
                })
            });
            if closed {
                return Poll::Ready(Err(Stop::Closed));
            }
            let wrote = self.write(context)?;
            let read = self.read(context)?;
            if !wrote && !read {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// One write. Says whether anything moved.
    fn write(&mut self, context: &mut Context<'_>) -> Result<bool, Stop> {
        if self.is_drained() {
            self.output.clear();
            self.written = 0;
            if let Some(streams) = self.role.streams() {
                streams.with(|mux| mux.transmit(&mut self.output));
            }
        }
        if self.is_drained() {
            if !self.flushed
                && let Poll::Ready(done) = Pin::new(&mut self.io).poll_flush(context)
            {
                done?;
                self.flushed = true;
            }
            return Ok(false);
        }
        match Pin::new(&mut self.io).poll_write(context, &self.output[self.written..]) {
            Poll::Ready(Ok(0)) => Err(Stop::Io(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(n)) => {
                self.written += n;
                self.flushed = false;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(Stop::Io(error)),
            Poll::Pending => Ok(false),
        }
    }

    /// One read, and what it means. Says whether anything moved.
    fn read(&mut self, context: &mut Context<'_>) -> Result<bool, Stop> {
        // Both conditions come with bytes to write, so the write side wakes this task.
        let congested = self.output.len() - self.written > OUTPUT_LIMIT
            || self.role.streams().is_some_and(|streams| streams.with(|mux| mux.is_congested()));
        if congested {
            return Ok(false);
        }
        let mut buffer = ReadBuf::new(&mut self.input[self.end..self.end + READ]);
        match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(result) => result?,
        }
        let n = buffer.filled().len();
        if n == 0 {
            return Err(Stop::Eof);
        }
        self.end += n;
        let used = self
            .role
            .receive(&self.input[self.start..self.end], &mut self.output)
            .map_err(Stop::Violation)?;
        self.start += used;
        // Less than a frame is left, so there is always room for a whole read behind it.
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        Ok(true)
    }
}
