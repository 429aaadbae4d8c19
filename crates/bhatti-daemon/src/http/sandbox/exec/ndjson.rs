//! The streamed answer: one JSON object a line, as the output comes.
//!
//! Promises: the last line is exactly one `exit` or `error`, unless the client hangs up; a line
//! has at most [`MAX_DATA`] bytes of output; nothing is read from the guest while the client has
//! not taken what came before.

use std::collections::VecDeque;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bhatti_api::{ExecEvent, ExecResult, route, to_json};
use bhatti_guest_client::{ExecEvent as GuestEvent, GuestError, Running};
use bhatti_lifecycle::Lease;

use super::text::Utf8Stream;

/// The most bytes of output in one line. Clients read lines into buffers of a fixed size.
const MAX_DATA: usize = 8192;

fn ndjson(body: Body) -> Response {
    let headers =
        [(header::CONTENT_TYPE, route::NDJSON), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, body).into_response()
}

/// Everything at once, of a command that did not run.
pub(super) fn whole(result: &ExecResult) -> Response {
    let lines = [
        to_json(&ExecEvent::Stderr { data: result.stderr.clone() }),
        to_json(&ExecEvent::Exit { exit_code: result.exit_code, timed_out: false }),
    ];
    ndjson(Body::from(lines.concat()))
}

/// Events as they come. The last line is exactly one `exit` or `error`.
pub(super) fn stream(running: Running, lease: Lease) -> Response {
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
                for piece in bytes.chunks(MAX_DATA) {
                    let data = self.stdout.push(piece);
                    self.say(ExecEvent::Stdout { data });
                }
                return;
            }
            Ok(Some(GuestEvent::Stderr(bytes))) => {
                for piece in bytes.chunks(MAX_DATA) {
                    let data = self.stderr.push(piece);
                    self.say(ExecEvent::Stderr { data });
                }
                return;
            }
            Ok(Some(GuestEvent::Exit { code, timed_out })) => {
                ExecEvent::Exit { exit_code: code, timed_out }
            }
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
