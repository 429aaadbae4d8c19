//! Published ports, for anybody: a listener of its own, no keys.
//!
//! ```text
//!  request ─▶ site: which alias? ─▶ limits ─▶ record ─▶ door ─▶ wake ─▶ proxy::exchange
//! ```
//!
//! Promises:
//! - What is unpublished or destroyed is not answered from that moment on, and who is being
//!   answered is cut off: the record is asked for every request, unless nothing has been written
//!   since (`known`), and under the lock that putting out takes (`proxy::Crowd`). An answer that has
//!   come as a whole is sent (ADR 0027).
//! - A stranger learns of an alias only whether it is published.
//! - Whatever strangers send, a request takes five minutes at most, a sandbox is woken once for all
//!   that come meanwhile, and at most ten are being woken at a time.
//! - What a stranger can make us remember is bounded.

mod door;
mod known;
mod limits;
mod site;
mod wakes;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::ErrorBody;
use bhatti_config::PublicLimits;
use bhatti_lifecycle::{Lease, chain};
use bhatti_store::{SandboxRow, StoreError};
use bhatti_types::{Alias, EventKind, Phase, PublishId, UserId};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::Api;
use super::body::Written;
use super::connection::Peer;
use super::domain::Secure;
use super::proxy::{
    Admitted, Asker, Crowd, Failure, Keys, Limit, Place, Visit, exchange, is_ambiguous, target,
    words,
};
use door::Admission;
use known::{Known, Stands};
use limits::Limits;
pub(crate) use site::Site;
use site::Sought;
pub(super) use site::host;
use wakes::Wakes;

/// How long a request may take, tunnels included.
const WHOLE: Duration = Duration::from_secs(300);

/// The largest body of a request, in bytes.
const MAX_BODY: u64 = 50 << 20;

/// The most requests to one alias at once. Below what a sandbox takes, so that another of its
/// aliases, and its owner, find room.
const MAX_VISITORS: usize = 256;

/// What the public side of a daemon has in common.
pub(crate) struct Public {
    /// Where it is; `None`: nowhere.
    pub(super) site: Option<Site>,
    limits: Limits,
    /// With a domain of one's own.
    secure: Option<Arc<Secure>>,
    visitors: Crowd<PublishId>,
    known: Known,
    wakes: Wakes,
}

impl Public {
    pub(crate) fn new(
        site: Option<Site>,
        secure: Option<Arc<Secure>>,
        limits: PublicLimits,
    ) -> Self {
        Self {
            site,
            secure,
            limits: Limits::new(limits),
            visitors: Crowd::new(MAX_VISITORS),
            known: Known::default(),
            wakes: Wakes::default(),
        }
    }

    /// Where an alias is reached, or that there is no such place.
    pub(super) fn url(&self, alias: &Alias) -> String {
        match &self.site {
            Some(site) => site.url(alias),
            None => format!("({}) alias: {alias}", bhatti_api::NO_PUBLIC_PROXY),
        }
    }

    /// Whether an alias cannot be had here, since its URL would lead to the API.
    pub(super) fn is_apis(&self, alias: &Alias) -> bool {
        self.site.as_ref().is_some_and(|site| site.is_apis(alias))
    }

    /// An alias of `owner` was published just now.
    pub(super) fn announce(&self, alias: &Alias, owner: &UserId) {
        if let Some(secure) = &self.secure {
            secure.prepare(alias.as_str(), owner);
        }
    }

    /// Cuts off whoever is being answered under a rule.
    ///
    /// Comes after the write that changes the rule, perhaps before that is counted: who comes in after
    /// this finds what was written.
    pub(super) fn put_out(&self, rule: &PublishId) {
        self.known.forget();
        self.visitors.put_out(rule);
    }
}

/// Why there is no answer of a program. Strangers are told no more than that.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("not found")]
    NotFound,
    #[error("unknown host")]
    UnknownHost,
    #[error("bad request")]
    Ambiguous,
    #[error("the API is not on this connection")]
    Misdirected,
    #[error("this URL asks for a token, and none came that is valid")]
    NoToken,
    #[error("rate limit exceeded")]
    TooOften,
    #[error("server busy, retry shortly")]
    Busy,
    #[error("request body too large")]
    TooLarge,
    #[error("sandbox unavailable")]
    Unavailable,
    #[error("bad gateway")]
    BadGateway,
    #[error("internal error")]
    Internal,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, retry) = match &self {
            Self::NotFound | Self::UnknownHost => (StatusCode::NOT_FOUND, None),
            Self::Ambiguous => (StatusCode::BAD_REQUEST, None),
            Self::Misdirected => (StatusCode::MISDIRECTED_REQUEST, None),
            Self::NoToken => (StatusCode::UNAUTHORIZED, None),
            Self::TooOften => (StatusCode::TOO_MANY_REQUESTS, Some("1")),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, Some("2")),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, None),
            Self::Unavailable | Self::BadGateway => (StatusCode::BAD_GATEWAY, None),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        let body = ErrorBody { error: self.to_string(), request_id: None };
        let mut response = Written(status, body).into_response();
        if matches!(self, Self::NoToken) {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        if let Some(seconds) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }
}

