//! `DELETE /sandboxes/:sandbox`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::StatusBody;

use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Answers when everything of the sandbox is gone from the host.
pub(in crate::http) async fn destroy(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<Written<StatusBody>, ApiError> {
    api.sandboxes.destroy(&caller, &sandbox).await?;
    Ok(Written(StatusCode::OK, StatusBody { status: "destroyed".to_owned() }))
}
