//! `POST /snapshots/:snapshot/resume`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use bhatti_api::{ResumeSnapshot, Sandbox};

use crate::http::body::{Named, Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError, sandbox};

/// Answers when the new sandbox's guest does.
pub(in crate::http) async fn resume(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(snapshot): Named,
    Read(ResumeSnapshot { name, net_policy }): Read<ResumeSnapshot>,
) -> Result<Written<Sandbox>, ApiError> {
    let name = if name.is_empty() { None } else { Some(sandbox::sandbox_name(&name)?) };
    let policy = sandbox::net_policy(net_policy)?;
    let row = api.sandboxes.resume_snapshot(&caller, &snapshot, name, policy).await?;
    Ok(Written(StatusCode::CREATED, sandbox::view(row)))
}
