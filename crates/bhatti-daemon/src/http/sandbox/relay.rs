//! A session in the guest and a WebSocket, joined for as long as both last.
//!
//! ```text
//!  client ─ Incoming ─▶ up ─▶ SessionWriter ─┐
//!         ◀─ Message ── down ◀ SessionReader ┴─ guest
//! ```
//!
//! Promises:
//! - Nothing is queued here: a guest that does not read is not written for, a client that does
//!   not read is not read for.
//! - A client that goes away only detaches; what it said before still arrives. One that goes while
//!   its sandbox wakes leaves no session behind.
//! - A client waits for its guest as long as it likes, and is told with pings that we are there.

use axum::extract::ws::Message;
use bhatti_api::{CLOSE_ASLEEP, CLOSE_TAKEN};
use bhatti_guest_client::{
    Attached, GuestError, SessionEvent, SessionReader, SessionWriter, WindowSize,
};
use bhatti_lifecycle::{Lease, chain};
use bhatti_store::SandboxRow;
use bhatti_types::EventKind;
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http::socket::{Gone, Incoming, NORMAL, Pulse, Receiver, Sender};
use crate::http::{Api, ApiError};

/// Closes a socket because the daemon stops.
const GOING_AWAY: u16 = 1001;

/// Closes a socket on which something did not work.
const FAILED: u16 = 1011;

/// What is said of a sandbox that somebody has stopped.
pub(in crate::http) const ASLEEP: &str = "the sandbox was put to sleep";

/// How a kind of session is spoken of on a socket.
pub(in crate::http) trait Speech: Send {
    /// Messages for what the session printed.
    fn output(&mut self, bytes: Bytes) -> impl Iterator<Item = Message> + Send;
    /// What the client means.
    fn input(message: Incoming) -> Said;
}

/// What a client says to a session.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) enum Said {
    Input(Bytes),
    Resize(WindowSize),
}

/// Why it ended.
#[derive(Debug)]
pub(in crate::http) enum End {
    /// The program did.
    Exit(i32),
    /// Another client has attached.
    Taken,
    /// The guest cannot be reached, or says what makes no sense. The program may go on.
    Lost(GuestError),
    /// Somebody has put the sandbox to sleep, and the program with it.
    Asleep,
    /// The client left.
    Gone(Gone),
    /// The daemon is about to stop. The program goes on.
    Stopping,
    /// It never began; why has been said.
    Refused,
}

/// A socket in use.
pub(in crate::http) struct Line<'a> {
    pub(in crate::http) sender: &'a Sender,
    pub(in crate::http) receiver: &'a mut Receiver,
    pub(in crate::http) pulse: &'a Pulse,
    pub(in crate::http) stopping: &'a CancellationToken,
}

impl Line<'_> {
    /// Does `work` while nobody has use for what the client says. An error is why nobody needs it
    /// any more.
    pub(in crate::http) async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, End> {
        tokio::select! {
            done = work => Ok(done),
            gone = self.receiver.gone() => Err(End::Gone(gone)),
            gone = self.pulse.lost() => Err(End::Gone(gone)),
            () = self.stopping.cancelled() => Err(End::Stopping),
        }
    }
}

/// A client's time at a session, which is told when it has ended.
pub(in crate::http) struct Visit {
    session: String,
    /// It asked for this session by its name.
    reattach: bool,
    begun: Instant,
}

impl Visit {
    pub(in crate::http) fn begin(reattach: bool, attached: &Attached) -> Self {
        Self { session: attached.info.id.clone(), reattach, begun: Instant::now() }
    }

    pub(in crate::http) fn tell(self, api: &Api, row: &SandboxRow, kind: EventKind) {
        let meta = json!({
            "sandbox": row.name,
            "session_id": self.session,
            "reattach": self.reattach,
            "duration_s": self.begun.elapsed().as_secs(),
        });
        api.events.record(kind, Some(&row.owner), Some(&row.id), meta);
    }
}

