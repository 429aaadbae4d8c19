//! One request and its answer.
//!
//! The connection belongs to the answer's body, and goes when the client does. One whose answer is
//! there to its end waits for the next request (`pool`), which it gets only if asking twice does no
//! harm: a program may hang up just then, and nobody can tell whether it has read the request.
//!
//! Most requests have no body, and an answer that comes as a whole. All of such a one is done by the
//! task of the client's connection: waking another one takes longer than what there is to do.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Uri, Version, header};
use axum::response::Response;
use bhatti_guest_client::GuestError;
use bhatti_lifecycle::{Dialer, chain};
use bhatti_types::SandboxId;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::conversation::{Conversation, Mover};
use super::head::{self, Asker};
use super::hints::Hints;
use super::meter::Meter;
use super::pool::Pool;
use super::{Proxy, Relay, relay};

/// How long an answer may go on when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a request may take.
#[derive(Clone, Debug)]
pub(in crate::http) struct Limit {
    /// From its head to the last byte of the answer, tunnels included.
    pub(in crate::http) whole: Option<Duration>,
    /// Without a byte of the two bodies.
    pub(in crate::http) idle: Duration,
    /// The largest body of a request, in bytes.
    pub(in crate::http) body: Option<u64>,
}

/// Where a request goes, and what is held while it is under way.
pub(in crate::http) struct Visit {
    pub(in crate::http) sandbox: SandboxId,
    pub(in crate::http) port: u16,
    pub(in crate::http) dialer: Dialer,
    /// Fires when nobody may ask there any more.
    pub(in crate::http) out: CancellationToken,
    /// What keeps the guest awake, and whatever else is free again afterwards.
    pub(in crate::http) _kept: Box<dyn Send + Sync>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::http) enum Failure {
    #[error("the port could not be connected to")]
    Dial(#[source] GuestError),
    /// What was said instead of an answer, or that nothing was.
    #[error("the program broke off, or its answer is no HTTP")]
    NoAnswer(#[source] hyper::Error),
    #[error("{0}")]
    Late(Late),
    #[error("the program changed the protocol without being asked to")]
    Unasked,
    #[error("the request body is larger than it may be")]
    TooLarge,
    #[error("too many tunnels are open")]
    NoTunnel,
}

/// A failure as clients read it: one sentence.
pub(in crate::http) fn words(failure: &Failure) -> String {
    match failure {
        Failure::Dial(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Why a request was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum Late {
    #[error("no byte came for {0} s")]
    Quiet(u64),
    #[error("it took longer than {0} s")]
    Whole(u64),
    #[error("it is not published any more")]
    Out,
    #[error("the daemon stops")]
    Stopping,
}

/// Both directions of one exchange.
#[derive(Debug, Default)]
struct Traffic {
    meter: Meter,
    /// The request's body was larger than it may be.
    too_large: AtomicBool,
    /// All of the request's body was taken.
    sent: AtomicBool,
}

type Ending = Pin<Box<dyn Future<Output = Late> + Send>>;

/// Sends `request` with `uri` in place of its own, and returns the answer as it begins.
pub(in crate::http) async fn exchange(
    proxy: &Proxy,
    mut request: Request,
    uri: Uri,
    asker: Asker,
    visit: Visit,
    limit: &Limit,
) -> Result<Response, Failure> {
    let client = request.extensions_mut().remove::<OnUpgrade>();
    let client = client.filter(|_| head::asks_for_upgrade(request.headers()));
    let last = limit.whole.map(|whole| Instant::now() + whole);
    let place = match &client {
        Some(_) => Some(proxy.tunnel().ok_or(Failure::NoTunnel)?),
        None => None,
    };
    let traffic = Arc::new(Traffic::default());
    let mut ending = ending(proxy, &traffic, visit.out.clone(), limit);
    let (early, version) = (request.extensions_mut().remove(), request.version());
    let mut request = outgoing(request, uri, asker, visit.port, client.is_some(), &traffic, limit)?;
    let hints = Hints::catch(early, version, &mut request);
    let begun = begin(proxy, &visit, request, client.is_some());
    let begun = async {
        match hints {
            Some(hints) => hints.until(begun).await,
            None => begun.await,
        }
    };
    let (mut answer, mut conversation) = tokio::select! {
        begun = begun => begun.map_err(|failure| {
            let too_large = traffic.too_large.load(Ordering::Relaxed);
            if too_large { Failure::TooLarge } else { failure }
        })?,
        late = &mut ending => return Err(Failure::Late(late)),
    };
    let upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let said = head::keep_alive(answer.headers());
    head::answer(answer.headers_mut(), upgraded);
    // The program's was between it and us: a client's connection goes on after an answer to HTTP/1.0.
    *answer.version_mut() = Version::HTTP_11;
    if upgraded {
        let (Some(client), Some(place)) = (client, place) else { return Err(Failure::Unasked) };
        let program = hyper::upgrade::on(&mut answer);
        let tunnel = Tunnel { client, program, conversation, visit, place };
        tunnel.spawn(proxy, limit.idle, last);
        return Ok(answer.map(|_| Body::empty()));
    }
    let first = match body_so_far(answer.body_mut(), &mut conversation).await {
        // Nothing of the sandbox is needed for it any more. In HTTP/2 a client may leave it standing.
        SoFar::Whole(body) if version < Version::HTTP_2 || body.is_empty() => {
            if traffic.sent.load(Ordering::Relaxed) {
                proxy.pool.keep(&visit.sandbox, visit.port, conversation, said);
            }
            return Ok(answer.map(|_| Body::from(body)));
        }
        SoFar::Whole(body) => Some(Ok(Frame::data(body))),
        SoFar::Part(first) => first,
    };
    let held: Held = Arc::new(Mutex::new(Some((conversation, visit))));
    let late = watch(proxy, Arc::clone(&held), ending);
    let pool = proxy.pool.clone();
    let answered =
        |incoming| Answer { first, incoming, ended: false, held, said, pool, late, traffic };
    Ok(answer.map(|incoming| Body::new(answered(incoming))))
}

/// Resolves when the exchange has to end. Counts from now.
fn ending(proxy: &Proxy, traffic: &Arc<Traffic>, out: CancellationToken, limit: &Limit) -> Ending {
    let (traffic, Limit { whole, idle, .. }) = (Arc::clone(traffic), limit.clone());
    let last = whole.map(|whole| Instant::now() + whole);
    let stopping = proxy.stopping();
    Box::pin(async move {
        let stopping = async {
            stopping.cancelled().await;
            sleep(FAREWELL).await;
        };
        tokio::select! {
            () = stopping => Late::Stopping,
            () = out.cancelled() => Late::Out,
            () = traffic.meter.quiet_for(idle) => Late::Quiet(idle.as_secs()),
            () = until(last) => Late::Whole(whole.unwrap_or_default().as_secs()),
        }
    })
}

/// Ends an answer when it has to end, whether or not anybody asks for the rest of it: a client that
/// does not read is not read for, and holds nothing for longer.
fn watch(proxy: &Proxy, held: Held, ending: Ending) -> oneshot::Receiver<Late> {
    let (mut tell, told) = oneshot::channel();
    proxy.spawn("answer", |_| async move {
        tokio::select! {
            late = ending => {
                // First, so that what follows is not taken for a good end.
                if tell.send(late).is_err() {
                    return;
                }
                let gone = lock(&held).take();
                drop(gone);
            }
            () = tell.closed() => {}
        }
    });
    told
}

async fn until(last: Option<Instant>) {
    match last {
        Some(last) => sleep_until(last).await,
        None => std::future::pending().await,
    }
}

/// The request as it goes to the program.
fn outgoing(
    request: Request,
    uri: Uri,
    asker: Asker,
    port: u16,
    upgrade: bool,
    traffic: &Arc<Traffic>,
    limit: &Limit,
) -> Result<hyper::Request<Asked>, Failure> {
    let (mut parts, body) = request.into_parts();
    traffic.sent.store(body.is_end_stream(), Ordering::Relaxed);
    let body = Asked { body, left: limit.body, traffic: Arc::clone(traffic) };
    let size = body.size_hint();
    if limit.body.is_some_and(|most| size.lower() > most) {
        return Err(Failure::TooLarge);
    }
    if size.exact().is_none() {
        // It comes in chunks, whatever else was said of its length.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    // HTTP/2 says it there, and whoever says both means this: it has led here.
    let authority = parts.uri.authority().and_then(|all| all.as_str().rsplit('@').next());
    if let Some(Ok(host)) = authority.map(HeaderValue::from_str) {
        parts.headers.insert(header::HOST, host);
    }
    head::request(&mut parts.headers, asker, port, upgrade);
    let mut request = hyper::Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = parts.headers;
    Ok(request)
}

/// Sends, over a connection that waits if it may be that, and waits for the answer's head.
async fn begin(
    proxy: &Proxy,
    visit: &Visit,
    mut request: hyper::Request<Asked>,
    upgrade: bool,
) -> Result<(hyper::Response<Incoming>, Conversation), Failure> {
    let again = repeated(&request).filter(|_| !upgrade);
    if let Some(again) = again
        && let Some(mut kept) = proxy.pool.take(&visit.sandbox, visit.port)
    {
        match kept.ask(request).await {
            Ok(answer) => return Ok((answer, kept)),
            Err(error) if error.is_parse() => return Err(Failure::NoAnswer(error)),
            // The program hung up, as it may at any time between two requests.
            Err(_) => request = again,
        }
    }
    let alone = request.body().is_end_stream() && !upgrade;
    let mover = if alone { Mover::Asker } else { Mover::Task };
    let mut conversation = Conversation::begin(proxy, &visit.dialer, visit.port, mover).await?;
    let answer = conversation.ask(request).await.map_err(Failure::NoAnswer)?;
    Ok((answer, conversation))
}

/// What is there of the body of an answer whose head is.
enum SoFar {
    Whole(Bytes),
    Part(Option<hyper::Result<Frame<Bytes>>>),
}

async fn body_so_far(incoming: &mut Incoming, conversation: &mut Conversation) -> SoFar {
    if incoming.is_end_stream() {
        return SoFar::Whole(Bytes::new());
    }
    let polled = poll_fn(|context| Poll::Ready(conversation.poll_frame(incoming, context))).await;
    match polled {
        Poll::Ready(Some(Ok(frame))) if incoming.is_end_stream() => match frame.into_data() {
            Ok(data) => SoFar::Whole(data),
            Err(frame) => SoFar::Part(Some(Ok(frame))),
        },
        Poll::Ready(Some(first)) => SoFar::Part(Some(first)),
        Poll::Ready(None) => SoFar::Whole(Bytes::new()),
        Poll::Pending => SoFar::Part(None),
    }
}

/// The same request once more, if asking twice is asking once.
fn repeated(request: &hyper::Request<Asked>) -> Option<hyper::Request<Asked>> {
    let asked = request.body();
    if !request.method().is_safe() || !asked.is_end_stream() {
        return None;
    }
    let traffic = Arc::clone(&asked.traffic);
    let mut again = hyper::Request::new(Asked { body: Body::empty(), left: asked.left, traffic });
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// A connection that is no HTTP any more.
struct Tunnel {
    client: OnUpgrade,
    program: OnUpgrade,
    conversation: Conversation,
    visit: Visit,
    place: OwnedSemaphorePermit,
}

impl Tunnel {
    fn spawn(self, proxy: &Proxy, idle: Duration, last: Option<Instant>) {
        let Self { client, program, conversation, visit, place } = self;
        proxy.spawn("tunnel", move |stop| async move {
            let joined = async {
                let (client, program) = tokio::try_join!(client, program)?;
                let (client, program) = (TokioIo::new(client), TokioIo::new(program));
                Ok::<_, hyper::Error>(relay(client, program, Some(idle)).await)
            };
            let end = tokio::select! {
                end = joined => end,
                () = visit.out.cancelled() => Ok(Relay::Broke),
                () = until(last) => Ok(Relay::Quiet),
                () = stop.cancelled() => Ok(Relay::Broke),
            };
            match end {
                Ok(end) => tracing::debug!(?end, port = visit.port, "a tunnel ended"),
                Err(error) => tracing::debug!(error = chain(&error), "a tunnel did not begin"),
            }
            drop((conversation, visit, place));
        });
    }
}

/// The body of a request on its way to the program.
pub(super) struct Asked {
    body: Body,
    /// How much of it there may still be.
    left: Option<u64>,
    traffic: Arc<Traffic>,
}

impl hyper::body::Body for Asked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.traffic.sent.store(true, Ordering::Relaxed);
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.traffic.meter.touch();
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            match self.left.map(|left| left.checked_sub(length)) {
                Some(None) => {
                    self.traffic.too_large.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err(axum::Error::new(Failure::TooLarge))));
                }
                Some(left) => self.left = left,
                None => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What goes with an answer; `None` once it had to end.
type Held = Arc<Mutex<Option<(Conversation, Visit)>>>;

fn lock(held: &Held) -> MutexGuard<'_, Option<(Conversation, Visit)>> {
    // Nothing in there can be left half changed.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of an answer on its way to the client, and all that has to live as long.
struct Answer {
    /// Came with the head.
    first: Option<hyper::Result<Frame<Bytes>>>,
    incoming: Incoming,
    /// The program has said all.
    ended: bool,
    held: Held,
    /// How long the program keeps it, by its own word.
    said: Option<Duration>,
    pool: Pool,
    /// Why it has to end.
    late: oneshot::Receiver<Late>,
    traffic: Arc<Traffic>,
}

impl Answer {
    fn poll_more(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut *lock(&self.held) {
            Some((conversation, _)) => {
                conversation.poll_frame(&mut self.incoming, context).map_err(axum::Error::new)
            }
            // It was ended just now.
            None => {
                let late = self.late.try_recv().unwrap_or(Late::Stopping);
                Poll::Ready(Some(Err(axum::Error::new(late))))
            }
        }
    }
}

impl Drop for Answer {
    /// A conversation that is in the middle of something ends with this.
    fn drop(&mut self) {
        let held = lock(&self.held).take();
        let ended = self.ended || self.is_end_stream();
        if let Some((conversation, visit)) = held
            && ended
            && self.traffic.sent.load(Ordering::Relaxed)
        {
            self.pool.keep(&visit.sandbox, visit.port, conversation, self.said);
        }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(late) = Pin::new(&mut self.late).poll(context) {
            // All the client sees of it is a body that breaks off.
            let late = late.unwrap_or(Late::Stopping);
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        let polled = match self.first.take() {
            Some(first) => Poll::Ready(Some(first.map_err(axum::Error::new))),
            None => self.poll_more(context),
        };
        if let Poll::Ready(frame) = &polled {
            self.ended = frame.is_none();
            self.traffic.meter.touch();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, first) = (self.incoming.size_hint(), self.first.as_ref());
        let first = first.and_then(|first| first.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        let (lower, upper, first) = (hint.lower(), hint.upper(), first as u64);
        if let Some(upper) = upper {
            hint.set_upper(upper + first);
        }
        hint.set_lower(lower + first);
        hint
    }
}

#[cfg(test)]
mod tests;
