//! What is sent before an answer: early hints (103), which hyper's server has no way to send.
//!
//! They are written under it, between two of its own messages. Why that place is always one:
//!
//! - A request's future is polled by the task of its connection, which flushes after that; and hyper
//!   flushes what is below only once it has written all it has. So whatever waits at a flush while
//!   that future is not done stands behind the answer before, and before the first byte of its own.
//! - What waits goes with its [`Turn`], so before hyper has an answer. Only what has been begun stays,
//!   and is sent to its end before any other byte.
//!
//! Nothing waits for this: a client that does not take its hints gets the answer without them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// In the extensions of a request: the way to say something before its answer.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Early(Arc<Mutex<Queue>>);

impl Early {
    /// For the request it came with, whose future has to hold this.
    pub(in crate::http) fn turn(self) -> Turn {
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing in there can be left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as a request has no answer.
#[derive(Debug)]
pub(in crate::http) struct Turn(Early);

impl Turn {
    /// Has a whole message sent when the future that holds this waits next. How many there are, and
    /// how long, is the caller's to bound.
    pub(in crate::http) fn say(&self, message: Bytes) {
        self.0.lock().messages.push_back(message);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        let begun = usize::from(queue.begun);
        queue.messages.truncate(begun);
    }
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    /// Some of the first one has been sent.
    begun: bool,
}

/// What is sent of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    All,
    Begun,
}

/// A client's connection on which something can be said early.
pub(in crate::http) struct Outspoken<S> {
    inner: S,
    early: Early,
}

impl<S> Outspoken<S> {
    pub(super) fn new(inner: S, early: Early) -> Self {
        Self { inner, early }
    }

