//! Accepting connections: HTTP/1.1, or 2 where TLS has agreed on that, with a deadline for headers and
//! a drain at the end.
//!
//! A client that is gone without a word is noticed, and one that reads nothing is not waited for
//! for ever: behind a request there may be a command that runs, or a sandbox kept awake.

mod early;
mod patient;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::Request;
use axum::response::Response;
use axum::{Extension, Router};
use bhatti_lifecycle::Tasks;
use bhatti_types::UserId;
pub(super) use early::{Early, Outspoken, Turn};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
pub(super) use patient::Patient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::ApiError;
use super::domain::{Entrance, Published, Secure};
use super::proxy::Crowd;
use super::shares::Shares;
use super::web_shell::household;

/// A client must send its request head within this, counted from the end of the request before:
/// so it is also how long an idle connection is kept. `bhatti-client` gives up its own earlier.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// The most connections at once. What is beyond waits in the kernel's queue, so that a client that
/// opens sockets cannot take the descriptors machines need.
const MAX_CONNECTIONS: usize = 1024;
/// How many of them may be busy for one account: with commands that run, with bytes under way.
const MAX_PER_USER: usize = 512;
/// How long a client may take no byte of an answer. A pager stands still for that long.
const STALL: Duration = Duration::from_secs(600);
/// The same for strangers, who have no business standing still.
const STRANGERS_STALL: Duration = Duration::from_secs(60);
/// The most connections of one stranger: nobody takes all places. Whoever is on this host may, since
/// a web server in front of us would be.
const MAX_OF_STRANGER: usize = 256;
/// When a silent connection is probed first, how often then, and how often in vain, in seconds.
/// A client whose machine or network is gone is noticed after 90 seconds, as on a WebSocket.
const PROBE: (u32, u32, u32) = (30, 15, 4);
/// The most requests at once on one connection of HTTP/2, what is held of each answer, and the most of
/// headers, in bytes.
const MAX_STREAMS: u32 = 100;
const STREAM_BUFFER: usize = 64 * 1024;
const MAX_HEADERS: u32 = 64 * 1024;
/// How often the other end of such a connection is asked whether it is there, and for how long.
const PING: Duration = Duration::from_secs(30);
/// How long a failed accept waits: the reason is usually too many open files, and that passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The requests under way, of each account.
pub(crate) struct UnderWay(Shares);

impl Default for UnderWay {
    fn default() -> Self {
        Self(Shares::new(MAX_PER_USER))
    }
}

impl UnderWay {
    /// A place for one more of `user`.
    pub(super) fn place(&self, user: &UserId) -> Result<OwnedSemaphorePermit, ApiError> {
        self.0.of(user).try_acquire_owned().map_err(|_| ApiError::TooManyUnderWay)
    }
}

/// Keeps a place until all of an answer is sent, unless it is in memory as a whole.
pub(super) fn until_sent(response: Response, place: OwnedSemaphorePermit) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &place;
            frame
        }))
    })
}

/// Who is at the other end of the connection a request came on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// In the extensions of a request that came by TLS.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByTls;

/// Who comes to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guests {
    /// Whoever has a key gets anywhere.
    Known,
    /// Anybody.
    Strangers,
}

/// What is behind a listener.
#[derive(Clone)]
pub(crate) enum Entry {
    Plain(Router, Guests),
    Tls(Arc<Secure>, Arc<Routers>),
}

/// What is behind a listener with TLS, by the name the client calls it.
pub(crate) struct Routers {
    api: Router,
    public: Router,
    /// Whose a name below the zone is.
    published: Published,
}

impl Routers {
    pub(crate) fn new(api: Router, public: Router, published: Published) -> Self {
        Self { api: api.layer(Extension(ByTls)), public, published }
    }
}

