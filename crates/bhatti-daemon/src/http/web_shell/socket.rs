//! `GET /_shell/:id/ws`: who has the token gets a shell.
//!
//! The upgrade succeeds whatever the id, and until the token is proven right the one answer is
//! `unauthorized`. Everything that goes wrong is one text message; then the socket is closed.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::ws::Message;
use axum::extract::{Request, State};
use axum::response::Response;
use bhatti_api::{DEFAULT_IDLE_SEC, WebShellHello, WebShellNotice};
use bhatti_guest_client::{Attached, GuestError, SessionSpec, Which};
use bhatti_lifecycle::{Lease, chain};
use bhatti_store::SandboxRow;
use bhatti_types::{EventKind, Status};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::door::{FAREWELL, HELLO, Place, Refused};
use crate::http::body::Named;
use crate::http::connection::Peer;
use crate::http::sandbox::relay::{self, End, Line};
use crate::http::sandbox::shell::Terminal;
use crate::http::socket::{Gone, Incoming, Kind, Receiver, Sender, Socket};
use crate::http::{Api, ApiError};

/// The page cuts what is pasted into smaller pieces. Strangers may send as much.
const KIND: Kind = Kind { protocol: None, max_message: 64 * 1024 };

/// Closes the socket of who may not be here.
const NOT_ALLOWED: u16 = 1008;

/// Answers with an upgrade, whatever the id.
pub(super) async fn socket(
    State(api): State<Arc<Api>>,
    Extension(Peer(peer)): Extension<Peer>,
    Named(id): Named,
    request: Request,
) -> Result<Response, ApiError> {
    if !api.web_shells.knock(peer) {
        return Err(ApiError::TooManyKnocks);
    }
    let waiting = api.web_shells.waiting_room().ok_or(ApiError::TooManySockets)?;
    let upgrade = api.sockets.prepare(request, KIND, None).await?;
    Ok(upgrade.run(move |mut socket| async move {
        match admit(&api, &id, &mut socket).await {
            Ok((row, place, session)) => {
                drop(waiting);
                visit(&api, peer, &row, &place, session, socket).await;
            }
            Err(Denied::Gone(gone)) => {
                tracing::debug!(why = chain(&gone), "a client left before it said its token");
            }
            Err(Denied::Refused(why)) => {
                tracing::info!(%peer, why = chain(&why), "refused a web shell");
                let text = if let Refused::Crowded = why { TOO_MANY } else { UNAUTHORIZED };
                let ending = end(socket.sender, socket.receiver, text);
                // One that does not leave by itself is cut off.
                timeout(FAREWELL, ending).await.unwrap_or_default();
                // Until here, so that strangers who do not leave are counted too.
                drop(waiting);
            }
        }
    }))
}

/// The contract's words.
const UNAUTHORIZED: &str = "unauthorized";
const TOO_MANY: &str = "too many sessions";
const NO_SANDBOX: &str = "sandbox unavailable";
const NO_SHELL: &str = "shell unavailable";

/// Why a client does not come in.
enum Denied {
    Refused(Refused),
    Gone(Gone),
}

/// Waits for the token. What is no hello is a wrong one.
async fn admit(
    api: &Api,
    id: &str,
    socket: &mut Socket,
) -> Result<(SandboxRow, Place, Option<String>), Denied> {
    let unauthorized = || Denied::Refused(Refused::Unauthorized);
    let message = tokio::select! {
        message = timeout(HELLO, socket.receiver.next()) => message.map_err(|_| unauthorized())?,
        () = socket.stopping.cancelled() => return Err(Denied::Gone(Gone::Closed)),
    };
    let Incoming::Text(text) = message.map_err(Denied::Gone)?.ok_or(Denied::Gone(Gone::Closed))?
    else {
        return Err(unauthorized());
    };
    let hello: WebShellHello = serde_json::from_str(&text).map_err(|_| unauthorized())?;
    let WebShellHello::Auth { token, session } = hello;
    let Ok(token) = token.parse();
    let look_up = || api.db.read(|store| store.sandbox_by_shell_token(id, &token));
    let (row, place) = api.web_shells.admit(look_up).map_err(Denied::Refused)?;
    Ok((row, place, session))
}

