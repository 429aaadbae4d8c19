//! `/sandboxes/:sandbox/exec`: what all ways to run a command have in common, and the choice
//! between them.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{ExecDetached, ExecRequest, ExecResult, route};
use bhatti_guest_client::{ExecSpec, GuestError};
use bhatti_lifecycle::{Lease, ServiceError};
use bhatti_types::UserId;

use crate::http::body::{Named, Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

mod buffered;
mod ndjson;
mod socket;
pub(super) mod text;

pub(crate) use buffered::Room;
pub(in crate::http) use socket::exec_stream;

/// Runs a command. Dropping this (the client hung up) kills the command's process group, except
/// for a detached one.
pub(in crate::http) async fn exec(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    request: Request,
) -> Result<Response, ApiError> {
    // 404 comes before complaints about the body, so the body is read here.
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let streaming = request.headers().get(header::ACCEPT).is_some_and(|v| v == route::NDJSON);
    let Read(body) = Read::<ExecRequest>::from_request(request, &()).await?;
    let spec = spec(body.cmd, body.timeout_sec)?;
    let lease = api.sandboxes.lease_of(&row).await?;
    let loss = api.sandboxes.loss_since(&row);
    let detach = body.detach.then_some(body.output_file);
    // Whatever becomes of the command, the sandbox is not what it was.
    let answered = match detach {
        Some(output_file) => detached(&lease, spec, &output_file).await,
        None if streaming => streamed(lease, spec).await,
        None => whole(&api, &caller.id, &lease, spec).await,
    };
    Ok(warned(answered.unwrap_or_else(IntoResponse::into_response), loss))
}

async fn detached(lease: &Lease, spec: ExecSpec, output_file: &str) -> Result<Response, ApiError> {
    let spec = ExecSpec { timeout: None, ..spec };
    let detached = lease.guest().exec_detached(spec, output_file).await.map_err(launch_error)?;
    let answer =
        ExecDetached { detached: true, output_file: detached.output_file, pid: detached.pid };
    Ok(Written(StatusCode::OK, answer).into_response())
}

async fn streamed(lease: Lease, spec: ExecSpec) -> Result<Response, ApiError> {
    Ok(match lease.guest().exec(spec).await {
        Ok(running) => ndjson::stream(running, lease),
        Err(error) => ndjson::whole(&not_run(error)?),
    })
}

async fn whole(
    api: &Api,
    user: &UserId,
    lease: &Lease,
    spec: ExecSpec,
) -> Result<Response, ApiError> {
    let time = spec.timeout.unwrap_or_default();
    Ok(match lease.guest().exec(spec).await {
        Ok(running) => buffered::collect(running, &api.room, user, time).await?.into_response(),
        Err(error) => Written(StatusCode::OK, not_run(error)?).into_response(),
    })
}

/// Says in a header what was lost: the body is the command's.
pub(super) fn warned(mut response: Response, loss: Option<String>) -> Response {
    /// Characters of a header; reasons are one sentence.
    const MOST: usize = 1000;
    let Some(loss) = loss else { return response };
    // A reason may quote what a guest or a system has said.
    let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let text: String = loss.chars().take(MOST).map(plain).collect();
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(HeaderName::from_static(route::WARNING_HEADER), value);
    }
    response
}

/// What every request for a command has to be.
fn spec(cmd: Vec<String>, timeout_sec: i64) -> Result<ExecSpec, ApiError> {
    if cmd.is_empty() {
        return Err(ApiError::BadRequest("cmd required".to_owned()));
    }
    let timeout = timeout(timeout_sec)?;
    if cmd.iter().any(|arg| arg.contains('\0')) {
        return Err(ApiError::BadRequest("cmd must not contain NUL".to_owned()));
    }
    Ok(ExecSpec { argv: cmd, timeout: Some(timeout), ..ExecSpec::default() })
}

fn timeout(seconds: i64) -> Result<Duration, ApiError> {
    let seconds = match seconds {
        0 => ExecRequest::DEFAULT_TIMEOUT_SEC,
        seconds => u32::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds <= ExecRequest::MAX_TIMEOUT_SEC)
            .ok_or_else(|| {
                ApiError::BadRequest(format!(
                    "timeout_sec must be from 1 to {}, got {seconds}",
                    ExecRequest::MAX_TIMEOUT_SEC
                ))
            })?,
    };
    Ok(Duration::from_secs(u64::from(seconds)))
}

fn launch_error(error: GuestError) -> ApiError {
    match error {
        GuestError::NotFound(text)
        | GuestError::NotExecutable(text)
        | GuestError::Invalid(text) => ApiError::BadRequest(text),
        other => ServiceError::Guest(other).into(),
    }
}

/// A command that could not run is an outcome, as in a shell: 127 or 126 and a sentence.
fn not_run(error: GuestError) -> Result<ExecResult, ApiError> {
    let (exit_code, text) = match error {
        GuestError::NotFound(text) => (127, text),
        GuestError::NotExecutable(text) => (126, text),
        other => return Err(launch_error(other)),
    };
    let stderr = format!("{text}\n");
    Ok(ExecResult { exit_code, stdout: String::new(), stderr, timed_out: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_in_a_header_that_any_client_can_read() {
        let answer = |loss: Option<&str>| {
            let response = warned(ndjson::whole(&not_run_result()), loss.map(str::to_owned));
            let value = response.headers().get(route::WARNING_HEADER).cloned();
            value.map(|value| value.to_str().expect("printable ASCII").to_owned())
        };
        assert_eq!(answer(None), None);
        assert_eq!(answer(Some("memory is lost")).as_deref(), Some("memory is lost"));
        let hostile = "memory is lost: \r\nset-cookie: x\u{7f}\u{e9}";
        assert_eq!(answer(Some(hostile)).as_deref(), Some("memory is lost: ??set-cookie: x??"));
        let long = "x".repeat(100_000);
        assert_eq!(answer(Some(&long)).map(|text| text.len()), Some(1000));
    }

    fn not_run_result() -> ExecResult {
        not_run(GuestError::NotFound("no such program".to_owned())).expect("an outcome")
    }

    #[test]
    fn a_timeout_out_of_range_is_an_error() {
        assert_eq!(timeout(0).ok(), Some(Duration::from_secs(300)));
        assert_eq!(timeout(86_400).ok(), Some(Duration::from_secs(86_400)));
        for bad in [-1, 86_401, i64::MAX] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }
}
