//! The HTTP API: routes and the order in which a request is examined.
//!
//! version header → `/health`, `/_shell` → bearer token → rate limit → the account's share of
//! connections → request id → path cleaning → handler → log line. Handlers only translate; decisions are in `bhatti-lifecycle`.

mod body;
mod connection;
mod domain;
mod error;
mod gate;
mod limits;
mod proxy;
mod public;
mod sandbox;
mod shares;
mod shell_token;
mod snapshot;
mod socket;
mod web_shell;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::routing::{any, delete, get, post};
use bhatti_engine::EngineInfo;
use bhatti_lifecycle::{Events, Sandboxes};
use bhatti_store::Db;

pub(crate) use connection::{Entry, Guests, Routers, UnderWay, serve};
pub(crate) use domain::{
    CertificateError, Published, Secure, check as check_certificate, plain_router,
};
use error::ApiError;
pub(crate) use limits::Limits;
pub(crate) use proxy::Proxy;
pub(crate) use public::{Public, Site};
pub(crate) use sandbox::Room;
pub(crate) use socket::Sockets;
pub(crate) use web_shell::WebShells;

/// What handlers see of the daemon.
pub(crate) struct Api {
    pub(crate) sandboxes: Sandboxes,
    pub(crate) db: Db,
    pub(crate) events: Events,
    pub(crate) limits: Limits,
    pub(crate) under_way: UnderWay,
    pub(crate) sockets: Sockets,
    pub(crate) room: Room,
    pub(crate) proxy: Proxy,
    pub(crate) public: Arc<Public>,
    pub(crate) web_shells: Arc<WebShells>,
    pub(crate) engine: EngineInfo,
    pub(crate) started: Instant,
}

/// Every route. Whatever is not here is answered by the fallbacks below.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let not_allowed = || async { ApiError::MethodNotAllowed };
    // The contract reads whatever follows the name as nothing.
    let snapshot = || get(snapshot::get).delete(snapshot::delete).fallback(not_allowed);
    Router::new()
        .route("/sandboxes", get(sandbox::list).post(sandbox::create).fallback(not_allowed))
        .route("/sandboxes/", any(|| async { ApiError::Missing("sandbox id") }))
        .route(
            "/sandboxes/{sandbox}",
            get(sandbox::get).patch(sandbox::patch).delete(sandbox::destroy).fallback(not_allowed),
        )
        .route("/sandboxes/{sandbox}/", any(|| async { ApiError::UnknownPath }))
        .route("/sandboxes/{sandbox}/exec", post(sandbox::exec).fallback(not_allowed))
        .route("/sandboxes/{sandbox}/exec/stream", any(sandbox::exec_stream))
        .route("/sandboxes/{sandbox}/exec/ws", any(sandbox::piped))
        .route("/sandboxes/{sandbox}/ws", any(sandbox::shell))
        .route("/sandboxes/{sandbox}/sessions", get(sandbox::sessions).fallback(not_allowed))
        .route(
            "/sandboxes/{sandbox}/files",
            get(sandbox::read_file)
                .head(sandbox::look_at_file)
                .put(sandbox::write_file)
                .fallback(not_allowed),
        )
        .route(
            "/sandboxes/{sandbox}/archive",
            get(sandbox::pack).head(not_allowed).put(sandbox::unpack).fallback(not_allowed),
        )
        .route("/sandboxes/{sandbox}/ports", get(sandbox::ports).fallback(not_allowed))
        .route("/sandboxes/{sandbox}/proxy/{port}", any(sandbox::proxy))
        .route("/sandboxes/{sandbox}/proxy/{port}/", any(sandbox::proxy))
        .route("/sandboxes/{sandbox}/proxy/{port}/{*path}", any(sandbox::proxy))
        .route(
            "/sandboxes/{sandbox}/forward/{port}",
            get(sandbox::forward).head(not_allowed).fallback(not_allowed),
        )
        .route(
            "/sandboxes/{sandbox}/publish",
            get(sandbox::published).post(sandbox::publish).fallback(not_allowed),
        )
        .route(
            "/sandboxes/{sandbox}/publish/{port}",
            delete(sandbox::unpublish).fallback(|| async { ApiError::UnknownPath }),
        )
        .route("/ports", get(sandbox::all_ports).fallback(not_allowed))
        .route("/sandboxes/{sandbox}/stop", post(sandbox::stop).fallback(not_allowed))
        .route("/sandboxes/{sandbox}/start", post(sandbox::start).fallback(not_allowed))
        .route("/sandboxes/{sandbox}/checkpoint", post(sandbox::checkpoint).fallback(not_allowed))
        .route(
            "/sandboxes/{sandbox}/shell-token",
            post(shell_token::share).delete(shell_token::revoke).fallback(not_allowed),
        )
        .route("/sandboxes/{sandbox}/{*rest}", any(|| async { ApiError::UnknownPath }))
        .route("/snapshots", get(snapshot::list).fallback(not_allowed))
        .route("/snapshots/", any(|| async { ApiError::Missing("snapshot name") }))
        .route("/snapshots/{snapshot}", snapshot())
        .route("/snapshots/{snapshot}/", snapshot())
        .route("/snapshots/{snapshot}/resume", post(snapshot::resume).fallback(not_allowed))
        .route("/snapshots/{snapshot}/{*rest}", snapshot())
        .merge(web_shell::routes())
        .fallback(gate::page_not_found)
        .layer(axum::middleware::from_fn_with_state(api.clone(), gate::gate))
        .with_state(api)
}

/// What answers on the public side: published ports, and nothing else.
pub(crate) fn public_router(api: Arc<Api>) -> Router {
    Router::new().fallback(public::answer).with_state(api)
}

#[cfg(test)]
mod tests;