/// Answers any request on the public side.
pub(super) async fn answer(
    State(api): State<Arc<Api>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    serve(&api, peer, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn serve(api: &Api, Peer(peer): Peer, mut request: Request) -> Result<Response, Refused> {
    let started = Instant::now();
    let site = api.public.site.as_ref().ok_or(Refused::NotFound)?;
    if is_ambiguous(request.method(), request.headers()) {
        return Err(Refused::Ambiguous);
    }
    let (alias, ours) = match site.sought(&request) {
        Sought::Alias(alias, ours) => (alias, ours),
        Sought::Api => return Err(Refused::Misdirected),
        Sought::Nothing if site.is_secure() => return Err(Refused::UnknownHost),
        Sought::Nothing => return Err(Refused::NotFound),
    };
    // Before anything is looked up: names are not found by trying them all.
    if !api.public.limits.allow_peer(peer) {
        return Err(Refused::TooOften);
    }
    let (place, stands) = find(api, &alias)?;
    let Stands { rule, row } = &*stands;
    // Before anything is woken for it, and before it is one of those that an alias is asked.
    let admission = door::admit(&mut request, rule);
    if let Admission::Refused { wrong } = admission {
        if wrong {
            let meta = json!({ "ip": peer, "alias": alias });
            api.events.record(EventKind::AuthFailed, Some(&row.owner), Some(&row.id), meta);
        }
        let told = api.public.limits.allow_refusal(&rule.id);
        return Err(if told { Refused::NoToken } else { Refused::TooOften });
    }
    if !api.public.limits.allow(&rule.id) {
        return Err(Refused::TooOften);
    }
    if let Admission::ByLink(token) = admission {
        let below = if ours == 0 { "/".to_owned() } else { format!("/{alias}") };
        return Ok(door::remember(&request, &token, &below, site.is_secure()));
    }
    if length(request.headers()).is_some_and(|length| length > MAX_BODY) {
        return Err(Refused::TooLarge);
    }
    let seat = api.proxy.enter(&row.id).ok_or(Refused::Busy)?;
    let lease = timeout(WHOLE, wake(api, row)).await.map_err(|_| Refused::Unavailable)??;
    let left = WHOLE.saturating_sub(started.elapsed());
    let limit = Limit { whole: Some(left), idle: left, body: Some(MAX_BODY) };
    let uri = target(request.uri(), ours);
    let asker = Asker { peer, keys: Keys::Theirs, https: site.is_secure() };
    let out = place.out.clone();
    let dialer = lease.dialer().clone();
    let visit = Visit {
        sandbox: row.id.clone(),
        port: rule.port,
        dialer,
        out,
        _kept: Box::new((lease, seat, place)),
    };
    let answered = exchange(&api.proxy, request, uri, asker, visit, &limit).await;
    answered.map_err(|failure| match failure {
        Failure::TooLarge => Refused::TooLarge,
        Failure::NoTunnel => Refused::Busy,
        failure => {
            let (error, millis) = (words(&failure), started.elapsed().as_millis() as u64);
            tracing::info!(alias, error, duration_ms = millis, "a published port did not answer");
            let meta = json!({
                "sandbox": row.name, "alias": alias,
                "status": 502, "error": error, "duration_ms": millis,
            });
            api.events.record(EventKind::ProxyError, Some(&row.owner), Some(&row.id), meta);
            Refused::BadGateway
        }
    })
}

/// What an alias stands for, and a place there.
fn find(api: &Api, alias: &str) -> Result<(Place<PublishId>, Arc<Stands>), Refused> {
    let look_up = || {
        let found = api.public.known.published(&api.db, alias)?;
        let seen = |row: &SandboxRow| {
            api.sandboxes.phase_now(row).is_some_and(|phase| phase.wire().is_some())
        };
        let found = found.filter(|stands| seen(&stands.row));
        Ok::<_, StoreError>(found.map(|stands| (stands.rule.id.clone(), stands)))
    };
    match api.public.visitors.admit(look_up) {
        Ok(Admitted::In(place, stands)) => Ok((place, stands)),
        Ok(Admitted::Full) => Err(Refused::Busy),
        Ok(Admitted::Nothing) => Err(Refused::NotFound),
        Err(error) => {
            tracing::error!(alias, error = chain(&error), "an alias could not be looked up");
            Err(Refused::Internal)
        }
    }
}

/// The guest, awake. All who come while it wakes wait for the same wake.
async fn wake(api: &Api, row: &SandboxRow) -> Result<Lease, Refused> {
    let _waking = match api.sandboxes.phase_now(row) {
        Some(Phase::Hot) => None,
        _ => Some(api.public.wakes.join(&row.id).ok_or(Refused::Busy)?),
    };
    api.sandboxes.lease_of(row).await.map_err(|error| {
        tracing::warn!(sandbox = %row.id, error = chain(&error), "a published sandbox did not wake");
        Refused::Unavailable
    })
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
