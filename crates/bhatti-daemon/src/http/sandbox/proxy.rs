//! `ANY /sandboxes/:sandbox/proxy/:port[/path]`: a program in a guest, for who may use the sandbox.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{RawPathParams, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::files::Use;
use crate::http::body::Named;
use crate::http::connection::{ByTls, Peer};
use crate::http::gate::{Caller, Foreign};
use crate::http::proxy::{
    Asker, Failure, Keys, Limit, Visit, exchange, is_ambiguous, target, words,
};
use crate::http::{Api, ApiError};

/// As long as it takes, if only something moves now and then. A question that is answered when
/// something happens is answered within minutes.
const LIMIT: Limit = Limit { whole: None, idle: Duration::from_secs(600), body: None };

/// How many segments of a path are ours: `sandboxes`, the sandbox, `proxy`, the port.
const OURS: usize = 4;

/// Answers with what the program answers. Dropping this (the client hung up) hangs up on it.
pub(in crate::http) async fn proxy(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Extension(Peer(peer)): Extension<Peer>,
    Named(sandbox): Named,
    params: RawPathParams,
    request: Request,
) -> Result<Response, ApiError> {
    // The contract has this before 404.
    let port = port(&params).ok_or(ApiError::BadRequest("invalid port".to_owned()))?;
    if is_ambiguous(request.method(), request.headers()) {
        let why = "a request for a program has one Host, no transfer coding but chunked, and is no CONNECT";
        return Err(ApiError::BadRequest(why.to_owned()));
    }
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let place = api.proxy.enter(&row.id).ok_or(ApiError::Busy)?;
    let used = Use::of(&api, &row).await?;
    let uri = target(request.uri(), OURS);
    let tunnel = request.headers().contains_key(header::UPGRADE);
    let visit = Visit {
        sandbox: row.id.clone(),
        port,
        dialer: used.lease.dialer().clone(),
        out: place.out.clone(),
        _kept: Box::new((used.lease.clone(), place)),
    };
    let https = request.extensions().get::<ByTls>().is_some();
    let asker = Asker { peer, keys: Keys::Ours, https };
    let answered = exchange(&api.proxy, request, uri, asker, visit, &LIMIT).await;
    let answered = match answered {
        Ok(mut answer) => {
            answer.extensions_mut().insert(Foreign);
            Ok(answer)
        }
        Err(Failure::NoTunnel) => Err(ApiError::Busy),
        Err(failure) => Err(bad_gateway(tunnel, &failure)),
    };
    Ok(used.answer(answered.map(IntoResponse::into_response)))
}

fn bad_gateway(tunnel: bool, failure: &Failure) -> ApiError {
    let doing = if tunnel { "tunnel failed" } else { "bad gateway" };
    ApiError::Gateway(format!("{doing}: {}", words(failure)))
}

/// The port of a path, if it is one.
pub(super) fn port(params: &RawPathParams) -> Option<u16> {
    let (_, text) = params.iter().find(|(name, _)| *name == "port")?;
    // What begins with a sign is none.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}