/// Relays until one of the two ends. Afterwards nobody is attached, and nothing keeps the sandbox
/// awake any more.
pub(in crate::http) async fn attend<S: Speech>(
    line: Line<'_>,
    api: &Api,
    row: &SandboxRow,
    (lease, attached): (Lease, Attached),
    speech: &mut S,
) -> End {
    let end = relay(line, attached, speech).await;
    drop(lease);
    match end {
        // On purpose, so a client that comes back by itself must not wake it.
        End::Lost(_) if api.sandboxes.has_fallen_asleep(row).await => End::Asleep,
        end => end,
    }
}

async fn relay<S: Speech>(line: Line<'_>, attached: Attached, speech: &mut S) -> End {
    let Line { sender, receiver, pulse, stopping } = line;
    let Attached { mut input, mut output, .. } = attached;
    let end = tokio::select! {
        end = down(&mut output, sender, speech) => end,
        gone = up::<S>(receiver, &mut input) => End::Gone(gone),
        gone = pulse.lost() => End::Gone(gone),
        () = stopping.cancelled() => End::Stopping,
    };
    input.finish();
    end
}

/// From the session to the client.
async fn down<S: Speech>(output: &mut SessionReader, sender: &Sender, speech: &mut S) -> End {
    loop {
        let bytes = match output.next().await {
            Ok(Some(SessionEvent::Output(bytes))) => bytes,
            Ok(Some(SessionEvent::Exit { code })) => return End::Exit(code),
            Ok(Some(SessionEvent::Taken)) => return End::Taken,
            Ok(None) => return End::Lost(GuestError::LinkLost(None)),
            Err(error) => return End::Lost(error),
        };
        for message in speech.output(bytes) {
            if let Err(gone) = sender.send(message).await {
                return End::Gone(gone);
            }
        }
    }
}

/// From the client to the session, while both are there.
async fn up<S: Speech>(receiver: &mut Receiver, input: &mut SessionWriter) -> Gone {
    loop {
        let message = match receiver.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return Gone::Closed,
            Err(gone) => return gone,
        };
        let passed_on = match S::input(message) {
            Said::Input(bytes) => input.write(bytes).await,
            Said::Resize(size) => input.resize(size).await,
        };
        if passed_on.is_err() {
            // The other direction knows why.
            std::future::pending::<()>().await;
        }
    }
}

/// Tells the client why it ended, as far as a close code can.
pub(in crate::http) async fn close(sender: Sender, receiver: Receiver, end: End) {
    let (code, reason) = match end {
        End::Exit(_) => (NORMAL, ""),
        End::Taken => (CLOSE_TAKEN, "another client has attached"),
        End::Lost(error) => {
            tracing::debug!(error = chain(&error), "a session was lost");
            (FAILED, "the sandbox cannot be reached")
        }
        End::Asleep => (CLOSE_ASLEEP, ASLEEP),
        End::Stopping => (GOING_AWAY, "the daemon stops"),
        End::Refused => (FAILED, ""),
        End::Gone(why) => {
            return tracing::debug!(why = chain(&why), "a session's client has left");
        }
    };
    sender.close(receiver, code, reason).await;
}

/// The guest, awake. The error is for the client, in the contract's words.
pub(in crate::http) async fn lease(api: &Api, row: &SandboxRow) -> Result<Lease, String> {
    let error = match api.sandboxes.lease_of(row).await {
        Ok(lease) => return Ok(lease),
        Err(error) => ApiError::from(error),
    };
    // No request is left to be logged with its failure.
    tracing::warn!(sandbox = %row.id, error = chain(&error), "a session's sandbox did not wake");
    let text = error.public().unwrap_or_else(|| "internal error".to_owned());
    Err(format!("wake sandbox: {}", text.strip_prefix("wake sandbox: ").unwrap_or(&text)))
}

/// A message that is one JSON value.
pub(in crate::http) fn json<T: Serialize>(value: &T) -> Message {
    Message::text(bhatti_api::to_json(value).trim_end().to_owned())
}

/// What the guest says is wrong with a session, in the contract's words.
pub(in crate::http) fn agent_says(error: &GuestError) -> String {
    match error {
        GuestError::NotFound(text)
        | GuestError::NotExecutable(text)
        | GuestError::Invalid(text)
        | GuestError::NoSpace(text)
        | GuestError::Unsupported(text)
        | GuestError::Failed(text) => format!("agent: {text}"),
        other => other.to_string(),
    }
}
