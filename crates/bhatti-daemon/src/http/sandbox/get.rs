//! `GET /sandboxes/:sandbox`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::Sandbox;

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
    Ok(Written(StatusCode::OK, view(row)))
}
