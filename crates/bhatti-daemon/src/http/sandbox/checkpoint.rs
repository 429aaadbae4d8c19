//! `POST /sandboxes/:sandbox/checkpoint`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::{Checkpoint, Snapshot};
use bhatti_types::Name;

use crate::http::body::{Named, Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError, snapshot};

/// Answers when the snapshot is on disk. The sandbox is afterwards as it was before: nothing is
/// woken for it.
pub(in crate::http) async fn checkpoint(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    Read(Checkpoint { name }): Read<Checkpoint>,
) -> Result<Written<Snapshot>, ApiError> {
    let name: Name =
        name.parse().map_err(|_| ApiError::BadRequest("valid name required".to_owned()))?;
    let row = api.sandboxes.checkpoint(&caller, &sandbox, name).await?;
    Ok(Written(StatusCode::CREATED, snapshot::view(row)))
}
