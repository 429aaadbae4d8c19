//! `GET /sandboxes/:sandbox/ws`: an interactive shell, over a WebSocket.
//!
//! What goes wrong after the upgrade is one text message before the end.

use std::sync::Arc;

use axum::Extension;
use axum::extract::ws::Message;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use bhatti_api::{DEFAULT_IDLE_SEC, MAX_TERMINAL_CHUNK, SessionNotice, TerminalCommand};
use bhatti_guest_client::{Attached, SessionSpec, Which, WindowSize};
use bhatti_lifecycle::Lease;
use bhatti_store::SandboxRow;
use bhatti_types::EventKind;
use bytes::Bytes;
use serde::Deserialize;

use super::relay::{self, End, Line, Said, Speech, Visit};
use crate::http::body::Named;
use crate::http::gate::Caller;
use crate::http::socket::{Gone, Incoming, Kind, Socket};
use crate::http::{Api, ApiError};

/// Nobody types a megabyte, but some paste one.
const KIND: Kind = Kind { protocol: None, max_message: 1 << 20 };

/// The query of a WebSocket on a session. What is no query names nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    pub(super) session: String,
    new: String,
}

impl Wanted {
    fn terminal(self) -> Which {
        let shell = SessionSpec { max_idle_seconds: DEFAULT_IDLE_SEC, ..SessionSpec::default() };
        match (self.session.as_str(), self.new.as_str()) {
            ("", "true") => Which::New(shell),
            ("", _) => Which::FreeOr(shell),
            _ => Which::Named(self.session),
        }
    }
}

/// Attaches the client to a terminal for as long as the socket lives.
pub(in crate::http) async fn shell(
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
        let end = serve(line, &api, &row, wanted.terminal()).await.unwrap_or_else(End::Gone);
        relay::close(sender, receiver, end).await;
    }))
}

async fn serve(mut line: Line<'_>, api: &Api, row: &SandboxRow, which: Which) -> Result<End, Gone> {
    let reattach = matches!(which, Which::Named(_));
    let opened = match line.meanwhile(open(api, row, which)).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(refused)) => {
            line.sender.send(Message::text(refused)).await?;
            return Ok(End::Refused);
        }
        Err(end) => return Ok(end),
    };
    let session = SessionNotice::Session { session_id: opened.1.info.id.clone() };
    line.sender.send(relay::json(&session)).await?;
    if let Some(loss) = api.sandboxes.loss_since(row) {
        // Where a person looks; whatever is attached has a terminal.
        let text = format!("Warning: {loss}\r\n");
        line.sender.send(Message::binary(text.into_bytes())).await?;
    }
    let visit = Visit::begin(reattach, &opened.1);
    let end = relay::attend(line, api, row, opened, &mut Terminal).await;
    visit.tell(api, row, EventKind::ShellSession);
    Ok(end)
}

/// Wakes the sandbox and attaches. The error is the contract's sentence.
async fn open(api: &Api, row: &SandboxRow, which: Which) -> Result<(Lease, Attached), String> {
    let what = if matches!(which, Which::Named(_)) { "attach error" } else { "shell error" };
    let lease = relay::lease(api, row).await?;
    let attached = lease.guest().attach(which).await;
    let attached = attached.map_err(|error| format!("{what}: {}", relay::agent_says(&error)))?;
    Ok((lease, attached))
}

/// Keystrokes and what a terminal shows.
pub(in crate::http) struct Terminal;

impl Speech for Terminal {
    fn output(&mut self, mut bytes: Bytes) -> impl Iterator<Item = Message> + Send {
        std::iter::from_fn(move || {
            let chunk = bytes.split_to(bytes.len().min(MAX_TERMINAL_CHUNK));
            (!chunk.is_empty()).then(|| Message::binary(chunk))
        })
    }

    fn input(message: Incoming) -> Said {
        match message {
            Incoming::Binary(bytes) => Said::Input(bytes),
            Incoming::Text(text) => match serde_json::from_str(&text) {
                Ok(TerminalCommand::Resize { rows, cols }) => {
                    Said::Resize(WindowSize { rows, cols })
                }
                Err(_) => Said::Input(Bytes::from(text)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_session_before_it_asks_for_a_new_one() {
        let which = |query: &str| {
            let uri = format!("/sandboxes/x/ws{query}").parse().expect("a URI");
            let Query(wanted) = Query::<Wanted>::try_from_uri(&uri).unwrap_or_default();
            wanted.terminal()
        };
        assert!(matches!(which(""), Which::FreeOr(_)));
        assert!(matches!(which("?new=false"), Which::FreeOr(_)));
        assert!(matches!(which("?new=true"), Which::New(_)));
        assert!(matches!(which("?session=&new=true"), Which::New(_)));
        assert_eq!(which("?new=true&session=s%32&x"), Which::Named("s2".to_owned()));
        assert!(matches!(which("?new=true&new=true"), Which::FreeOr(_)), "what is no query");
    }

    #[test]
    fn output_is_cut_and_whole() {
        let bytes = Bytes::from((0..10_000).map(|n| n as u8).collect::<Vec<_>>());
        let messages: Vec<_> = Terminal.output(bytes.clone()).map(Message::into_data).collect();
        assert!(messages.iter().all(|message| message.len() <= MAX_TERMINAL_CHUNK));
        assert_eq!(messages.concat(), bytes);
        assert_eq!(Terminal.output(Bytes::new()).count(), 0);
    }

    #[test]
    fn only_text_that_is_a_resize_is_one() {
        let text = |text: &str| Terminal::input(Incoming::Text(text.to_owned()));
        let resize = r#"{"cols":7,"rows":5,"type":"resize"}"#;
        assert_eq!(text(resize), Said::Resize(WindowSize { rows: 5, cols: 7 }));
        assert_eq!(text("ls\r"), Said::Input(Bytes::from("ls\r")));
        let bytes = Bytes::from(resize);
        assert_eq!(Terminal::input(Incoming::Binary(bytes.clone())), Said::Input(bytes));
    }
}
