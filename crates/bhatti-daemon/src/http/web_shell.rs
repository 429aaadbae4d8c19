//! `/_shell`: a sandbox's shell in the browser of whoever has the link.
//!
//! ```text
//!  page ──▶ assets                     (the same for every id)
//!    └────▶ socket ── token ──▶ door ──▶ wake ──▶ session ──▶ relay
//! ```
//!
//! Nothing here asks for an API key, and nothing before the token tells which sandboxes there are.

mod door;
mod page;
mod socket;

pub(crate) use door::WebShells;
pub(super) use door::household;

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get};
use bhatti_api::route;

use super::{Api, ApiError};

/// Whether a path that was cleaned is one of ours.
pub(super) fn is_below(path: &str) -> bool {
    path.strip_prefix(route::WEB_SHELL).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Everything below `/_shell`.
pub(super) fn routes() -> Router<Arc<Api>> {
    let not_allowed = || async { ApiError::MethodNotAllowed };
    let unknown = || any(|| async { ApiError::UnknownPath });
    Router::new()
        .route("/_shell", unknown())
        .route("/_shell/", unknown())
        .route("/_shell/{id}", get(page::page).fallback(not_allowed))
        .route("/_shell/{id}/", unknown())
        .route("/_shell/{id}/ws", get(socket::socket).fallback(not_allowed))
        .route("/_shell/{id}/{*rest}", unknown())
        // No id: those are 16 hex digits.
        .route("/_shell/assets/{name}", get(page::asset).fallback(not_allowed))
}
