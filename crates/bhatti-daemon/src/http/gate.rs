//! What happens to every request before and after its handler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bhatti_api::{ErrorBody, Health, route};
use bhatti_store::UserRow;
use bhatti_types::{ApiKey, EventKind, RequestId};
use futures_util::FutureExt;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::body::{self, Written};
use super::connection::Peer;
use super::error::Internal;
use super::limits::Class;
use super::{Api, ApiError, connection, web_shell};
use crate::VERSION;

/// Left in a response whose head is a program's, not ours.
#[derive(Clone, Copy)]
pub(super) struct Foreign;

/// The authenticated account, as handlers receive it.
#[derive(Clone)]
pub(super) struct Caller(pub(super) UserRow);

pub(super) async fn gate(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let clean = clean_path(request.uri().path());
    let mut response = if clean == route::HEALTH {
        health(&api)
    } else if web_shell::is_below(&clean) {
        // Whoever has the link may have the page; the token is said in the socket.
        if clean == request.uri().path() {
            next.run(request).await
        } else {
            moved(&clean, request.uri().query())
        }
    } else {
        let key = bearer(request.headers());
        let class = Class::of(request.method(), request.uri().path());
        match admit(&api, key, class) {
            Err(refused) => {
                if matches!(refused, ApiError::NoToken | ApiError::BadToken) {
                    // The router's own tests have no peer.
                    let ip = request.extensions().get().map(|Peer(ip)| ip.to_canonical());
                    api.events.record(EventKind::AuthFailed, None, None, json!({ "ip": ip }));
                }
                if !body::waits(request.headers()) {
                    body::discard(request.into_body().into_data_stream()).await;
                }
                refused.into_response()
            }
            Ok((user, place)) => {
                let user_id = user.id.clone();
                request.extensions_mut().insert(Caller(user));
                let response = handle(&clean, user_id.as_str(), request, next).await;
                connection::until_sent(response, place)
            }
        }
    };
    if response.extensions().get::<Foreign>().is_none() {
        // The router adds it to a 405; the contract has none.
        response.headers_mut().remove(header::ALLOW);
    }
    response
        .headers_mut()
        .insert(HeaderName::from_static(route::VERSION_HEADER), HeaderValue::from_static(VERSION));
    response
}

/// Token, then rate limit, then a place among those whose answers are still to be sent.
fn admit(
    api: &Api,
    key: Option<ApiKey>,
    class: Class,
) -> Result<(UserRow, OwnedSemaphorePermit), ApiError> {
    let key = key.ok_or(ApiError::NoToken)?;
    let found = api.db.read(|store| store.user_by_key(&key));
    let user = found.map_err(bhatti_lifecycle::ServiceError::from)?.ok_or(ApiError::BadToken)?;
    if !api.limits.allow(&user.id, class) {
        return Err(ApiError::RateLimited);
    }
    let place = api.under_way.place(&user.id)?;
    Ok((user, place))
}

async fn handle(clean: &str, user: &str, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id = RequestId::random();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response =
        if clean == path { next.run(request).await } else { moved(clean, request.uri().query()) };
    let response = expose_request_id(response, &request_id);
    tracing::info!(
        request_id = %request_id,
        method = %method,
        path,
        status = response.status().as_u16(),
        duration_ms = started.elapsed().as_millis() as u64,
        user,
        "request"
    );
    response
}

/// Logs the cause of an internal failure under an id that the client can quote.
fn expose_request_id(response: Response, request_id: &RequestId) -> Response {
    let Some(Internal { cause, guests_fault }) = response.extensions().get().cloned() else {
        return response;
    };
    if guests_fault {
        tracing::warn!(request_id = %request_id, cause, "request failed in the guest");
    } else {
        tracing::error!(request_id = %request_id, cause, "request failed");
    }
    let (parts, body) = response.into_parts();
    // The body is one of ours, a few hundred bytes, already in memory.
    match http_body_util::BodyExt::collect(body).now_or_never() {
        Some(Ok(body)) => match bhatti_api::from_json::<ErrorBody>(&body.to_bytes()) {
            Ok(body) => {
                let body = ErrorBody { request_id: Some(request_id.to_string()), ..body };
                Written(parts.status, body).into_response()
            }
            Err(_) => parts.status.into_response(),
        },
        _ => parts.status.into_response(),
    }
}

fn health(api: &Api) -> Response {
    let body = Health {
        status: "ok".to_owned(),
        uptime: go_duration(api.started.elapsed()),
        engine: format!("{} ({})", api.engine.name, api.engine.accel),
    };
    Written(StatusCode::OK, body).into_response()
}

/// `Bearer` and exactly one space; nothing else counts as a token.
fn bearer(headers: &HeaderMap) -> Option<ApiKey> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let token = value.strip_prefix("Bearer ")?;
    (!token.is_empty()).then(|| token.parse().ok()).flatten()
}

/// An authenticated request to a path nobody registered.
pub(super) async fn page_not_found() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (StatusCode::NOT_FOUND, headers, "404 page not found\n").into_response()
}

fn moved(path: &str, query: Option<&str>) -> Response {
    let target = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    match HeaderValue::from_str(&target) {
        Ok(target) => (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, target)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// Resolves `//`, `/./` and `/../` lexically; a trailing slash stays.
fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let slash = path.ends_with('/') && !parts.is_empty();
    format!("/{}{}", parts.join("/"), if slash { "/" } else { "" })
}

/// As Go prints a duration rounded to seconds: `45s`, `1m0s`, `26h3m9s`.
fn go_duration(elapsed: Duration) -> String {
    let seconds = (elapsed.as_millis() + 500) / 1000;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (dirty, clean) in [
            ("/", "/"),
            ("/a", "/a"),
            ("//a///b", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../..", "/"),
            ("/a/", "/a/"),
            ("//health", "/health"),
        ] {
            assert_eq!(clean_path(dirty), clean, "{dirty}");
        }
    }

    #[test]
    fn durations_read_like_gos() {
        let text = |seconds| go_duration(Duration::from_secs(seconds));
        assert_eq!([text(45), text(60), text(93_789)], ["45s", "1m0s", "26h3m9s"]);
    }

    #[test]
    fn only_a_proper_bearer_token_counts() {
        let token = |value: &'static str| {
            let headers =
                HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            bearer(&headers).map(|key| key.reveal().to_owned())
        };
        assert_eq!(token("Bearer bht_x").as_deref(), Some("bht_x"));
        for bad in ["bearer bht_x", "Bearer", "Bearer ", "Basic bht_x", "bht_x"] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }
}
