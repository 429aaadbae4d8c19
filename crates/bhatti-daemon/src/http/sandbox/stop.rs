//! `POST /sandboxes/:sandbox/stop`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::Sandbox;

use super::view;
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Answers when its memory is on disk and its machine is gone. Stopping twice is fine.
pub(in crate::http) async fn stop(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<Written<Sandbox>, ApiError> {
    let row = api.sandboxes.stop(&caller, &sandbox).await?;
    Ok(Written(StatusCode::OK, view(row)))
}
