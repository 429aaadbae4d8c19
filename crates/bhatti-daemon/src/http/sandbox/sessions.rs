//! `GET /sandboxes/:sandbox/sessions`

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bhatti_api::{Session, SessionKind};
use bhatti_guest_client::{Kind, SessionInfo};
use bhatti_lifecycle::ServiceError;

use super::files::Use;
use crate::http::body::{Named, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

/// Sessions live in the guest, so this wakes it.
pub(in crate::http) async fn sessions(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
) -> Result<Response, ApiError> {
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let used = Use::of(&api, &row).await?;
    let listed = used.lease.guest().sessions().await.map_err(ServiceError::Guest);
    let answered = listed.map(|listed| {
        let sessions: Vec<Session> = listed.into_iter().map(view).collect();
        Written(StatusCode::OK, sessions).into_response()
    });
    Ok(used.answer(answered.map_err(ApiError::from)))
}

fn view(info: SessionInfo) -> Session {
    Session {
        session_id: info.id,
        argv: info.command,
        tty: info.kind == Kind::Terminal,
        running: info.exit_code.is_none(),
        exit_code: info.exit_code,
        attached: info.attached,
        created_at: info.created_at,
        kind: match info.kind {
            Kind::Terminal => SessionKind::Tty,
            Kind::Piped => SessionKind::Piped,
            Kind::Detached => SessionKind::Detached,
        },
        pid: info.pid,
        output_file: info.output_file,
    }
}
