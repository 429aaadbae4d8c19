//! The buffered answer: everything a command printed, up to the cap, as one JSON object.
//!
//! Promises:
//! - A call holds at most the capped output as bytes. JSON of it can be six times as large
//!   (control characters), so it is written while the client reads and never exists whole.
//! - All calls together hold at most [`MAX_LARGE`] capped outputs, whatever they print and however
//!   slowly their clients read; beyond that, each has [`SMALL`] bytes and its command waits
//!   (`large_answers_wait_for_each_other`). One account cannot take all of it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bhatti_api::{ExecRequest, to_json};
use bhatti_guest_client::{ExecEvent, GuestError, Running};
use bhatti_lifecycle::ServiceError;
use bhatti_types::UserId;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::text::Utf8Stream;
use crate::http::shares::Shares;

/// What every call may hold, in bytes.
const SMALL: usize = 64 * 1024;

/// How many calls at once may hold more: 240 MiB.
const MAX_LARGE: usize = 24;

/// How many of them may be one account's.
const MAX_LARGE_PER_USER: usize = 8;

/// What ends the `stderr` of a call that got no room before its command's time was up.
const NO_ROOM: &str = "\n[output truncated: too many large answers at once; stream it instead]";

/// The room for large answers of the whole daemon.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    shares: Shares,
}

impl Default for Room {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_LARGE)), shares: Shares::new(MAX_LARGE_PER_USER) }
    }
}

/// Leave to hold a large answer.
struct Large {
    _of_user: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Room {
    /// Waits for room for one large answer of `user`, but not beyond `deadline`.
    async fn large(&self, user: &UserId, deadline: Instant) -> Option<Large> {
        let of_user = self.shares.of(user);
        let both = async {
            // In this order, so that nobody waits for himself while he holds what others need.
            let of_user = of_user.acquire_owned().await.ok()?;
            let of_all = self.all.clone().acquire_owned().await.ok()?;
            Some(Large { _of_user: of_user, _of_all: of_all })
        };
        timeout_at(deadline, both).await.ok().flatten()
    }
}

/// How a command ended and what it printed.
#[derive(Default)]
pub(super) struct Output {
    pub(super) exit_code: i32,
    pub(super) stdout: Vec<Bytes>,
    pub(super) stderr: Vec<Bytes>,
    /// It was killed because its time was up.
    timed_out: bool,
    large: Option<Large>,
}

/// Runs it to its end, keeping what fits. `time`: what the command itself has.
pub(super) async fn collect(
    mut running: Running,
    room: &Room,
    user: &UserId,
    time: Duration,
) -> Result<Output, ServiceError> {
    let deadline = Instant::now() + time;
    let mut output = Output::default();
    let (mut held, mut most) = (0, ExecRequest::MAX_BUFFERED);
    let mut truncated = None;
    loop {
        let event = running.next().await.map_err(ServiceError::Guest)?;
        let (kept, bytes) = match event {
            Some(ExecEvent::Stdout(bytes)) => (&mut output.stdout, bytes),
            Some(ExecEvent::Stderr(bytes)) => (&mut output.stderr, bytes),
            Some(ExecEvent::Exit { code, timed_out }) => {
                (output.exit_code, output.timed_out) = (code, timed_out);
                break;
            }
            None => return Err(ServiceError::Guest(GuestError::LinkLost(None))),
        };
        if held + bytes.len() > SMALL && output.large.is_none() && truncated.is_none() {
            output.large = room.large(user, deadline).await;
            if output.large.is_none() {
                (most, truncated) = (held, Some(NO_ROOM));
            }
        }
        let fits = bytes.len().min(most - held);
        if fits < bytes.len() {
            truncated.get_or_insert(ExecRequest::TRUNCATED);
        }
        held += fits;
        append(kept, &bytes[..fits]);
    }
    if let Some(note) = truncated {
        output.stderr.push(Bytes::from_static(note.as_bytes()));
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
        let large = self.large;
        let head = format!("{{\"exit_code\":{},\"stdout\":\"", self.exit_code);
        let parts = [head].into_iter().chain(escaped(self.stdout));
        let parts = parts.chain(["\",\"stderr\":\"".to_owned()]).chain(escaped(self.stderr));
        let end = if self.timed_out { "\",\"timed_out\":true}\n" } else { "\"}\n" };
        let parts = parts.chain([end.to_owned()]);
        let body = if small {
            Body::from(parts.collect::<String>())
        } else {
            Body::from_stream(stream::iter(parts.map(move |part| {
                // Until the client has read it, or gone.
                let _held = &large;
                Ok::<_, std::convert::Infallible>(part)
            })))
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
        for timed_out in [false, true] {
            let mut output = Output { exit_code: 7, timed_out, ..Output::default() };
            for piece in stdout.as_bytes().chunks(7) {
                append(&mut output.stdout, piece);
            }
            assert!(output.stdout.len() < 10, "{} pieces", output.stdout.len());
            append(&mut output.stderr, &[b'x', 0xff, 0xe2]);
            let body =
                output.into_response().into_body().collect().await.expect("a body").to_bytes();
            let stderr = "x\u{fffd}\u{fffd}".to_owned();
            let stdout = stdout.clone();
            let whole = to_json(&ExecResult { exit_code: 7, stdout, stderr, timed_out });
            assert_eq!(body, whole.as_bytes());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_answers_wait_for_each_other() {
        let room = Room::default();
        let deadline = Instant::now() + Duration::from_secs(5);
        let (alice, bob) = (UserId::random(), UserId::random());
        let mut held = Vec::new();
        for _ in 0..MAX_LARGE_PER_USER {
            held.push(room.large(&alice, deadline).await.expect("there is room"));
        }
        assert!(room.large(&alice, deadline).await.is_none(), "an account has its share");
        let deadline = Instant::now() + Duration::from_secs(5);
        held.push(room.large(&bob, deadline).await.expect("which is not another's"));
        let mut body = Output { large: held.pop(), ..Output::default() };
        append(&mut body.stdout, &vec![b'x'; 2 * PIECE]);
        let body = body.into_response();
        for _ in held.len() + 1..MAX_LARGE {
            held.push(room.large(&UserId::random(), deadline).await.expect("there is room"));
        }
        let carol = UserId::random();
        assert!(room.large(&carol, deadline).await.is_none(), "all of it is held");
        drop(body);
        let deadline = Instant::now() + Duration::from_secs(5);
        assert!(room.large(&carol, deadline).await.is_some(), "one was read, or given up");
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
                    timed_out: false,
                })
                .len() as u64
            )
        );
    }
}
