//! `GET /sandboxes/:sandbox`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::Sandbox;
use bhatti_engine::HeldBack;
use bhatti_types::NetPolicy;

use super::view;
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Reads; wakes nothing, writes nothing.
pub(in crate::http) async fn get(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<Written<Sandbox>, ApiError> {
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    // Counted where there is a policy to wonder about: looking costs a process.
    let denied = match row.net_policy == NetPolicy::default() {
        true => None,
        false => api.sandboxes.denied(&caller, &row).await,
    };
    let held_back = api.sandboxes.held_back(&row).await;
    let held_back = held_back.map(|HeldBack { disk, sent, received }| bhatti_api::HeldBack {
        disk,
        sent,
        received,
    });
    Ok(Written(StatusCode::OK, Sandbox { egress_denied: denied, held_back, ..view(row) }))
}
