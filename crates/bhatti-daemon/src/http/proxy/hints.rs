//! Early hints (103): what of a page a browser may load while the page is being made.
//!
//! Promises:
//! - Only 103 is passed on, and only to who understands it: never to HTTP/1.0, nor in HTTP/2, where
//!   the library's server cannot.
//! - How many an answer has and how long each is are bounded. What is beyond is left out.
//! - Their headers are filtered as those of an answer are.

use axum::http::{HeaderMap, StatusCode, Version, header};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::head;
use super::upstream::Asked;
use crate::http::connection::{Early, Turn};

/// The most of one answer.
const MAX: usize = 8;

/// The most bytes of one.
const MAX_LENGTH: usize = 8 * 1024;

/// Those of one answer, on their way.
pub(super) struct Hints {
    turn: Turn,
    coming: mpsc::Receiver<Bytes>,
    left: usize,
}

impl Hints {
    /// Has those caught that come before the answer to `request`, a client's on whose connection
    /// they can be sent `early`.
    pub(super) fn catch(
        early: Option<Early>,
        version: Version,
        request: &mut hyper::Request<Asked>,
    ) -> Option<Self> {
        let turn = early.filter(|_| version == Version::HTTP_11)?.turn();
        let (tell, coming) = mpsc::channel(MAX);
        hyper::ext::on_informational(request, move |said| {
            if said.status() == StatusCode::EARLY_HINTS
                && let Ok(place) = tell.try_reserve()
                && let Some(message) = message(said.headers().clone())
            {
                place.send(message);
            }
        });
        Some(Self { turn, coming, left: MAX })
    }

    /// Passes them on until there is an answer, those that come with it included.
    pub(super) async fn until<T>(mut self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        loop {
            tokio::select! {
                biased;
                Some(hint) = self.coming.recv() => self.pass_on(hint).await,
                answer = &mut answer => {
                    while let Ok(hint) = self.coming.try_recv() {
                        self.pass_on(hint).await;
                    }
                    return answer;
                }
            }
        }
    }

    async fn pass_on(&mut self, hint: Bytes) {
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        if left == 0 {
            self.coming.close();
        }
        self.turn.say(hint);
        // It is sent when the request's future waits, and otherwise this may not wait any more.
        yield_now().await;
    }
}

/// One as it is sent, if anything is left of it.
fn message(mut headers: HeaderMap) -> Option<Bytes> {
    head::answer(&mut headers, false);
    // It has no body.
    headers.remove(header::CONTENT_LENGTH);
    let mut message = BytesMut::from("HTTP/1.1 103 Early Hints\r\n");
    for (name, value) in &headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            message.put_slice(part);
        }
    }
    message.put_slice(b"\r\n");
    (!headers.is_empty() && message.len() <= MAX_LENGTH).then(|| message.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn said(list: &[(&'static str, &str)]) -> Option<String> {
        let header = |(name, value): &(&'static str, &str)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        };
        let message = message(list.iter().map(header).collect())?;
        Some(String::from_utf8(message.to_vec()).expect("text"))
    }

    #[test]
    fn a_hint_is_passed_on_without_what_is_not_the_clients() {
        let list = [
            ("link", "</a.css>; rel=preload"),
            ("link", "</b.js>; rel=preload"),
            ("content-length", "5"),
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("x-bhatti-warning", "all is lost"),
        ];
        let wanted = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\
                      link: </b.js>; rel=preload\r\n\r\n";
        assert_eq!(said(&list).as_deref(), Some(wanted));
        assert_eq!(said(&list[2..]), None, "nothing is left of it");
    }

    #[test]
    fn a_hint_that_is_too_long_is_left_out() {
        let rest = "HTTP/1.1 103 Early Hints\r\nlink: \r\n\r\n".len();
        let long = "x".repeat(MAX_LENGTH - rest);
        assert_eq!(said(&[("link", &long)]).map(|text| text.len()), Some(MAX_LENGTH));
        assert_eq!(said(&[("link", &format!("{long}x"))]), None);
    }
}
