//! HTTP with one program, over one connection.

use bhatti_lifecycle::Dialer;
use hyper::body::Incoming;
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
    _open: DropGuard,
}

impl Conversation {
    /// Connects. The task that moves its bytes holds nothing but the connection.
    pub(super) async fn begin(proxy: &Proxy, dialer: &Dialer, port: u16) -> Result<Self, Failure> {
        let stream = dialer.dial(port).await.map_err(Failure::Dial)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_BUFFER);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(Failure::NoAnswer)?;
        let over = CancellationToken::new();
        let open = over.clone().drop_guard();
        proxy.spawn("conversation", |_| async move {
            tokio::select! {
                biased;
                () = over.cancelled() => {}
                // How it ended is told to whoever waits for an answer.
                _ = connection.with_upgrades() => {}
            }
        });
        Ok(Self { sender, _open: open })
    }

    /// The head of the answer to `request`.
    pub(super) async fn ask(
        &mut self,
        request: hyper::Request<Asked>,
    ) -> hyper::Result<hyper::Response<Incoming>> {
        self.sender.send_request(request).await
    }

    /// Whether the next request can be sent now.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether there will be no next request.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
