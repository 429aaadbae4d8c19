//! From a command's pipe to the host.

use std::io;

use bhatti_link::write_message;
use bhatti_wire::message::{ExecOutput, ExecOutputEvent as Event, MAX_CHUNK};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, Notify, watch};

/// Most bytes still taken from a pipe once its command was killed: no pipe holds more, so more
/// comes from somebody who is still writing.
const MAX_LEFTOVER: usize = 1 << 20;

/// The way to the host. Both pumps share it; a message is never interleaved with another.
pub(super) struct Output<'a, W> {
    /// `None` once the host is gone.
    writer: Mutex<Option<W>>,
    /// Told when the host gave the stream up, which a host that has said all it had to say can
    /// make known only here.
    kill: &'a Notify,
}

impl<'a, W: AsyncWrite + Unpin> Output<'a, W> {
    pub(super) fn new(writer: W, kill: &'a Notify) -> Self {
        Self { writer: Mutex::new(Some(writer)), kill }
    }

    /// Sends one event, or nothing if the host is gone.
    pub(super) async fn send(&self, event: Event) {
        let mut writer = self.writer.lock().await;
        if let Some(host) = writer.as_mut()
            && let Err(error) = write_message(host, &ExecOutput { event: Some(event) }).await
        {
            *writer = None;
            if error.kind() == io::ErrorKind::ConnectionReset {
                self.kill.notify_one();
            }
        }
    }

    /// Sends the last event and ends our half of the stream.
    pub(super) async fn finish(self, event: Event) {
        self.send(event).await;
        if let Some(mut host) = self.writer.into_inner() {
            host.shutdown().await.ok();
        }
    }
}

/// Which pipe it is.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

impl Source {
    fn event(self, bytes: Bytes) -> Event {
        match self {
            Self::Stdout => Event::Stdout(bytes),
            Self::Stderr => Event::Stderr(bytes),
        }
    }
}

/// Sends what `pipe` brings, as it comes, until its end. Once `stopped` says so: until it is
/// empty.
pub(super) async fn pump<W: AsyncWrite + Unpin>(
    pipe: pipe::Receiver,
    source: Source,
    output: &Output<'_, W>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut buffer = BytesMut::new();
    let mut leftover = MAX_LEFTOVER;
    loop {
        let stopping = *stopped.borrow();
        if !stopping {
            tokio::select! {
                biased;
                // The sender lives as long as this future; either way the pipe is looked at.
                outcome = pipe.readable() => if outcome.is_err() { return },
                _ = stopped.changed() => {}
            }
        }
        // Reuses the memory of chunks that were sent.
        buffer.reserve(MAX_CHUNK);
        match pipe.try_read_buf(&mut (&mut buffer).limit(MAX_CHUNK)) {
            Ok(0) => return,
            Ok(n) => {
                output.send(source.event(buffer.split().freeze())).await;
                if stopping {
                    leftover = leftover.saturating_sub(n);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stopping {
                    return;
                }
            }
            Err(_) => return,
        }
        if leftover == 0 {
            return;
        }
    }
}
