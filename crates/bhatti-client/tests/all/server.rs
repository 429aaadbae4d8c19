//! A server that answers each request with the bytes the test wrote down.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What to do with one request.
#[derive(Clone)]
pub(super) enum Step {
    /// Send these bytes and wait for the next request on this connection.
    Answer(Vec<u8>),
    /// Send these bytes and close.
    AnswerAndClose(Vec<u8>),
    /// Close without a byte.
    Close,
    /// Send these bytes, then repeat the last ones until the client hangs up.
    Flood(Vec<u8>, Vec<u8>),
    /// Send these bytes, then say nothing more; the client's hanging up is reported.
    Hold(Vec<u8>),
}

/// What the server saw.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Connection,
    /// The first line.
    Request(String),
    HungUp,
}

/// Serves `script`, one step a request, over as many connections as it takes.
pub(super) async fn scripted(script: Vec<Step>) -> (String, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, seen) = mpsc::unbounded_channel();
    let script = Arc::new(tokio::sync::Mutex::new(script.into_iter()));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tell.send(Seen::Connection).unwrap_or_default();
            let (script, tell) = (script.clone(), tell.clone());
            tokio::spawn(async move { connection(stream, &script, &tell).await });
        }
    });
    (url, seen)
}

async fn connection(
    mut stream: TcpStream,
    script: &tokio::sync::Mutex<std::vec::IntoIter<Step>>,
    tell: &mpsc::UnboundedSender<Seen>,
) {
    while let Some(line) = request(&mut stream).await {
        tell.send(Seen::Request(line)).unwrap_or_default();
        let step = script.lock().await.next().expect("the script covers every request");
        match step {
            Step::Answer(bytes) => stream.write_all(&bytes).await.unwrap(),
            Step::AnswerAndClose(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                return;
            }
            Step::Close => return,
            Step::Flood(head, body) => {
                stream.write_all(&head).await.unwrap();
                while stream.write_all(&body).await.is_ok() {}
                tell.send(Seen::HungUp).unwrap_or_default();
                return;
            }
            Step::Hold(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                // 0 bytes or a reset: either way the client has gone.
                let gone = stream.read(&mut [0; 1]).await;
                assert!(matches!(gone, Ok(0) | Err(_)), "the client sent something else");
                tell.send(Seen::HungUp).unwrap_or_default();
                return;
            }
        }
    }
}

/// Reads one request; `None` at the end of the connection.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    head.lines().next().map(str::to_owned)
}

/// A whole answer with this status line and JSON body.
pub(super) fn json(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The head of a stream, then these chunks, without the last, empty chunk.
pub(super) fn stream(chunks: &[&str]) -> Vec<u8> {
    let mut out =
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    for chunk in chunks {
        out.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    out.into_bytes()
}
