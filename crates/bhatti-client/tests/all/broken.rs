//! What the client makes of servers that break the rules, and of connections that die.

use std::collections::BTreeMap;
use std::error::Error as _;

use bhatti_api::{CreateSandbox, ExecEvent, ExecRequest};
use bhatti_client::{Client, ClientError};
use tokio::sync::mpsc::UnboundedReceiver;

use super::server::{Seen, Step, json, scripted, stream};

const OUT: &str = "{\"type\":\"stdout\",\"data\":\"x\"}\n";
const HEALTH: &str = r#"{"status":"ok","uptime":"1s"}"#;

async fn client(script: Vec<Step>) -> (Client, UnboundedReceiver<Seen>) {
    let (url, seen) = scripted(script).await;
    (Client::new(&url, None).unwrap(), seen)
}

/// Everything the server has seen so far.
fn seen(log: &mut UnboundedReceiver<Seen>) -> Vec<Seen> {
    std::iter::from_fn(|| log.try_recv().ok()).collect()
}

/// The answer to a look has no body that could say why.
#[tokio::test]
async fn a_look_that_is_refused_says_why() {
    let why = r#"{"error":"wake sandbox: no space left"}"#;
    let refusal = "503 Service Unavailable";
    let head = format!("HTTP/1.1 {refusal}\r\ncontent-length: {}\r\n\r\n", why.len());
    let answers = vec![
        Step::Answer(head.clone().into_bytes()),
        Step::Answer(json(refusal, why)),
        Step::Answer(head.into_bytes()),
        Step::Answer(json("200 OK", "{}")),
    ];
    let (client, _log) = client(answers).await;
    let refused = async || client.stat_file("dev", "/x").await.unwrap_err().to_string();
    assert_eq!(refused().await, "503 Service Unavailable: wake sandbox: no space left");
    assert_eq!(refused().await, "503 Service Unavailable: ", "it was better a moment later");
}

#[tokio::test]
async fn an_error_answer_keeps_status_message_and_request() {
    let limit = r#"{"error":"rate limit exceeded"}"#;
    let internal = r#"{"error":"internal error","request_id":"req_0011"}"#;
    let (client, _log) = client(vec![
        Step::Answer(json("429 Too Many Requests", limit)),
        Step::Answer(json("500 Internal Server Error", internal)),
        Step::Answer(json("502 Bad Gateway", "<html>")),
    ])
    .await;
    let error = client.health().await.unwrap_err();
    assert_eq!(error.to_string(), "429 Too Many Requests: rate limit exceeded");
    assert_eq!(error.hint().unwrap().text, "Wait a few seconds and try again.");
    let error = client.health().await.unwrap_err();
    assert!(matches!(&error, ClientError::Api { request_id: Some(id), .. } if id == "req_0011"));
    assert_eq!(client.health().await.unwrap_err().to_string(), "502 Bad Gateway: ");
}

#[tokio::test]
async fn wrong_json_is_not_an_answer() {
    let (client, _log) = client(vec![
        Step::Answer(json("200 OK", "[]")),
        Step::Answer(json("200 OK", "{\"status\":")),
    ])
    .await;
    for _ in 0..2 {
        let error = client.health().await.unwrap_err();
        assert_eq!(error.to_string(), "the server's answer is not what was expected");
        assert!(error.source().is_some());
    }
}

#[tokio::test]
async fn an_answer_cut_short_is_an_error() {
    let whole = json("200 OK", HEALTH);
    let cut = whole[..whole.len() - 5].to_vec();
    let (client, _log) = client(vec![Step::AnswerAndClose(cut)]).await;
    let error = client.health().await.unwrap_err();
    assert_eq!(error.to_string(), "the server's answer broke off before its end");
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_given_up() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20)).into_bytes();
    let (client, mut log) = client(vec![Step::Flood(head, chunk)]).await;
    let error = client.list(&BTreeMap::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "the server's answer is too large");
    drop(client);
    while log.recv().await.unwrap() != Seen::HungUp {}
}

