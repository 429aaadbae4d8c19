//! `GET /sandboxes/:sandbox/exec/ws`: a session on pipes, over a WebSocket.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::ws::Message;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use bhatti_api::{DEFAULT_IDLE_SEC, PipedRequest, SessionNotice, from_json};
use bhatti_guest_client::{Attached, SessionSpec, Which};
use bhatti_lifecycle::Lease;
use bhatti_store::SandboxRow;
use bhatti_types::EventKind;
use bytes::Bytes;
use serde::Serialize;
use tokio::time::timeout;

use super::exec::text::Utf8Stream;
use super::relay::{self, End, Line, Said, Speech, Visit};
use super::shell::Wanted;
use crate::http::body::Named;
use crate::http::gate::Caller;
use crate::http::socket::{Gone, Incoming, Kind, Receiver, Socket};
use crate::http::{Api, ApiError};

/// A request may be as large as any other.
const KIND: Kind = Kind { protocol: None, max_message: 1 << 20 };

/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);

/// Attaches the client to a piped session for as long as the socket lives.
pub(in crate::http) async fn piped(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    request: Request,
) -> Result<Response, ApiError> {
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    let Query(wanted) = Query::<Wanted>::try_from_uri(request.uri()).unwrap_or_default();
    let upgrade = api.sockets.prepare(request, KIND, Some(&caller.id)).await?;
    Ok(upgrade.run(|socket| async move {
        let Socket { sender, mut receiver, pulse, stopping } = socket;
        let line =
            Line { sender: &sender, receiver: &mut receiver, pulse: &pulse, stopping: &stopping };
        let end = serve(line, &api, &row, wanted.session).await.unwrap_or_else(End::Gone);
        relay::close(sender, receiver, end).await;
    }))
}

/// What did not work, in the contract's words.
#[derive(Serialize)]
struct Refusal {
    error: String,
}

async fn serve(
    mut line: Line<'_>,
    api: &Api,
    row: &SandboxRow,
    session: String,
) -> Result<End, Gone> {
    let reattach = !session.is_empty();
    let opened = match which(line.receiver, session).await? {
        Ok(which) => line.meanwhile(open(api, row, which)).await,
        Err(error) => Ok(Err(error)),
    };
    let opened = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => {
            line.sender.send(relay::json(&Refusal { error })).await?;
            return Ok(End::Refused);
        }
        Err(end) => return Ok(end),
    };
    let session = SessionNotice::Session { session_id: opened.1.info.id.clone() };
    line.sender.send(relay::json(&session)).await?;
    let sender = line.sender;
    let mut pipes = Pipes::default();
    let visit = Visit::begin(reattach, &opened.1);
    let end = relay::attend(line, api, row, opened, &mut pipes).await;
    visit.tell(api, row, EventKind::ExecPipedSession);
    let last = match &end {
        End::Exit(code) => SessionNotice::Exit { exit_code: *code },
        End::Taken => failed("another client has attached"),
        End::Lost(error) => failed(&relay::agent_says(error)),
        End::Asleep => failed(relay::ASLEEP),
        End::Stopping => failed("the daemon stops"),
        End::Gone(_) | End::Refused => return Ok(end),
    };
    let rest = pipes.text.finish();
    if !rest.is_empty() {
        sender.send(Message::text(rest)).await?;
    }
    sender.send(relay::json(&last)).await?;
    Ok(end)
}

fn failed(message: &str) -> SessionNotice {
    SessionNotice::Error { message: message.to_owned() }
}

/// What is wanted: the query says it, or else the first message.
async fn which(receiver: &mut Receiver, session: String) -> Result<Result<Which, String>, Gone> {
    if !session.is_empty() {
        return Ok(Ok(Which::Named(session)));
    }
    let message = timeout(REQUEST, receiver.next()).await.map_err(|_| Gone::Closed)?;
    let bytes = match message?.ok_or(Gone::Closed)? {
        Incoming::Text(text) => Bytes::from(text),
        Incoming::Binary(bytes) => bytes,
    };
    let request: PipedRequest = from_json(&bytes).unwrap_or_default();
    if request.cmd.is_empty() {
        return Ok(Err("cmd required".to_owned()));
    }
    let max_idle_seconds = match request.max_idle_sec {
        0 => DEFAULT_IDLE_SEC,
        // The guest's word for never.
        ..0 => 0,
        seconds => u32::try_from(seconds).unwrap_or(u32::MAX),
    };
    let env = request.env.into_iter().collect();
    let kind = bhatti_guest_client::Kind::Piped;
    Ok(Ok(Which::New(SessionSpec { kind, argv: request.cmd, env, max_idle_seconds })))
}

/// Wakes the sandbox and attaches. The error is the contract's sentence.
async fn open(api: &Api, row: &SandboxRow, which: Which) -> Result<(Lease, Attached), String> {
    let what = if matches!(which, Which::Named(_)) { "attach" } else { "start" };
    let lease = relay::lease(api, row).await?;
    let attached = lease.guest().attach(which).await;
    let attached = attached.map_err(|error| format!("{what}: {}", relay::agent_says(&error)))?;
    Ok((lease, attached))
}

/// Bytes for stdin, and text.
#[derive(Default)]
struct Pipes {
    text: Utf8Stream,
}

impl Speech for Pipes {
    fn output(&mut self, bytes: Bytes) -> impl Iterator<Item = Message> + Send {
        let text = self.text.push(&bytes);
        (!text.is_empty()).then(|| Message::text(text)).into_iter()
    }

    fn input(message: Incoming) -> Said {
        Said::Input(match message {
            Incoming::Text(text) => Bytes::from(text),
            Incoming::Binary(bytes) => bytes,
        })
    }
}
