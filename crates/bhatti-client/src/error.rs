//! What can go wrong between a client and the daemon.

use std::io::ErrorKind;

use bhatti_api::{ErrorBody, Hint, hint_for};
use http::StatusCode;

/// Why a request has no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address this client can use.
    #[error("{url:?} is not an API address: it must look like http://host:port or https://host")]
    BadUrl { url: String },
    /// A key with characters that cannot stand in a header.
    #[error("the API key has characters that cannot be sent")]
    BadToken,
    /// Nobody answered at the address.
    #[error("cannot connect to {url}")]
    Connect {
        url: String,
        #[source]
        source: std::io::Error,
    },
    /// The server answered with an error.
    #[error("{}: {message}{}", status_text(*.status), in_request(.request_id.as_deref()))]
    Api { status: StatusCode, message: String, request_id: Option<String> },
    /// The connection broke, or carried something that is not an answer.
    #[error("{what}")]
    Protocol {
        what: &'static str,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The server closed a WebSocket, and not because its business was done.
    #[error("the server closed the connection{}", because(.reason))]
    Closed {
        /// What the close frame says; 1005 if it says nothing.
        code: u16,
        /// Possibly empty.
        reason: String,
    },
    /// The server went silent.
    #[error("no answer from the server within {seconds} s")]
    Timeout { seconds: u64 },
}

fn status_text(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn in_request(id: Option<&str>) -> String {
    id.map(|id| format!(" (request {id})")).unwrap_or_default()
}

/// The longest message shown from a server: some proxies answer with whole pages.
const MAX_MESSAGE: usize = 4096;

/// What reaches a terminal from the network must not move its cursor.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').take(MAX_MESSAGE).collect()
}

impl ClientError {
    pub(crate) fn protocol(what: &'static str) -> Self {
        Self::Protocol { what, source: None }
    }

    pub(crate) fn caused(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Protocol { what, source: Some(source.into()) }
    }

    /// From a status and the body that came with it; a body that is not ours has no message.
    pub(crate) fn from_body(status: StatusCode, body: &[u8]) -> Self {
        let (message, request_id) = match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => (body.error, body.request_id),
            Err(_) => (String::new(), None),
        };
        let request_id = request_id.map(|id| clean(&id));
        Self::Api { status, message: clean(&message), request_id }
    }

    /// What to try next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            // A wrong name or certificate is not cured by starting anything.
            Self::Connect { source, .. }
                if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::TimedOut) =>
            {
                Some(Hint {
                    text: "Is the daemon running? Start it on its host, or point the CLI at another:",
                    commands: &[
                        "sudo make up         # in bhatti's source tree",
                        "sudo bhatti serve    # by itself, in a terminal",
                        "bhatti setup         # for another address",
                    ],
                })
            }
            Self::Api { status: StatusCode::UNAUTHORIZED, .. } => {
                Some(Hint { text: "Set the API key:", commands: &["bhatti setup"] })
            }
            Self::Api { message, .. } => hint_for(message),
            _ => None,
        }
    }

    /// The HTTP status, if the server answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_one_sentence() {
        let shown = |status: u16, body: &[u8]| {
            ClientError::from_body(StatusCode::from_u16(status).expect("a status"), body)
                .to_string()
        };
        assert_eq!(
            shown(404, br#"{"error":"sandbox not found"}"#),
            "404 Not Found: sandbox not found"
        );
        assert_eq!(shown(502, b"<html>"), "502 Bad Gateway: ");
        assert_eq!(
            shown(500, br#"{"error":"internal error","request_id":"req_1"}"#),
            "500 Internal Server Error: internal error (request req_1)"
        );
        assert_eq!(shown(418, b"{\"error\":\"a\\u001b[2Jb\"}"), "418 I'm a teapot: a[2Jb");
        let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let connect = ClientError::Connect { url: "http://x".to_owned(), source };
        assert_eq!(connect.to_string(), "cannot connect to http://x");
    }
}
