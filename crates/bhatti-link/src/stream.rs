//! One operation's byte stream.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bhatti_wire::mux::{Gone, Mux};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The streams of one session, shared by their handles and the task that moves their bytes.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Mux>>);

impl Shared {
    pub(crate) fn new(mux: Mux) -> Self {
        Self(Arc::new(Mutex::new(mux)))
    }

    /// Runs `action` under the lock, then wakes whom it concerns without the lock.
    pub(crate) fn with<T>(&self, action: impl FnOnce(&mut Mux) -> T) -> T {
        // No action can leave the multiplexer half-changed by panicking: it does not panic.
        let mut mux = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = action(&mut mux);
        let wakers = mux.take_wakers();
        drop(mux);
        for waker in wakers {
            waker.wake();
        }
        result
    }
}

/// A bidirectional byte stream with back-pressure and half-close.
///
/// `shutdown()` half-closes. Dropping without it resets the stream and throws away what is still
/// queued; dropping after it lets what is queued go out. Writing only queues: `flush` does
/// nothing, the driver sends on its own.
///
/// Errors: [`ConnectionReset`](io::ErrorKind::ConnectionReset) when the peer gave the stream up,
/// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted) when the session or its carrier is
/// gone, [`BrokenPipe`](io::ErrorKind::BrokenPipe) for writing after `shutdown`.
///
/// `&Stream` reads and writes too, so that one task can read while another writes. There is room
/// for one waiting reader and one waiting writer.
pub struct Stream {
    mux: Shared,
    id: u32,
}

impl Stream {
    /// Takes over the handle of a stream the multiplexer made.
    pub(crate) fn new(mux: Shared, id: u32) -> Self {
        Self { mux, id }
    }

    /// Number of the stream within its session, for logs.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Queues what there is room for, possibly nothing, without waiting.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.mux.with(|mux| mux.try_write(self.id, bytes)).map_err(gone)
    }

    /// Half-closes without waiting; the same as `shutdown`.
    pub fn close_write(&self) -> io::Result<()> {
        self.mux.with(|mux| mux.shutdown(self.id)).map_err(gone)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.mux.with(|mux| mux.release(self.id));
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl AsyncRead for &Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.mux.with(|mux| {
            // No more than is there: what is read into is often large and new, and setting all of
            // it to zero for each small piece costs a guest more than the pieces themselves.
            let room = mux.readable(self.id).max(1).min(buffer.remaining());
            mux.poll_read(self.id, context, buffer.initialize_unfilled_to(room))
        });
        match polled {
            Poll::Ready(Ok(taken)) => {
                buffer.advance(taken);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(why)) => Poll::Ready(Err(gone(why))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for &Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.mux.with(|mux| mux.poll_write(self.id, context, bytes)).map_err(gone)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.close_write())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut &*self).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self).poll_shutdown(context)
    }
}

fn gone(why: Gone) -> io::Error {
    let (kind, text) = match why {
        Gone::Reset => (io::ErrorKind::ConnectionReset, "the peer gave the stream up"),
        Gone::Lost => (io::ErrorKind::ConnectionAborted, "the link is gone"),
        Gone::Closed => (io::ErrorKind::BrokenPipe, "the stream was half-closed"),
    };
    io::Error::new(kind, text)
}