/// Accepts until `stop` fires. Connections are tasks of `tasks`, which waits for them.
pub(crate) async fn serve(
    listener: TcpListener,
    entry: Entry,
    tasks: &Tasks,
    stop: CancellationToken,
) {
    let strangers: Crowd<IpAddr> = Crowd::new(MAX_OF_STRANGER);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed, so there is always a place in the end.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let entry = entry.clone();
                let peer = Peer(peer.ip().to_canonical());
                let known = matches!(entry, Entry::Plain(_, Guests::Known));
                let counted = !known && !peer.0.is_loopback();
                let own = counted.then(|| strangers.enter(household(peer.0)));
                // One that has enough; its other connections go on.
                let Some(own) = own.map_or(Some(None), |own| own.map(Some)) else { continue };
                tasks.spawn("connection", move |stop| async move {
                    enter(stream, peer, entry, stop).await;
                    drop((place, own));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn enter(stream: TcpStream, peer: Peer, entry: Entry, stop: CancellationToken) {
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, "failed to set the options of a connection");
    }
    let (secure, routers) = match entry {
        Entry::Plain(router, guests) => return converse(stream, peer, router, guests, stop).await,
        Entry::Tls(secure, routers) => (secure, routers),
    };
    let entrance = tokio::select! {
        entrance = secure.accept(stream, &routers.published) => entrance,
        () = stop.cancelled() => None,
    };
    let Some(Entrance { stream, guests, http2 }) = entrance else { return };
    let router = match guests {
        Guests::Known => routers.api.clone(),
        Guests::Strangers => routers.public.clone(),
    };
    if http2 {
        converse_http2(stream, peer, router, stop).await;
    } else {
        converse(stream, peer, router, guests, stop).await;
    }
}

/// One connection. When the client hangs up, the handler's future is dropped with it.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    router: Router,
    guests: Guests,
    stop: CancellationToken,
) {
    let stall = match guests {
        Guests::Known => STALL,
        Guests::Strangers => STRANGERS_STALL,
    };
    let early = Early::default();
    let stream = Outspoken::new(Patient::new(stream, stall), early.clone());
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(early.clone());
        request
    });
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
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

/// The same with many requests at once: strangers only.
async fn converse_http2(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    router: Router,
    stop: CancellationToken,
) {
    let busy = Arc::new(Busy::default());
    let own = Arc::clone(&busy);
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        let (router, work) = (router.clone(), own.begin());
        request.extensions_mut().insert(peer);
        async move {
            let response = router.oneshot(request).await?;
            Ok::<_, std::convert::Infallible>(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &work;
                    frame
                }))
            }))
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(STREAM_BUFFER)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let stream = TokioIo::new(Patient::new(stream, STRANGERS_STALL));
    let connection = builder.serve_connection(stream, TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        // Those under way are answered, and there are no more.
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = busy.idle() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended with an error");
    }
}

/// How many requests of one connection are under way.
#[derive(Default)]
struct Busy {
    count: watch::Sender<usize>,
}

impl Busy {
    fn begin(self: &Arc<Self>) -> Work {
        self.count.send_modify(|count| *count += 1);
        Work(Arc::clone(self))
    }

    /// Resolves when there has been none for too long.
    async fn idle(&self) {
        let mut count = self.count.subscribe();
        loop {
            // Its sender is here.
            drop(count.wait_for(|count| *count == 0).await);
            if timeout(HEADER_TIMEOUT, count.wait_for(|count| *count > 0)).await.is_err() {
                return;
            }
        }
    }
}

/// One of them, until this is dropped.
struct Work(Arc<Busy>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| *count -= 1);
    }
}

fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    let (idle, interval, count) = PROBE;
    // Small answers must not wait for the peer's acknowledgement of earlier ones.
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(stream, sockopt::TcpKeepCount, &count)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;
    use nix::sys::socket::getsockopt;

    #[test]
    fn a_place_is_kept_until_the_answer_is_sent() {
        let user = UserId::random();
        let under_way = UnderWay(Shares::new(1));
        let place = || under_way.place(&user);
        let answer = until_sent("in memory".into_response(), place().expect("a place"));
        assert_eq!(answer.body().size_hint().exact(), Some(9), "its length is said");
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("x")]);
        let streamed = Body::from_stream(stream).into_response();
        let answer = until_sent(streamed, place().expect("free again"));
        assert!(matches!(place(), Err(ApiError::TooManyUnderWay)));
        assert!(under_way.place(&UserId::random()).is_ok(), "another's");
        drop(answer);
        assert!(place().is_ok(), "free again");
    }

    #[tokio::test]
    async fn a_client_that_vanished_is_looked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).await.expect("it listens");
        set_options(&client).expect("options");
        assert!(getsockopt(&client, sockopt::KeepAlive).expect("an option"));
        assert_eq!(getsockopt(&client, sockopt::TcpKeepIdle).expect("an option"), PROBE.0);
        assert_eq!(PROBE.0 + PROBE.1 * PROBE.2, 90);
    }
}
