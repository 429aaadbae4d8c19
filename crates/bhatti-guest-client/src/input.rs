//! What is said to a running command: stdin, and the order to die.
//!
//! Messages go out whole even when their writer is dropped half-way or somebody kills the
//! command meanwhile: they wait in one buffer, and only that buffer is written to the stream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bhatti_link::Stream;
use bhatti_wire::codec;
use bhatti_wire::message::{ExecInput, ExecInputEvent, MAX_CHUNK, Nothing};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::GuestError;

/// The host's direction of an exec stream.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) stream: Stream,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whole messages, of which the beginning may already be on its way.
    pending: BytesMut,
    /// Nothing but what is pending will be said: killed, or half-closed.
    closed: bool,
    /// Whom to tell that `closed` changed; the stream itself knows one waiting writer only.
    writer: Option<Waker>,
}

impl Input {
    pub(crate) fn new(stream: Stream) -> Arc<Self> {
        Arc::new(Self { stream, state: Mutex::default() })
    }

    /// Queues the order to kill the process group, as the last thing said. `Running::next` and
    /// [`Input::finish`] see to it that it leaves; the guest reads it once it has read the stdin
    /// before it.
    pub(crate) fn kill(&self) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.closed = true;
        let waker = state.writer.take();
        // A Kill is five bytes, never too long.
        if push(&mut state.pending, ExecInputEvent::Kill(Nothing {})).is_ok() {
            self.write_some(&mut state);
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Half-closes, if everything pending could leave. Otherwise the stream's reset, when it is
    /// dropped, has to say it.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.write_some(&mut state);
        if state.pending.is_empty() {
            // An error means that nobody listens any more.
            drop(self.stream.close_write());
        }
    }

    /// After a kill: goes on with what did not fit the window then.
    pub(crate) fn poll_closing(&self, context: &mut Context<'_>) {
        let mut state = self.lock();
        if state.closed {
            // A failure shows on the reading side.
            let _is_pending = self.poll_pending(&mut state, context).is_pending();
        }
    }

    fn poll_pending(&self, state: &mut State, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !state.pending.is_empty() {
            let written = ready!(Pin::new(&mut &self.stream).poll_write(context, &state.pending))?;
            state.pending.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn write_some(&self, state: &mut State) {
        while let Ok(written @ 1..) = self.stream.try_write(&state.pending) {
            state.pending.advance(written);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two consistent states.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Feeds a command's stdin. Dropping it closes stdin.
#[derive(Debug)]
pub struct StdinWriter {
    input: Arc<Input>,
}

impl StdinWriter {
    pub(crate) fn new(input: Arc<Input>) -> Self {
        Self { input }
    }

    /// Writes all of `bytes`, waiting while the guest does not take them. Fails once the command
    /// was killed or the link is gone.
    ///
    /// Dropping it half-way leaves a prefix of `bytes` written.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), GuestError> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            self.say(ExecInputEvent::Data(chunk)).await?;
        }
        Ok(())
    }

    /// Waits until what was said before has left, then queues one message.
    async fn say(&mut self, event: ExecInputEvent) -> Result<(), GuestError> {
        let mut event = Some(event);
        poll_fn(|context| {
            let mut state = self.input.lock();
            if state.closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            state.writer = Some(context.waker().clone());
            ready!(self.input.poll_pending(&mut state, context))?;
            if let Some(event) = event.take() {
                push(&mut state.pending, event)?;
            }
            // The message is whole in the buffer, so whoever comes next may go on with it.
            self.input.write_some(&mut state);
            Poll::Ready(Ok(()))
        })
        .await
        .map_err(GuestError::writing)
    }

    /// Waits until everything written is on its way, then closes stdin.
    pub async fn finish(mut self) -> Result<(), GuestError> {
        self.say(ExecInputEvent::Eof(Nothing {})).await?;
        poll_fn(|context| {
            let mut state = self.input.lock();
            self.input.poll_pending(&mut state, context)
        })
        .await
        .map_err(GuestError::writing)
    }
}

impl Drop for StdinWriter {
    fn drop(&mut self) {
        let mut state = self.input.lock();
        // A second Eof after `finish` does no harm.
        if !state.closed && push(&mut state.pending, ExecInputEvent::Eof(Nothing {})).is_ok() {
            self.input.write_some(&mut state);
        }
    }
}

fn push(pending: &mut BytesMut, event: ExecInputEvent) -> io::Result<()> {
    let message = ExecInput { event: Some(event) };
    codec::encode(&message, pending)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
