//! One request at a time, over one connection that is kept.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bhatti_api::route;
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::connect::{Outgoing, Sender, connect};
use crate::socket::Upgrade;
use crate::timing::Stopwatch;
use crate::{ClientError, Endpoint, Timing};

/// The largest JSON answer that is read.
const MAX_ANSWER: usize = 64 << 20;
/// The largest error answer that is read; ours are one sentence.
pub(crate) const MAX_ERROR: usize = 64 << 10;
/// A kept connection older than this is not used again: a server may be closing it just then, and a
/// request that changes something is not sent twice. Well below what the daemon allows.
const MAX_IDLE: Duration = Duration::from_secs(5);
/// For everything that neither boots a machine nor runs a command.
pub(crate) const QUICK: Duration = Duration::from_secs(120);

/// What the server said about itself, in the last answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// `X-Bhatti-Version`.
    pub version: Option<String>,
    /// `X-Bhatti-Min-CLI`: the oldest client it wants to talk to.
    pub min_cli: Option<String>,
}

/// A client of one API address with one key. Must be used inside a tokio runtime.
pub struct Client {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    kept: Mutex<Kept>,
}

/// What outlives a request.
#[derive(Default)]
struct Kept {
    connection: Option<(Sender, Instant)>,
    timing: Option<Timing>,
    server: ServerInfo,
    warning: Option<String>,
}

/// A request before it has a connection.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Path and query, already escaped.
    pub(crate) path: &'a str,
    pub(crate) body: Option<String>,
    /// A body that is no JSON.
    pub(crate) content: Option<Bytes>,
    pub(crate) accept: Option<&'static str>,
    /// Asks for a WebSocket instead of an answer.
    pub(crate) upgrade: Option<Upgrade<'a>>,
    /// Asks for another protocol instead of an answer.
    pub(crate) protocol: Option<&'static str>,
    /// For the headers and the body together.
    pub(crate) limit: Duration,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            body: None,
            content: None,
            accept: None,
            upgrade: None,
            protocol: None,
            limit: QUICK,
        }
    }
}

/// An answer whose body is still to be read.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) stopwatch: Stopwatch,
    /// To be kept once the body has been read; until then it can carry nothing else.
    pub(crate) sender: Sender,
}

