//! `GET /sandboxes/:s/sessions`, and `GET /sandboxes/:s/ws`: a terminal in a sandbox.
//!
//! Promises:
//! - An end is an end only if the server said so: whatever else happens is an error, and the
//!   program goes on (`a_terminal_that_breaks_is_not_one_that_ended`).
//! - Dropping a [`Terminal`] detaches.

use std::time::Duration;

use bhatti_api::route::{self, Terminal as Which};
use bhatti_api::{CLOSE_ASLEEP, CLOSE_TAKEN, Session, SessionNotice, TerminalCommand};
use bytes::Bytes;
use http::Method;

use crate::client::Call;
use crate::socket::{Incoming, Socket, SocketReceiver, SocketSender};
use crate::{Client, ClientError};

/// How long the server may take to wake the sandbox, which may have to boot, and to attach.
const OPEN: Duration = Duration::from_secs(600);

impl Client {
    /// All sessions of a sandbox, and the detached commands that run in it. Wakes it.
    pub async fn sessions(&self, sandbox: &str) -> Result<Vec<Session>, ClientError> {
        let path = route::sessions(sandbox);
        let mut call = Call::new(Method::GET, &path);
        call.limit = OPEN;
        Ok(self.json(call).await?.0)
    }

    /// Attaches to a terminal.
    pub async fn terminal(&self, sandbox: &str, which: Which<'_>) -> Result<Terminal, ClientError> {
        let socket = self.socket(&route::terminal(sandbox, which), None, OPEN).await?;
        let Socket { sender, mut receiver, stopwatch } = socket;
        let late = |_| ClientError::Timeout { seconds: OPEN.as_secs() };
        let first = tokio::time::timeout(OPEN, receiver.next()).await.map_err(late)?;
        self.record(stopwatch);
        match first? {
            Some(Incoming::Text(text)) => match serde_json::from_str(&text) {
                Ok(SessionNotice::Session { session_id }) => Ok(Terminal {
                    session: crate::error::clean(&session_id),
                    output: TerminalOutput { receiver },
                    input: TerminalInput { sender },
                }),
                // Anything else says why there is none.
                _ => {
                    let why = crate::error::clean(&text);
                    Err(ClientError::caused("no shell", why))
                }
            },
            Some(Incoming::Binary(_)) | None => {
                Err(ClientError::protocol("the server opened a terminal without a session"))
            }
        }
    }
}

/// A terminal in a sandbox, in its two directions.
pub struct Terminal {
    /// The session's id.
    pub session: String,
    pub output: TerminalOutput,
    pub input: TerminalInput,
}

/// What comes from a terminal.
pub struct TerminalOutput {
    receiver: SocketReceiver,
}

/// One thing a terminal does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TerminalEvent {
    /// Bytes to be shown.
    Output(Bytes),
    /// Its program has ended. Nothing follows.
    Exited,
    /// Somebody else has attached; the program goes on. Nothing follows.
    Taken,
    /// Somebody has put the sandbox to sleep; the program goes on when it wakes. Nothing follows.
    Asleep,
}

impl TerminalOutput {
    /// What happens next. An error says that the connection is lost and the program goes on.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<TerminalEvent, ClientError> {
        match self.receiver.next().await {
            Ok(Some(Incoming::Binary(bytes))) => Ok(TerminalEvent::Output(bytes)),
            Ok(Some(Incoming::Text(text))) => Ok(TerminalEvent::Output(text.into())),
            Ok(None) => Ok(TerminalEvent::Exited),
            Err(ClientError::Closed { code: CLOSE_TAKEN, .. }) => Ok(TerminalEvent::Taken),
            Err(ClientError::Closed { code: CLOSE_ASLEEP, .. }) => Ok(TerminalEvent::Asleep),
            Err(error) => Err(error),
        }
    }
}

/// What is said to a terminal.
pub struct TerminalInput {
    sender: SocketSender,
}

impl TerminalInput {
    /// Sends keystrokes, waiting while the server does not take them.
    pub async fn write(&self, bytes: Bytes) -> Result<(), ClientError> {
        self.sender.binary(bytes).await
    }

    /// Detaches; what was written before still arrives.
    pub async fn close(&self) -> Result<(), ClientError> {
        self.sender.close().await
    }

    /// Says how large our terminal is.
    pub async fn resize(&self, rows: u16, cols: u16) -> Result<(), ClientError> {
        let command = TerminalCommand::Resize { rows: rows.into(), cols: cols.into() };
        let text = serde_json::to_string(&command)
            .map_err(|error| ClientError::caused("a resize cannot be sent", error))?;
        self.sender.text(text).await
    }
}
