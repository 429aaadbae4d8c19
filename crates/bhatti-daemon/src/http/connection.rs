//! Accepting connections: HTTP/1.1, with a deadline for headers and a drain at the end.

use std::time::Duration;

use axum::Router;
use bhatti_lifecycle::Tasks;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A client must send its request head within this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a failed accept waits: the reason is usually too many open files, and that passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `stop` fires. Connections are tasks of `tasks`, which waits for them.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    tasks: &Tasks,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => {
                let router = router.clone();
                tasks.spawn("connection", |stop| converse(stream, router, stop));
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection. When the client hangs up, the handler's future is dropped with it.
async fn converse(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Small answers must not wait for the peer's acknowledgement of earlier ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "failed to set TCP_NODELAY");
    }
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            // The request under way is answered, the next is not accepted.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended with an error");
    }
}
