//! `DELETE /snapshots/:snapshot`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::StatusBody;

use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Sandboxes that came of it stay.
pub(in crate::http) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(snapshot): Named,
) -> Result<Written<StatusBody>, ApiError> {
    api.sandboxes.delete_snapshot(&caller, &snapshot).await?;
    Ok(Written(StatusCode::OK, StatusBody { status: "deleted".to_owned() }))
}