#[tokio::test]
async fn a_dead_connection_is_replaced() {
    let answer = || Step::Answer(json("200 OK", HEALTH));
    let (client, mut log) = client(vec![answer(), answer(), Step::Close, answer()]).await;
    for _ in 0..3 {
        client.health().await.unwrap();
    }
    let get = || Seen::Request("GET /health HTTP/1.1".to_owned());
    let wanted = [Seen::Connection, get(), get(), get(), Seen::Connection, get()];
    assert_eq!(seen(&mut log), wanted, "one connection while it lives, then one more");
}

#[tokio::test]
async fn a_create_is_never_sent_twice() {
    let (client, mut log) = client(vec![Step::Answer(json("200 OK", HEALTH)), Step::Close]).await;
    client.health().await.unwrap();
    let error = client.create(&CreateSandbox::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "the connection to the server broke");
    let posts = seen(&mut log)
        .into_iter()
        .filter(|seen| matches!(seen, Seen::Request(line) if line.starts_with("POST")));
    assert_eq!(posts.count(), 1);
}

#[tokio::test]
async fn a_stream_without_its_end_is_an_error() {
    let ended = [stream(&[OUT]), b"0\r\n\r\n".to_vec()].concat();
    for (step, text) in [
        (Step::AnswerAndClose(stream(&[OUT])), "the stream broke off before the command ended"),
        (Step::Answer(ended), "the stream ended before the command did"),
        (
            Step::Answer(stream(&[OUT, "{\"type\":\"what\"}\n"])),
            "the stream has a line that is no event",
        ),
        (Step::Answer(stream(&[OUT, "nonsense\n"])), "the stream has a line that is no event"),
    ] {
        let (client, _log) = client(vec![step]).await;
        let mut stream = client.exec_stream("dev", &ExecRequest::default()).await.unwrap();
        assert!(matches!(stream.next().await.unwrap(), Some(ExecEvent::Stdout { .. })));
        assert_eq!(stream.next().await.unwrap_err().to_string(), text);
        assert_eq!(stream.next().await.unwrap(), None, "an error is the end");
    }
}

#[tokio::test]
async fn a_line_without_end_is_given_up() {
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16)).into_bytes();
    let (client, mut log) = client(vec![Step::Flood(stream(&[]), chunk)]).await;
    let mut stream = client.exec_stream("dev", &ExecRequest::default()).await.unwrap();
    let error = stream.next().await.unwrap_err();
    assert_eq!(error.to_string(), "the stream has a line without end");
    drop(stream);
    while log.recv().await.unwrap() != Seen::HungUp {}
}

#[tokio::test]
async fn dropping_a_stream_hangs_up() {
    let (client, mut log) = client(vec![Step::Hold(stream(&[OUT]))]).await;
    let mut stream = client.exec_stream("dev", &ExecRequest::default()).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    drop(stream);
    while log.recv().await.unwrap() != Seen::HungUp {}
}

#[tokio::test]
async fn an_exec_that_is_refused_says_why() {
    let body = r#"{"error":"sandbox not found"}"#;
    let plain = json("200 OK", HEALTH);
    let (client, _log) =
        client(vec![Step::Answer(json("404 Not Found", body)), Step::Answer(plain)]).await;
    let error = |result: Result<_, ClientError>| match result {
        Err(error) => error,
        Ok::<bhatti_client::ExecStream<'_>, _>(_) => panic!("this is no stream"),
    };
    let refused = error(client.exec_stream("dev", &ExecRequest::default()).await);
    assert_eq!(refused.to_string(), "404 Not Found: sandbox not found");
    assert_eq!(refused.hint().unwrap().commands, ["bhatti ls"]);
    let odd = error(client.exec_stream("dev", &ExecRequest::default()).await);
    assert_eq!(odd.to_string(), "the server does not stream: its answer is no stream");
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let (client, _log) =
        client(vec![Step::Answer(json("200 OK", HEALTH)), Step::Hold(Vec::new())]).await;
    client.health().await.unwrap();
    // From here on the clock jumps to the next deadline whenever nobody has anything to do.
    tokio::time::pause();
    let error = client.health().await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { seconds: 120 }), "{error}");
}
