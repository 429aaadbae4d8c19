//! `PATCH /sandboxes/:sandbox`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::{PatchSandbox, Sandbox};
use bhatti_lifecycle::PatchSpec;

use super::create::sandbox_name;
use super::{net_policy, view};
use crate::http::body::{Named, Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// What is absent stays.
pub(in crate::http) async fn patch(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    Read(body): Read<PatchSandbox>,
) -> Result<Written<Sandbox>, ApiError> {
    let spec = PatchSpec {
        name: body.name.as_deref().map(sandbox_name).transpose()?,
        keep_hot: body.keep_hot,
        labels_add: body.labels_add,
        labels_remove: body.labels_remove,
        net_policy: net_policy(body.net_policy)?,
    };
    let row = api.sandboxes.patch(&caller, &sandbox, spec).await?;
    Ok(Written(StatusCode::OK, view(row)))
}
