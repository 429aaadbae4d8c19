//! The buffered answer: everything a command printed, up to the cap, as one JSON object.
//!
//! Promises: a call holds at most the capped output as bytes. JSON of it can be six times as
//! large (control characters), so it is written while the client reads and never exists whole.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bhatti_api::{ExecRequest, to_json};
use bhatti_guest_client::{ExecEvent, GuestError, Running};
use bhatti_lifecycle::ServiceError;
use bytes::Bytes;
use futures_util::stream;

use super::text::Utf8Stream;

/// How a command ended and what it printed.
#[derive(Default)]
pub(super) struct Output {
    pub(super) exit_code: i32,
    pub(super) stdout: Vec<Bytes>,
    pub(super) stderr: Vec<Bytes>,
}

/// Runs it to its end, keeping what fits.
pub(super) async fn collect(mut running: Running) -> Result<Output, ServiceError> {
    let mut output = Output::default();
    let mut room = ExecRequest::MAX_BUFFERED;
    let mut truncated = false;
    loop {
        let (kept, bytes) = match running.next().await.map_err(ServiceError::Guest)? {
            Some(ExecEvent::Stdout(bytes)) => (&mut output.stdout, bytes),
            Some(ExecEvent::Stderr(bytes)) => (&mut output.stderr, bytes),
            Some(ExecEvent::Exit { code, .. }) => {
                output.exit_code = code;
                break;
            }
            None => return Err(ServiceError::Guest(GuestError::LinkLost(None))),
        };
        let fits = bytes.len().min(room);
        truncated |= fits < bytes.len();
        room -= fits;
        append(kept, &bytes[..fits]);
    }
    if truncated {
        output.stderr.push(Bytes::from_static(ExecRequest::TRUNCATED.as_bytes()));
    }
    Ok(output)
}

/// How much output is kept in one piece, in bytes.
const PIECE: usize = 64 * 1024;

/// Small pieces are joined, so that a command that prints byte by byte costs bytes, not pieces.
fn append(kept: &mut Vec<Bytes>, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    match kept.pop() {
        Some(last) if last.len() + bytes.len() <= PIECE => {
            // Nobody else holds the last piece, so growing it does not copy it each time.
            let mut grown = last.try_into_mut().unwrap_or_else(|last| (&last[..]).into());
            grown.extend_from_slice(bytes);
            kept.push(grown.freeze());
        }
        last => {
            kept.extend(last);
            kept.push(Bytes::copy_from_slice(bytes));
        }
    }
}

impl IntoResponse for Output {
    fn into_response(self) -> Response {
        // What fits into one write goes out with its length, in one.
        let bytes = |pieces: &[Bytes]| pieces.iter().map(Bytes::len).sum::<usize>();
        let small = bytes(&self.stdout) + bytes(&self.stderr) <= PIECE;
        let head = format!("{{\"exit_code\":{},\"stdout\":\"", self.exit_code);
        let parts = [head].into_iter().chain(escaped(self.stdout));
        let parts = parts.chain(["\",\"stderr\":\"".to_owned()]).chain(escaped(self.stderr));
        let parts = parts.chain(["\"}\n".to_owned()]);
        let body = if small {
            Body::from(parts.collect::<String>())
        } else {
            Body::from_stream(stream::iter(parts.map(Ok::<_, std::convert::Infallible>)))
        };
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

/// The inside of a JSON string, piece by piece.
fn escaped(pieces: Vec<Bytes>) -> impl Iterator<Item = String> {
    let mut text = Utf8Stream::default();
    // One more round, for a character that never came to its end.
    pieces.into_iter().map(Some).chain([None]).map(move |piece| {
        let piece = match piece {
            Some(bytes) => text.push(&bytes),
            None => text.finish(),
        };
        let quoted = to_json(&piece);
        quoted.trim_end_matches('\n')[1..quoted.len() - 2].to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bhatti_api::ExecResult;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn the_body_is_the_same_as_written_at_once() {
        let stdout = "a\"\\\n<&>\u{1}é€😀\u{2028}".repeat(9000);
        let mut output = Output { exit_code: 7, ..Output::default() };
        for piece in stdout.as_bytes().chunks(7) {
            append(&mut output.stdout, piece);
        }
        assert!(output.stdout.len() < 10, "{} pieces", output.stdout.len());
        append(&mut output.stderr, &[b'x', 0xff, 0xe2]);
        let body = output.into_response().into_body().collect().await.expect("a body").to_bytes();
        let stderr = "x\u{fffd}\u{fffd}".to_owned();
        let whole = to_json(&ExecResult { exit_code: 7, stdout, stderr });
        assert_eq!(body, whole.as_bytes());
    }

    #[tokio::test]
    async fn a_small_body_has_a_length() {
        let mut output = Output::default();
        append(&mut output.stdout, b"hello\n");
        let body = output.into_response().into_body();
        let size = axum::body::HttpBody::size_hint(&body).exact();
        assert_eq!(
            size,
            Some(
                to_json(&ExecResult {
                    exit_code: 0,
                    stdout: "hello\n".to_owned(),
                    stderr: String::new(),
                })
                .len() as u64
            )
        );
    }
}
