//! `POST /sandboxes/:sandbox/exec`: buffered, streamed, detached

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bhatti_api::{ExecDetached, ExecEvent, ExecRequest, ExecResult, route, to_json};
use bhatti_guest_client::{ExecEvent as GuestEvent, ExecSpec, GuestError, Running};
use bhatti_lifecycle::{Lease, ServiceError};

use crate::http::body::{Named, Read, Written};
use crate::http::gate::Caller;
use crate::http::{Api, ApiError};

mod buffered;
mod text;

use text::Utf8Stream;

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
    if body.cmd.is_empty() {
        return Err(ApiError::BadRequest("cmd required".to_owned()));
    }
    let timeout = timeout(body.timeout_sec)?;
    if body.cmd.iter().any(|arg| arg.contains('\0')) {
        return Err(ApiError::BadRequest("cmd must not contain NUL".to_owned()));
    }
    let lease = api.sandboxes.lease_of(&row).await?;
    let loss = api.sandboxes.loss_since(&row);
    let spec = ExecSpec { argv: body.cmd, timeout: Some(timeout), ..ExecSpec::default() };
    let detach = body.detach.then_some(body.output_file);
    // Whatever becomes of the command, the sandbox is not what it was.
    let answered = run(lease, spec, detach, streaming).await;
    Ok(warned(answered.unwrap_or_else(IntoResponse::into_response), loss))
}

/// `detach`: where the output of a detached command goes.
async fn run(
    lease: Lease,
    spec: ExecSpec,
    detach: Option<String>,
    streaming: bool,
) -> Result<Response, ApiError> {
    if let Some(output_file) = detach {
        let spec = ExecSpec { timeout: None, ..spec };
        let detached = lease.guest().exec_detached(spec, &output_file).await;
        let detached = detached.map_err(launch_error)?;
        let answer =
            ExecDetached { detached: true, output_file: detached.output_file, pid: detached.pid };
        return Ok(Written(StatusCode::OK, answer).into_response());
    }
    match (lease.guest().exec(spec).await, streaming) {
        (Ok(running), true) => Ok(stream(running, lease)),
        (Ok(running), false) => Ok(buffered::collect(running).await?.into_response()),
        (Err(error), streaming) => {
            let result = not_run(error)?;
            Ok(if streaming {
                stream_result(&result)
            } else {
                Written(StatusCode::OK, result).into_response()
            })
        }
    }
}

/// Says in a header what was lost: the body is the command's.
fn warned(mut response: Response, loss: Option<String>) -> Response {
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
    Ok(ExecResult { exit_code, stdout: String::new(), stderr: format!("{text}\n") })
}

fn ndjson(body: Body) -> Response {
    let headers =
        [(header::CONTENT_TYPE, route::NDJSON), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, body).into_response()
}

fn stream_result(result: &ExecResult) -> Response {
    let lines = [
        to_json(&ExecEvent::Stderr { data: result.stderr.clone() }),
        to_json(&ExecEvent::Exit { exit_code: result.exit_code }),
    ];
    ndjson(Body::from(lines.concat()))
}

/// Events as they come. The last line is exactly one `exit` or `error`.
fn stream(running: Running, lease: Lease) -> Response {
    let source = Source {
        running: Some(running),
        _lease: lease,
        stdout: Utf8Stream::default(),
        stderr: Utf8Stream::default(),
        lines: VecDeque::new(),
    };
    let lines = futures_util::stream::unfold(source, |mut source| async move {
        let line = source.next_line().await?;
        Some((Ok::<_, std::convert::Infallible>(line), source))
    });
    ndjson(Body::from_stream(lines))
}

struct Source {
    /// `None` after the terminal event.
    running: Option<Running>,
    /// Keeps the sandbox awake while the client listens.
    _lease: Lease,
    stdout: Utf8Stream,
    stderr: Utf8Stream,
    lines: VecDeque<String>,
}

impl Source {
    async fn next_line(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            let event = self.running.as_mut()?.next().await;
            self.translate(event);
        }
    }

    fn translate(&mut self, event: Result<Option<GuestEvent>, GuestError>) {
        let terminal = match event {
            Ok(Some(GuestEvent::Stdout(bytes))) => {
                let data = self.stdout.push(&bytes);
                return self.say(ExecEvent::Stdout { data });
            }
            Ok(Some(GuestEvent::Stderr(bytes))) => {
                let data = self.stderr.push(&bytes);
                return self.say(ExecEvent::Stderr { data });
            }
            Ok(Some(GuestEvent::Exit { code, .. })) => ExecEvent::Exit { exit_code: code },
            Ok(None) => ExecEvent::Error { data: GuestError::LinkLost(None).to_string() },
            Err(error) => ExecEvent::Error { data: error.to_string() },
        };
        self.running = None;
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        self.say(ExecEvent::Stdout { data: stdout });
        self.say(ExecEvent::Stderr { data: stderr });
        self.say(terminal);
    }

    fn say(&mut self, event: ExecEvent) {
        let empty = matches!(
            &event,
            ExecEvent::Stdout { data } | ExecEvent::Stderr { data } if data.is_empty()
        );
        if !empty {
            self.lines.push_back(to_json(&event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_in_a_header_that_any_client_can_read() {
        let answer = |loss: Option<&str>| {
            let response = warned(stream_result(&not_run_result()), loss.map(str::to_owned));
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