/// The client's time in the sandbox.
async fn visit(
    api: &Api,
    peer: IpAddr,
    row: &SandboxRow,
    place: &Place,
    session: Option<String>,
    socket: Socket,
) {
    let Socket { sender, mut receiver, pulse, stopping } = socket;
    let started = Instant::now();
    tracing::info!(sandbox = %row.id, %peer, "web shell opened");
    let line =
        Line { sender: &sender, receiver: &mut receiver, pulse: &pulse, stopping: &stopping };
    let ended = tokio::select! {
        // First, so that nothing more is said to who was put out.
        biased;
        () = place.put_out() => Err(UNAUTHORIZED),
        ended = serve(api, row, session, line) => ended,
    };
    tracing::info!(
        sandbox = %row.id,
        %peer,
        duration_ms = started.elapsed().as_millis() as u64,
        "web shell closed"
    );
    let seconds = started.elapsed().as_secs();
    let meta = json!({ "sandbox": row.name, "ip": peer.to_canonical(), "duration_s": seconds });
    api.events.record(EventKind::ShellWebSession, Some(&row.owner), Some(&row.id), meta);
    match ended {
        Ok(ended) => relay::close(sender, receiver, ended).await,
        Err(text) => end(sender, receiver, text).await,
    }
}

/// The error is the sentence the client gets last.
async fn serve(
    api: &Api,
    row: &SandboxRow,
    session: Option<String>,
    mut line: Line<'_>,
) -> Result<End, &'static str> {
    let status = row.phase.wire().map_or(Status::Unknown, |(status, _)| status);
    let connected =
        WebShellNotice::Connected { sandbox: row.name.to_string(), status: status.to_string() };
    if let Err(gone) = line.sender.send(relay::json(&connected)).await {
        return Ok(End::Gone(gone));
    }
    let opened = match line.meanwhile(open(api, row, session.as_deref())).await {
        Ok(opened) => opened,
        Err(end) => return Ok(end),
    };
    let opened = opened?;
    if session.is_some() {
        let notice = WebShellNotice::Session { session_id: opened.1.info.id.clone() };
        if let Err(gone) = line.sender.send(relay::json(&notice)).await {
            return Ok(End::Gone(gone));
        }
    }
    Ok(relay::attend(line, api, row, opened, &mut Terminal).await)
}

/// Wakes the sandbox and attaches. The error is the sentence for the client.
async fn open(
    api: &Api,
    row: &SandboxRow,
    session: Option<&str>,
) -> Result<(Lease, Attached), &'static str> {
    let lease = relay::lease(api, row).await.map_err(|_| NO_SANDBOX)?;
    let attached = attach(&lease, session).await.map_err(|error| {
        tracing::warn!(sandbox = %row.id, error = chain(&error), "no shell for a web shell");
        NO_SHELL
    })?;
    Ok((lease, attached))
}

/// The session a page comes back to, or else a new one.
async fn attach(lease: &Lease, session: Option<&str>) -> Result<Attached, GuestError> {
    if let Some(id) = session.filter(|id| !id.is_empty()) {
        match lease.guest().attach(Which::Named(id.to_owned())).await {
            Err(GuestError::NotFound(_)) => {}
            other => return other,
        }
    }
    let shell = SessionSpec { max_idle_seconds: DEFAULT_IDLE_SEC, ..SessionSpec::default() };
    lease.guest().attach(Which::New(shell)).await
}

/// Says why, and closes.
async fn end(sender: Sender, receiver: Receiver, text: &'static str) {
    let notice = WebShellNotice::Error { error: text.to_owned() };
    let why = Message::text(serde_json::to_string(&notice).expect("our messages always serialise"));
    if sender.send(why).await.is_ok() {
        sender.close(receiver, NOT_ALLOWED, "").await;
    }
}
