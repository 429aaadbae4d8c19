//! Terminals, against a server that says what each test wrote down.

use std::time::Duration;

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use bhatti_api::route::Terminal as Which;
use bhatti_api::{CLOSE_ASLEEP, CLOSE_TAKEN};
use bhatti_client::{Client, ClientError, TerminalEvent};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Far beyond what anything here takes.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("happens soon")
}

/// A server that says `first`, then `more`, and then notes what it hears until the end.
async fn server(
    first: &'static str,
    more: Vec<Message>,
) -> (Client, mpsc::UnboundedReceiver<Message>) {
    let (heard, hears) = mpsc::unbounded_channel();
    let handle = move |upgrade: WebSocketUpgrade| {
        let (heard, more) = (heard.clone(), more.clone());
        async move {
            upgrade.on_upgrade(move |mut socket: WebSocket| async move {
                socket.send(Message::text(first)).await.unwrap();
                for message in more {
                    socket.send(message).await.unwrap();
                }
                while let Some(Ok(message)) = socket.recv().await {
                    heard.send(message).unwrap();
                }
            })
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/sandboxes/dev/ws", any(handle));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (Client::new(&url, Some("bht_key")).unwrap(), hears)
}

const SESSION: &str = r#"{"session_id":"s1","type":"session"}"#;

fn close(code: u16) -> Message {
    Message::Close(Some(CloseFrame { code, reason: "because".into() }))
}

#[tokio::test]
async fn what_is_printed_and_typed_passes_as_it_is() {
    let more = vec![Message::binary(&b"\0\xff"[..]), Message::text("text"), close(1000)];
    let (client, _hears) = server(SESSION, more).await;
    let mut terminal = soon(client.terminal("dev", Which::FreeOrNew)).await.unwrap();
    assert_eq!(terminal.session, "s1");
    let output = |bytes: &'static [u8]| TerminalEvent::Output(Bytes::from_static(bytes));
    for expected in [output(b"\0\xff"), output(b"text"), TerminalEvent::Exited] {
        assert_eq!(soon(terminal.output.next()).await.unwrap(), expected);
    }

    let (client, mut hears) = server(SESSION, Vec::new()).await;
    let terminal = soon(client.terminal("dev", Which::New)).await.unwrap();
    soon(terminal.input.resize(24, 80)).await.unwrap();
    soon(terminal.input.write(Bytes::from_static(b"\x03"))).await.unwrap();
    soon(terminal.input.close()).await.unwrap();
    let resize = r#"{"type":"resize","rows":24,"cols":80}"#;
    assert_eq!(soon(hears.recv()).await, Some(Message::text(resize)));
    assert_eq!(soon(hears.recv()).await, Some(Message::binary(&b"\x03"[..])));
    assert!(matches!(soon(hears.recv()).await, Some(Message::Close(_))));
}

#[tokio::test]
async fn a_terminal_that_breaks_is_not_one_that_ended() {
    for (code, end) in [(CLOSE_TAKEN, TerminalEvent::Taken), (CLOSE_ASLEEP, TerminalEvent::Asleep)]
    {
        let (client, _hears) = server(SESSION, vec![close(code)]).await;
        let mut terminal = soon(client.terminal("dev", Which::Named("s1"))).await.unwrap();
        assert_eq!(soon(terminal.output.next()).await.unwrap(), end);
    }
    for code in [1001, 1011] {
        let (client, _hears) = server(SESSION, vec![close(code)]).await;
        let mut terminal = soon(client.terminal("dev", Which::New)).await.unwrap();
        let error = soon(terminal.output.next()).await.unwrap_err();
        assert!(matches!(&error, ClientError::Closed { code: told, .. } if *told == code));
        assert_eq!(error.to_string(), "the server closed the connection: because");
    }
    let (client, _hears) = server(SESSION, vec![Message::Close(None)]).await;
    let mut terminal = soon(client.terminal("dev", Which::New)).await.unwrap();
    let error = soon(terminal.output.next()).await.unwrap_err();
    assert_eq!(error.to_string(), "the server closed the connection");
}

#[tokio::test]
async fn what_is_no_session_says_why_there_is_none() {
    let (client, _hears) =
        server("attach error: agent: session\u{1b}[2J not found", Vec::new()).await;
    let error = soon(client.terminal("dev", Which::Named("s9"))).await.err().unwrap();
    assert_eq!(error.to_string(), "no shell");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "attach error: agent: session[2J not found");
    let (client, _hears) = server(r#"{"type":"exit","exit_code":3}"#, Vec::new()).await;
    assert!(soon(client.terminal("dev", Which::New)).await.is_err());
}