    /// What is behind it.
    pub(in crate::http) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncWrite + Unpin> Outspoken<S> {
    fn poll_say(&mut self, context: &mut Context<'_>, extent: Extent) -> Poll<io::Result<()>> {
        let mut queue = self.early.lock();
        let Queue { messages, begun } = &mut *queue;
        while let Some(first) = messages.front_mut()
            && (*begun || extent == Extent::All)
        {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, first))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            first.advance(written);
            *begun = first.has_remaining();
            if !*begun {
                messages.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outspoken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outspoken<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_say(context, Extent::Begun))?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_say(context, Extent::Begun))?;
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(context, Extent::All))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(context, Extent::Begun))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    use axum::body::Body;
    use axum::extract::Request;
    use axum::http::Version;
    use axum::response::Response;
    use axum::{Extension, Router};
    use bytes::BytesMut;
    use futures_util::stream;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
    use tokio::task::yield_now;
    use tokio_util::sync::CancellationToken;

    use super::super::{Guests, Peer, converse};

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";

    fn polled<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        poll(&mut Context::from_waker(std::task::Waker::noop()))
    }

    /// With `room` for so many bytes, what comes of a hint that was withdrawn after a flush, and an
    /// answer after it.
    async fn withdrawn(room: usize) -> String {
        let (ours, mut theirs) = duplex(room);
        let early = Early::default();
        let mut ours = Outspoken::new(ours, early.clone());
        let turn = early.turn();
        ours.write_all(b"x").await.expect("there is room");
        turn.say(Bytes::from_static(HINT.as_bytes()));
        turn.say(Bytes::from_static(HINT.as_bytes()));
        assert!(polled(|context| Pin::new(&mut ours).poll_flush(context)).is_pending());
        drop(turn);
        let mut text = String::new();
        let writing = async {
            ours.write_all(b"answer").await.expect("it is taken");
            ours.flush().await.expect("it is taken");
            ours.shutdown().await.expect("an end");
        };
        let (_, read) = tokio::join!(writing, theirs.read_to_string(&mut text));
        read.expect("text");
        text
    }

    #[tokio::test]
    async fn what_was_begun_is_sent_to_its_end_and_the_rest_is_not_sent() {
        assert_eq!(withdrawn(1).await, "xanswer");
        assert_eq!(withdrawn(2).await, format!("x{HINT}answer"));
        assert_eq!(withdrawn(HINT.len()).await, format!("x{HINT}answer"));
        assert_eq!(withdrawn(HINT.len() + 1).await, format!("x{HINT}answer"));
        assert_eq!(withdrawn(HINT.len() + 9).await, format!("x{HINT}{HINT}answer"));
    }

    /// What an answer is that has no room anywhere.
    const LONG: usize = 3000;

    /// Says as many hints as the path begins with, waits a while, and answers with the path and what
    /// was sent, in two pieces; or, if it ends so, with much before it has read anything.
    async fn hinting(Extension(early): Extension<Early>, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let hints = path.as_bytes()[1] - b'0';
        let turn = (request.version() == Version::HTTP_11).then(|| early.turn());
        let half = path.len() % 2 == 0;
        for _ in 0..hints {
            if let Some(turn) = &turn {
                turn.say(Bytes::from_static(HINT.as_bytes()));
            }
            yield_now().await;
        }
        let body = if path.ends_with("-long") {
            Bytes::from("x".repeat(LONG))
        } else {
            request.into_body().collect().await.expect("a body").to_bytes()
        };
        if half {
            yield_now().await;
        }
        let pieces = [Ok::<_, io::Error>(Bytes::from(path)), Ok(body)];
        Response::new(Body::from_stream(stream::iter(pieces)))
    }

    /// All that is answered to `asked`, on a connection that holds `room` bytes.
    async fn answered(asked: &str, room: usize) -> String {
        let (ours, theirs) = duplex(room);
        let router = Router::new().fallback(hinting);
        let peer = Peer(Ipv4Addr::LOCALHOST.into());
        let stop = CancellationToken::new();
        let serving = converse(ours, peer, router, Guests::Strangers, stop);
        let (mut from, mut to) = split(theirs);
        let mut text = BytesMut::new();
        let reading = async { while from.read_buf(&mut text).await.expect("bytes") > 0 {} };
        let writing = to.write_all(asked.as_bytes());
        let (_, written, ()) = tokio::join!(serving, writing, reading);
        written.expect("it is taken");
        String::from_utf8(text.to_vec()).expect("text")
    }

    /// The answers' bodies, and how many hints stood before each; panics at what is neither.
    fn understood(mut text: &str) -> Vec<(usize, String)> {
        let mut answers = Vec::new();
        while !text.is_empty() {
            let mut hints = 0;
            while let Some(rest) = text.strip_prefix(HINT) {
                (hints, text) = (hints + 1, rest);
            }
            if let Some(rest) = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
                text = rest;
                while let Some(rest) = text.strip_prefix(HINT) {
                    (hints, text) = (hints + 1, rest);
                }
            }
            let (head, mut rest) = text.split_once("\r\n\r\n").expect("a head");
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            let mut body = String::new();
            loop {
                let (length, more) = rest.split_once("\r\n").expect("a length");
                let length = usize::from_str_radix(length, 16).expect("a number");
                let (piece, more) = more.split_at(length);
                body.push_str(piece);
                rest = more.strip_prefix("\r\n").expect("the end of a piece");
                if length == 0 {
                    break;
                }
            }
            answers.push((hints, body));
            text = rest;
        }
        answers
    }

    fn plain(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
    }

    fn sent(path: &str, more: &str) -> String {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n{more}\r\nhello")
    }

    /// Also after an answer that was there before its request was read, and is sent in many parts.
    #[tokio::test]
    async fn hints_wait_for_the_answer_before_them() {
        let last = sent("/8", "connection: close\r\n");
        let asked = [sent("/1-long", ""), plain("/3"), sent("/2-long", ""), last].concat();
        let first = format!("/1-long{}", "x".repeat(LONG));
        for room in (asked.len()..LONG + 1000).step_by(37) {
            let answers = understood(&answered(&asked, room).await);
            assert_eq!((answers.len(), &answers[0].1), (4, &first), "room for {room}");
            assert_eq!((answers[1].1.as_str(), answers[3].1.as_str()), ("/3", "/8hello"));
        }
    }

    #[tokio::test]
    async fn hints_stand_between_answers_whatever_the_client_takes_at_a_time() {
        // Pipelined: all of them are there before the first is answered.
        let asked = [
            plain("/3a"),
            plain("/0"),
            sent("/2bb", ""),
            sent("/1c", "expect: 100-continue\r\n"),
            plain("/8"),
            sent("/9d", "connection: close\r\n"),
        ];
        let wanted = ["/3a", "/0", "/2bbhello", "/1chello", "/8", "/9dhello"];
        for room in (1..80).chain([500, 5000]) {
            let text = answered(&asked.concat(), room).await;
            let answers = understood(&text);
            let bodies: Vec<&str> = answers.iter().map(|(_, body)| body.as_str()).collect();
            assert_eq!(bodies, wanted, "room for {room}");
            let most = [3, 0, 2, 1, 8, 9];
            let hints = answers.iter().map(|(hints, _)| *hints);
            assert!(hints.clone().zip(most).all(|(hints, most)| hints <= most), "{text}");
            if room == 5000 {
                assert_eq!(hints.collect::<Vec<_>>(), most, "there was room for all");
            }
        }
    }
}
