//! HTTP with one program, over one connection.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bhatti_lifecycle::{Connection, Dialer};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Proxy;
use super::upstream::{Asked, Failure};

/// The largest head of an answer, and the most of its body that is held, in bytes.
pub(super) const MAX_BUFFER: usize = 128 * 1024;

/// A connection to a program. Dropping it ends it at once, whatever is under way.
pub(super) struct Conversation {
    sender: SendRequest<Asked>,
    line: Line,
}

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mover {
    /// Whoever waits for the answer, or reads it: nobody else has to be woken for a byte. Nothing
    /// moves while nobody does.
    Asker,
    /// A task of its own: the two directions go on whatever the client does.
    Task,
}

enum Line {
    /// `None` once it is over.
    Own(Option<Box<http1::Connection<TokioIo<Connection>, Asked>>>),
    Task {
        _open: DropGuard,
    },
}

impl Conversation {
    /// Connects.
    pub(super) async fn begin(
        proxy: &Proxy,
        dialer: &Dialer,
        port: u16,
        mover: Mover,
    ) -> Result<Self, Failure> {
        let stream = dialer.dial(port).await.map_err(Failure::Dial)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_BUFFER);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(Failure::NoAnswer)?;
        if mover == Mover::Asker {
            return Ok(Self { sender, line: Line::Own(Some(Box::new(connection))) });
        }
        let over = CancellationToken::new();
        let open = over.clone().drop_guard();
        // It holds nothing but the connection.
        proxy.spawn("conversation", |_| async move {
            tokio::select! {
                biased;
                () = over.cancelled() => {}
                // How it ended is told to whoever waits for an answer.
                _ = connection.with_upgrades() => {}
            }
        });
        Ok(Self { sender, line: Line::Task { _open: open } })
    }

    /// The head of the answer to `request`.
    pub(super) async fn ask(
        &mut self,
        request: hyper::Request<Asked>,
    ) -> hyper::Result<hyper::Response<Incoming>> {
        let Self { sender, line } = self;
        let mut answer = pin!(sender.send_request(request));
        poll_fn(|context| {
            line.poll_move(context);
            answer.as_mut().poll(context)
        })
        .await
    }

    /// More of the body of an answer that it gave.
    pub(super) fn poll_frame(
        &mut self,
        incoming: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match Pin::new(&mut *incoming).poll_frame(context) {
            Poll::Pending => {
                self.line.poll_move(context);
                Pin::new(incoming).poll_frame(context)
            }
            ready => ready,
        }
    }

    /// Whether the next request can be sent now.
    pub(super) fn is_ready(&mut self) -> bool {
        self.line.look();
        self.sender.is_ready()
    }

    /// Whether there will be no next request.
    pub(super) fn is_closed(&mut self) -> bool {
        self.line.look();
        self.sender.is_closed()
    }
}

impl Line {
    /// Moves what can be moved, if nobody else does.
    fn poll_move(&mut self, context: &mut Context<'_>) {
        if let Self::Own(connection) = self
            && let Some(open) = connection
            // How it ended is told to whoever waits for an answer.
            && Pin::new(open).poll(context).is_ready()
        {
            *connection = None;
        }
    }

    /// The same, when nobody waits for anything.
    fn look(&mut self) {
        self.poll_move(&mut Context::from_waker(Waker::noop()));
    }
}
