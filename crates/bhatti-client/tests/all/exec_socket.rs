//! Exec streams, against a server that says what each test wrote down.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::any;
use bhatti_api::{EXEC_PROTOCOL, ExecStreamRequest};
use bhatti_client::{Client, ExecOutput};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Far beyond what anything here takes.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("happens soon")
}

async fn serve(router: Router) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Client::new(&url, Some("bht_key")).unwrap()
}

/// A server that speaks, after the request, as `speak` does.
async fn server<F>(speak: impl Fn(WebSocket, String) -> F + Send + Sync + 'static) -> Client
where
    F: Future<Output = ()> + Send + 'static,
{
    type Speak = dyn Fn(WebSocket, String) -> BoxFuture<'static, ()> + Send + Sync;
    let speak: Arc<Speak> = Arc::new(move |socket, request| Box::pin(speak(socket, request)));
    let handle = move |upgrade: WebSocketUpgrade| async move {
        upgrade.protocols([EXEC_PROTOCOL]).on_upgrade(move |mut socket| async move {
            let Some(Ok(Message::Text(request))) = socket.recv().await else { return };
            speak(socket, request.to_string()).await;
        })
    };
    serve(Router::new().route("/sandboxes/dev/exec/stream", any(handle))).await
}

fn request() -> ExecStreamRequest {
    ExecStreamRequest { cmd: vec!["x".to_owned()], stdin: true, ..ExecStreamRequest::default() }
}

async fn text(socket: &mut WebSocket, text: &str) {
    socket.send(Message::text(text.to_owned())).await.unwrap();
}

const STARTED: &str = r#"{"type":"started","pid":7,"window":65536}"#;
const EXIT: &str = r#"{"type":"exit","exit_code":3}"#;

#[tokio::test]
async fn output_comes_as_it_is_and_ends_once() {
    let client = server(|mut socket, request| async move {
        assert!(request.contains(r#""cmd":["x"]"#) && request.contains(r#""window":1048576"#));
        text(&mut socket, STARTED).await;
        socket.send(Message::binary(&b"\x01\0\xff"[..])).await.unwrap();
        socket.send(Message::binary(&b"\x02err"[..])).await.unwrap();
        text(&mut socket, EXIT).await;
        socket
            .send(Message::Close(Some(CloseFrame { code: 1000, reason: "".into() })))
            .await
            .unwrap();
    })
    .await;
    let mut socket = soon(client.exec_socket("dev", &request())).await.unwrap().expect("spoken");
    let mut events = Vec::new();
    while let Some(event) = soon(socket.next()).await.unwrap() {
        events.push(event);
    }
    let wanted = [
        ExecOutput::Started { pid: 7 },
        ExecOutput::Stdout(Bytes::from_static(b"\0\xff")),
        ExecOutput::Stderr(Bytes::from_static(b"err")),
        ExecOutput::Exit(3),
    ];
    assert_eq!(events, wanted);
    assert!(client.timing().is_some());
}

#[tokio::test]
async fn a_broken_exec_stream_is_an_error() {
    type End = fn(WebSocket) -> BoxFuture<'static, ()>;
    let endings: [(End, &str); 6] = [
        (|socket| Box::pin(async move { drop(socket) }), "the connection to the server"),
        (
            |mut socket| {
                Box::pin(async move {
                    let frame = CloseFrame { code: 1000, reason: "".into() };
                    socket.send(Message::Close(Some(frame))).await.unwrap();
                })
            },
            "the connection was closed before the command ended",
        ),
        (
            |mut socket| {
                Box::pin(async move {
                    let frame = CloseFrame { code: 1011, reason: "full\u{1b}[2J".into() };
                    socket.send(Message::Close(Some(frame))).await.unwrap();
                })
            },
            "the server closed the connection: full[2J",
        ),
        (
            |mut socket| Box::pin(async move { text(&mut socket, "{}").await }),
            "no message of an exec",
        ),
        (
            |mut socket| {
                Box::pin(async move { socket.send(Message::binary(&b"\x09x"[..])).await.unwrap() })
            },
            "the server sends what is no output",
        ),
        (
            |mut socket| {
                Box::pin(async move {
                    let block = Bytes::from(vec![1; 1 << 16]);
                    while socket.send(Message::Binary(block.clone())).await.is_ok() {}
                })
            },
            "the server sends more than it was asked to",
        ),
    ];
    for (end, wanted) in endings {
        let client = server(move |mut socket, _| async move {
            text(&mut socket, STARTED).await;
            end(socket).await;
        })
        .await;
        let mut socket =
            soon(client.exec_socket("dev", &request())).await.unwrap().expect("spoken");
        let error = loop {
            match soon(socket.next()).await {
                Ok(Some(ExecOutput::Started { .. } | ExecOutput::Stdout(_))) => {}
                Ok(other) => panic!("{other:?}, and not {wanted:?}"),
                Err(error) => break error,
            }
        };
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        let shown = format!("{error}{}", cause.unwrap_or_default());
        assert!(shown.contains(wanted), "{shown:?}, and not {wanted:?}");
        assert!(soon(socket.next()).await.unwrap().is_none(), "an error is said once");
    }
}

#[tokio::test]
async fn no_more_stdin_is_sent_than_the_server_wants() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let client = server(move |mut socket, _| {
        let tell = tell.clone();
        async move {
            text(&mut socket, STARTED).await;
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Binary(bytes) => {
                        assert_eq!(bytes[0], 0, "the channel of stdin");
                        tell.send(Some(bytes.len() - 1)).unwrap();
                    }
                    Message::Text(said) if said.as_str() == r#"{"type":"eof"}"# => {
                        tell.send(None).unwrap();
                        return text(&mut socket, EXIT).await;
                    }
                    // The test asks for the rest this way.
                    Message::Text(said) if said.as_str() == r#"{"type":"kill"}"# => {
                        text(&mut socket, r#"{"type":"ack","bytes":65536}"#).await;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    })
    .await;
    let mut socket = soon(client.exec_socket("dev", &request())).await.unwrap().expect("spoken");
    let (mut stdin, control) = (socket.take_stdin().unwrap(), socket.control());
    assert!(socket.take_stdin().is_none());
    let writing = async {
        stdin.write(Bytes::from(vec![7; 100_000])).await.unwrap();
        stdin.finish().await.unwrap();
    };
    let ending = async {
        loop {
            if let Some(ExecOutput::Exit(code)) = socket.next().await.unwrap() {
                return code;
            }
        }
    };
    let counting = async {
        let mut sum = 0;
        while sum < 65536 {
            sum += told.recv().await.unwrap().expect("no end yet");
        }
        assert_eq!(sum, 65536, "more than the window");
        control.kill().await.unwrap();
        while let Some(count) = told.recv().await.unwrap() {
            sum += count;
        }
        sum
    };
    let ((), code, sum) = soon(async { tokio::join!(writing, ending, counting) }).await;
    assert_eq!((code, sum), (3, 100_000));
}

#[tokio::test]
async fn a_server_that_does_not_know_it_is_told_apart() {
    let answers: [(StatusCode, &str, bool); 6] = [
        (StatusCode::NOT_FOUND, r#"{"error":"not found"}"#, true),
        (StatusCode::BAD_REQUEST, "Bad Request\n", true),
        (StatusCode::OK, "{}", true),
        (StatusCode::NOT_FOUND, r#"{"error":"sandbox \"dev\" not found"}"#, false),
        (StatusCode::TOO_MANY_REQUESTS, r#"{"error":"rate limit exceeded"}"#, false),
        (StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"wake sandbox: x"}"#, false),
    ];
    for (status, body, unknown) in answers {
        let answer = move || async move { (status, body).into_response() };
        let client = serve(Router::new().fallback(any(answer))).await;
        let opened = soon(client.exec_socket("dev", &request())).await;
        match opened {
            Ok(None) => assert!(unknown, "{status} {body}"),
            Ok(Some(_)) => panic!("{status} {body}"),
            Err(error) => assert!(!unknown && error.status() == Some(status), "{error}"),
        }
    }
}
