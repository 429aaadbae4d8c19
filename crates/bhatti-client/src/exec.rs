//! `POST /sandboxes/:s/exec`: buffered, streamed, detached.

use std::time::Duration;

use bhatti_api::{ExecDetached, ExecEvent, ExecRequest, ExecResult, route, to_json};
use bytes::BytesMut;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use crate::client::{Answer, Call, MAX_ERROR, collect};
use crate::timing::Stopwatch;
use crate::{Client, ClientError};

/// What waking the machine and the way there and back may add to the command's own time.
const SLACK: Duration = Duration::from_secs(600);
/// The longest line of a stream. The server sends at most 8 KiB of output in one, and JSON makes
/// at most six characters of a byte.
const MAX_LINE: usize = 1 << 20;

/// How long a call with this request may take before the server must be gone.
fn limit(request: &ExecRequest) -> Duration {
    let seconds = u32::try_from(request.timeout_sec)
        .ok()
        .filter(|seconds| *seconds > 0)
        .unwrap_or(ExecRequest::DEFAULT_TIMEOUT_SEC);
    Duration::from_secs(seconds.min(ExecRequest::MAX_TIMEOUT_SEC).into()) + SLACK
}

impl Client {
    fn exec_call<'a>(path: &'a str, request: &ExecRequest) -> Call<'a> {
        let mut call = Call::new(Method::POST, path);
        call.body = Some(to_json(request));
        call.limit = limit(request);
        call
    }

    /// Runs a command and returns all its output at its end.
    pub async fn exec_buffered(
        &self,
        sandbox: &str,
        request: &ExecRequest,
    ) -> Result<ExecResult, ClientError> {
        let request = ExecRequest { detach: false, ..request.clone() };
        Ok(self.json(Self::exec_call(&route::exec(sandbox), &request)).await?.0)
    }

    /// Starts a command that goes on by itself.
    pub async fn exec_detached(
        &self,
        sandbox: &str,
        request: &ExecRequest,
    ) -> Result<ExecDetached, ClientError> {
        let request = ExecRequest { detach: true, ..request.clone() };
        Ok(self.json(Self::exec_call(&route::exec(sandbox), &request)).await?.0)
    }

    /// Runs a command and returns its output as it comes. Dropping the stream drops the
    /// connection, and the server ends the command.
    pub async fn exec_stream(
        &self,
        sandbox: &str,
        request: &ExecRequest,
    ) -> Result<ExecStream<'_>, ClientError> {
        let request = ExecRequest { detach: false, ..request.clone() };
        let path = route::exec(sandbox);
        let mut call = Self::exec_call(&path, &request);
        call.accept = Some(route::NDJSON);
        let seconds = call.limit.as_secs();
        let deadline = Instant::now() + call.limit;
        let late = |_| ClientError::Timeout { seconds };
        let Answer { response, stopwatch, .. } =
            timeout_at(deadline, self.send(&call)).await.map_err(late)??;
        let (parts, body) = response.into_parts();
        if !parts.status.is_success() {
            let body = timeout_at(deadline, collect(body, MAX_ERROR)).await.map_err(late)?;
            self.record(stopwatch);
            return Err(ClientError::from_body(parts.status, &body.unwrap_or_default()));
        }
        if !is_ndjson(&parts.headers) {
            return Err(ClientError::protocol(
                "the server does not stream: its answer is no stream",
            ));
        }
        Ok(ExecStream {
            client: self,
            body,
            unread: BytesMut::new(),
            scanned: 0,
            deadline,
            seconds,
            stopwatch: Some(stopwatch),
        })
    }
}

fn is_ndjson(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.and_then(|value| value.split(';').next()).map(str::trim) == Some(route::NDJSON)
}

/// The output of a running command.
pub struct ExecStream<'a> {
    client: &'a Client,
    body: Incoming,
    unread: BytesMut,
    /// How much of `unread` is known to have no line end.
    scanned: usize,
    deadline: Instant,
    seconds: u64,
    /// Taken at the end of the stream; `None` says that it is over.
    stopwatch: Option<Stopwatch>,
}

impl ExecStream<'_> {
    /// The next event. After `Exit` or `Error`, and after a failure, there is none. A stream
    /// that ends without either is an error.
    ///
    /// Cancel safe: what was read stays here.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, ClientError> {
        if self.stopwatch.is_none() {
            return Ok(None);
        }
        let event = self.read_event().await;
        if !matches!(event, Ok(ExecEvent::Stdout { .. } | ExecEvent::Stderr { .. }))
            && let Some(stopwatch) = self.stopwatch.take()
        {
            self.client.record(stopwatch);
        }
        event.map(Some)
    }

    async fn read_event(&mut self) -> Result<ExecEvent, ClientError> {
        loop {
            if let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line).map_err(|error| {
                    ClientError::caused("the stream has a line that is no event", error)
                });
            }
            if self.unread.len() > MAX_LINE {
                return Err(ClientError::protocol("the stream has a line without end"));
            }
            let late = |_| ClientError::Timeout { seconds: self.seconds };
            match timeout_at(self.deadline, self.body.frame()).await.map_err(late)? {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.unread.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(ClientError::caused(
                        "the stream broke off before the command ended",
                        error,
                    ));
                }
                None => {
                    return Err(ClientError::protocol("the stream ended before the command did"));
                }
            }
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        let end = self.unread[self.scanned..].iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) => {
                let line = self.unread.split_to(self.scanned + end + 1);
                self.scanned = 0;
                Some(line)
            }
            None => {
                self.scanned = self.unread.len();
                None
            }
        }
    }
}
