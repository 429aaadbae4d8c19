//! A thread that writes a command's output, so that a reader who takes a pause stops neither the
//! clock nor the network.
//!
//! What waits here is bounded by the stream's window: the server sends no more until it hears
//! that something was written.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::context::flush_to;
use crate::failure::Failure;

/// Which of our streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    Stdout,
    Stderr,
}

/// The way to the thread.
pub(super) struct Printer {
    shared: Arc<Shared>,
}

/// The way from the thread.
pub(super) struct Progress {
    /// Bytes written so far.
    pub(super) written: watch::Receiver<u64>,
    /// How it ended: when everything was written, or at the first failure.
    pub(super) ended: oneshot::Receiver<Result<(), Failure>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<(Sink, Vec<u8>)>,
    /// Nothing more will come.
    closed: bool,
}

impl Printer {
    pub(super) fn start() -> Result<(Self, Progress), Failure> {
        let shared = Arc::<Shared>::default();
        let (written, progress) = watch::channel(0);
        let (end, ended) = oneshot::channel();
        let queue = shared.clone();
        let work = move || {
            // Nobody is left to tell if this fails: the command has ended otherwise.
            drop(end.send(queue.write_all(&written)));
        };
        std::thread::Builder::new().name("output".to_owned()).spawn(work)?;
        Ok((Self { shared }, Progress { written: progress, ended }))
    }

    /// Queues `bytes` behind what is there.
    pub(super) fn print(&self, sink: Sink, bytes: &[u8]) {
        let mut waiting = self.shared.lock();
        match waiting.pieces.back_mut() {
            // A command that prints byte by byte costs bytes, not pieces.
            Some((last, piece)) if *last == sink => piece.extend_from_slice(bytes),
            _ => waiting.pieces.push_back((sink, bytes.to_vec())),
        }
        self.shared.changed.notify_one();
    }

    /// Says that this was all: it ends when everything is written.
    pub(super) fn close(self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics between two consistent states.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, written: &watch::Sender<u64>) -> Result<(), Failure> {
        while let Some((sink, bytes)) = self.next() {
            match sink {
                Sink::Stdout => flush_to(io::stdout().lock(), &bytes)?,
                Sink::Stderr => flush_to(io::stderr().lock(), &bytes)?,
            }
            written.send_modify(|written| *written += bytes.len() as u64);
        }
        Ok(())
    }

    /// Waits for the next piece; `None` after the last.
    fn next(&self) -> Option<(Sink, Vec<u8>)> {
        let mut waiting = self.lock();
        loop {
            if let Some(piece) = waiting.pieces.pop_front() {
                return Some(piece);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