impl Client {
    /// Connects to nothing yet. An empty token is no token.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let endpoint = Endpoint::parse(url)?;
        let authorization = match token {
            None | Some("") => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| ClientError::BadToken)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { endpoint, authorization, kept: Mutex::default() })
    }

    /// Where requests go.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The phases of the last request that ended.
    pub fn timing(&self) -> Option<Timing> {
        self.kept().timing
    }

    /// What the last answer said about the server.
    pub fn server(&self) -> ServerInfo {
        self.kept().server.clone()
    }

    /// What the server warned of since this was last asked: that a sandbox has lost something in
    /// waking for a request.
    pub fn take_warning(&self) -> Option<String> {
        self.kept().warning.take()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Nothing in there can be left half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self, stopwatch: Stopwatch) {
        self.kept().timing = Some(stopwatch.finish());
    }

    /// Sends, waits for the whole answer and reads it as `T`. The status of a success is
    /// returned with it, and the headers.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<(T, HeaderMap), ClientError> {
        let limit = call.limit;
        let work = async { self.read_json(self.send(&call).await?).await };
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or(Err(ClientError::Timeout { seconds: limit.as_secs() }))
    }

    /// Reads an answer to its end as `T`.
    pub(crate) async fn read_json<T: DeserializeOwned>(
        &self,
        answer: Answer,
    ) -> Result<(T, HeaderMap), ClientError> {
        let Answer { response, stopwatch, sender } = answer;
        let (parts, body) = response.into_parts();
        let success = parts.status.is_success();
        let body = collect(body, if success { MAX_ANSWER } else { MAX_ERROR }).await;
        self.record(stopwatch);
        if body.is_ok() {
            self.keep(sender);
        }
        match (success, body) {
            (true, body) => {
                let body = body?;
                // So that an answer without content can be read as nothing.
                let body: &[u8] = if body.is_empty() { b"null" } else { &body };
                let value = serde_json::from_slice(body).map_err(|error| {
                    ClientError::caused("the server's answer is not what was expected", error)
                })?;
                Ok((value, parts.headers))
            }
            // The status is worth more than its text.
            (false, body) => Err(ClientError::from_body(parts.status, &body.unwrap_or_default())),
        }
    }

    /// Keeps a connection for the next request, once nothing of the last is on it any more.
    pub(crate) fn keep(&self, sender: Sender) {
        self.kept().connection = Some((sender, Instant::now()));
    }

    /// Sends and waits for the headers.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Answer, ClientError> {
        let mut stopwatch = Stopwatch::start();
        let kept = self.kept().connection.take();
        let (response, sender) = match kept {
            Some((sender, used)) if !sender.is_closed() && used.elapsed() < MAX_IDLE => {
                let request = self.request(call, body(call))?;
                match exchange(sender, request, &mut stopwatch).await {
                    // An idle connection may die at any time: nothing to tell anybody.
                    Err(failure) if failure.unsent || call.method == Method::GET => {
                        self.exchange_fresh(call, &mut stopwatch).await
                    }
                    other => other.map_err(|failure| failure.error),
                }
            }
            _ => self.exchange_fresh(call, &mut stopwatch).await,
        }?;
        Ok(self.answer(response, sender, stopwatch))
    }

    /// The same with a body that is made while it is sent. It cannot be sent twice, so it goes
    /// over a connection of its own, which nobody else can have closed.
    pub(crate) async fn send_stream(
        &self,
        call: &Call<'_>,
        body: Outgoing,
    ) -> Result<Answer, ClientError> {
        let mut stopwatch = Stopwatch::start();
        let (sender, timing) = connect(&self.endpoint).await?;
        stopwatch.connected(timing);
        let request = self.request(call, body)?;
        let (response, sender) =
            exchange(sender, request, &mut stopwatch).await.map_err(|failure| failure.error)?;
        Ok(self.answer(response, sender, stopwatch))
    }

    fn answer(&self, response: Response<Incoming>, sender: Sender, stopwatch: Stopwatch) -> Answer {
        let said = |name: &str| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let (version, min_cli) = (said(route::VERSION_HEADER), said(route::MIN_CLI_HEADER));
        let warning = said(route::WARNING_HEADER);
        let mut kept = self.kept();
        kept.server = ServerInfo { version, min_cli };
        // One that nobody has taken yet is not forgotten for an answer without any.
        kept.warning = warning.or(kept.warning.take());
        drop(kept);
        Answer { response, stopwatch, sender }
    }

    async fn exchange_fresh(
        &self,
        call: &Call<'_>,
        stopwatch: &mut Stopwatch,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        let (sender, timing) = connect(&self.endpoint).await?;
        stopwatch.connected(timing);
        let request = self.request(call, body(call))?;
        exchange(sender, request, stopwatch).await.map_err(|failure| failure.error)
    }

    fn request(&self, call: &Call<'_>, body: Outgoing) -> Result<Request<Outgoing>, ClientError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(self.endpoint.path(call.path))
            .header(HOST, &self.endpoint.authority);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(accept) = call.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(upgrade) = &call.upgrade {
            request = upgrade.ask(request);
        }
        if let Some(protocol) = call.protocol {
            request = request.header(CONNECTION, "Upgrade").header(UPGRADE, protocol);
        }
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(content) = &call.content {
            // Said even where there is nothing to send.
            request = request.header(CONTENT_LENGTH, content.len());
        }
        request
            .body(body)
            .map_err(|error| ClientError::caused("the request cannot be written", error))
    }
}

/// The body of a call. Cheap to make again.
fn body(call: &Call<'_>) -> Outgoing {
    let bytes = match (&call.content, &call.body) {
        (Some(content), _) => content.clone(),
        (None, Some(json)) => Bytes::from(json.clone()),
        (None, None) => Bytes::new(),
    };
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

async fn exchange(
    mut sender: Sender,
    request: Request<Outgoing>,
    stopwatch: &mut Stopwatch,
) -> Result<(Response<Incoming>, Sender), Failure> {
    let broken = |error: hyper::Error, unsent| Failure {
        unsent,
        error: ClientError::caused("the connection to the server broke", error),
    };
    sender.ready().await.map_err(|error| broken(error, true))?;
    let sent = Instant::now();
    let response = sender.try_send_request(request).await.map_err(|mut failure| {
        let unsent = failure.take_message().is_some();
        broken(failure.into_error(), unsent)
    })?;
    stopwatch.headers(sent);
    Ok((response, sender))
}

/// A request without an answer.
struct Failure {
    /// Not a byte of it was sent, so it may be sent again whatever it does.
    unsent: bool,
    error: ClientError,
}

/// Reads a body to its end, but never more than `most` bytes.
pub(crate) async fn collect(body: Incoming, most: usize) -> Result<Bytes, ClientError> {
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ClientError::protocol("the server's answer is too large"))
        }
        Err(error) => {
            Err(ClientError::caused("the server's answer broke off before its end", error))
        }
    }
}
