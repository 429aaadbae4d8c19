//! `GET /snapshots/:snapshot`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::Snapshot;

use super::view;
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Reads the record.
pub(in crate::http) async fn get(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(snapshot): Named,
) -> Result<Written<Snapshot>, ApiError> {
    let row = api.sandboxes.snapshot(&caller, &snapshot).await?;
    Ok(Written(StatusCode::OK, view(row)))
}
