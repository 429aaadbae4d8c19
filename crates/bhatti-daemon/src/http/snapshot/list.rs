//! `GET /snapshots`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::Snapshot;

use super::view;
use crate::http::body::Written;
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Newest first.
pub(in crate::http) async fn list(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
) -> Result<Written<Vec<Snapshot>>, ApiError> {
    let rows = api.sandboxes.snapshots(&caller).await?;
    Ok(Written(StatusCode::OK, rows.into_iter().map(view).collect()))
}
