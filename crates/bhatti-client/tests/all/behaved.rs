//! What goes out and what comes back when the server keeps the rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Router, http::StatusCode};
use bhatti_api::{CreateSandbox, ExecEvent, ExecRequest, PatchSandbox};
use bhatti_client::{Client, ClientError};
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};

const DEV: &str = r#"{"id":"0123456789abcdef","name":"dev","status":"running",
    "created_at":"2026-04-01T10:00:00.123456789Z","cpus":0.5,"memory_mb":512,"later":true}"#;

const SNAPSHOT: &str = r#"{"id":"fedcba9876543210","user_id":"usr_1a2b3c4d","name":"s",
    "source_sandbox":"0123456789abcdef","size_mb":37,"created_at":"2026-04-01T10:00:00Z"}"#;

/// Answers everything; keeps the requests as `METHOD target auth accept body`.
async fn serve() -> (Client, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let app = Router::new().fallback(answer).with_state(log.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}//", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (Client::new(&url, Some("bht_k")).unwrap(), log)
}

async fn answer(State(log): State<Arc<Mutex<Vec<String>>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let header = |name: &str| {
        parts.headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned()
    };
    let line = format!(
        "{} {} {} {} {}",
        parts.method,
        parts.uri,
        header("authorization"),
        header("accept"),
        String::from_utf8_lossy(&body).trim_end()
    );
    log.lock().await.push(line);
    let path = parts.uri.path();
    let body = match (parts.method.as_str(), path) {
        ("GET", "/sandboxes") => format!("[{DEV}]"),
        ("GET", "/health") => r#"{"status":"ok","uptime":"3s"}"#.to_owned(),
        ("GET", "/snapshots") => format!("[{SNAPSHOT}]"),
        ("GET", "/snapshots/s") | ("POST", "/sandboxes/dev/checkpoint") => SNAPSHOT.to_owned(),
        ("DELETE", _) => r#"{"status":"destroyed"}"#.to_owned(),
        ("POST", "/sandboxes") => {
            return (
                StatusCode::OK,
                [("x-bhatti-existing", "true"), ("x-bhatti-version", "9.9.9")],
                DEV,
            )
                .into_response();
        }
        ("POST", "/sandboxes/dev/exec") if header("accept") == "application/x-ndjson" => {
            return events();
        }
        ("POST", "/sandboxes/dev/exec") if body_has(&body, "\"detach\":true") => {
            r#"{"detached":true,"output_file":"/o","pid":42}"#.to_owned()
        }
        ("POST", "/sandboxes/dev/exec") => {
            let result = r#"{"exit_code":3,"stdout":"out","stderr":"err"}"#;
            return ([("x-bhatti-warning", "memory is lost")], result).into_response();
        }
        _ => DEV.to_owned(),
    };
    ([("x-bhatti-min-cli", "v1.2.3")], body).into_response()
}

fn body_has(body: &Bytes, text: &str) -> bool {
    String::from_utf8_lossy(body).contains(text)
}

/// Three events, cut at inconvenient places.
fn events() -> Response {
    let (send, receive) = mpsc::channel::<&str>(1);
    tokio::spawn(async move {
        for part in [
            "{\"type\":\"stdout\",",
            "\"data\":\"a\\u003c\"}\n\n{\"type\":\"stderr\",\"data\":\"e\"}\n{\"ty",
            "pe\":\"exit\",\"exit_code\":7}\n",
        ] {
            send.send(part).await.unwrap();
        }
    });
    let parts = futures_util::stream::unfold(receive, |mut receive| async {
        Some((receive.recv().await?, receive))
    });
    let body = Body::from_stream(parts.map(Ok::<_, std::convert::Infallible>));
    ([("content-type", "application/x-ndjson")], body).into_response()
}

#[tokio::test]
async fn every_call_sends_what_the_contract_says() {
    let (client, log) = serve().await;
    assert_eq!(client.health().await.unwrap().uptime, "3s");
    assert_eq!(client.server().min_cli.as_deref(), Some("v1.2.3"));
    let labels =
        BTreeMap::from([("a/b".to_owned(), "c".to_owned()), ("d".to_owned(), String::new())]);
    assert_eq!(client.list(&labels).await.unwrap()[0].name, "dev");
    assert_eq!(client.get("a/b ?").await.unwrap().cpus, 0.5);
    let wanted = CreateSandbox { name: "dev".to_owned(), cpus: Some(0.5), ..Default::default() };
    let created = client.create(&wanted).await.unwrap();
    assert!(created.existing);
    assert_eq!(client.server().version.as_deref(), Some("9.9.9"));
    let change = PatchSandbox { keep_hot: Some(true), ..Default::default() };
    client.patch("dev", &change).await.unwrap();
    assert_eq!(client.destroy("dev").await.unwrap().status, "destroyed");
    let request = ExecRequest { cmd: vec!["ls".to_owned()], timeout_sec: 5, ..Default::default() };
    assert_eq!(client.exec_buffered("dev", &request).await.unwrap().exit_code, 3);
    assert_eq!(client.exec_detached("dev", &request).await.unwrap().pid, 42);
    assert_eq!(client.take_warning().as_deref(), Some("memory is lost"), "of the one before");
    assert_eq!(client.take_warning(), None);
    let exec = |detach: bool| {
        format!(r#"{{"cmd":["ls"],"timeout_sec":5,"detach":{detach},"output_file":""}}"#)
    };
    let wanted = [
        "GET /health Bearer bht_k - ".to_owned(),
        "GET /sandboxes?label=a%2Fb%3Dc&label=d%3D Bearer bht_k - ".to_owned(),
        "GET /sandboxes/a%2Fb%20%3F Bearer bht_k - ".to_owned(),
        "POST /sandboxes Bearer bht_k - {\"name\":\"dev\",\"cpus\":0.5}".to_owned(),
        "PATCH /sandboxes/dev Bearer bht_k - {\"keep_hot\":true}".to_owned(),
        "DELETE /sandboxes/dev Bearer bht_k - ".to_owned(),
        format!("POST /sandboxes/dev/exec Bearer bht_k - {}", exec(false)),
        format!("POST /sandboxes/dev/exec Bearer bht_k - {}", exec(true)),
    ];
    assert_eq!(log.lock().await.as_slice(), wanted);
}

#[tokio::test]
async fn sleep_and_snapshots_are_asked_for_as_the_contract_says() {
    let (client, log) = serve().await;
    assert_eq!(client.stop("a/b").await.unwrap().name, "dev");
    assert_eq!(client.start("dev", false).await.unwrap().name, "dev");
    assert_eq!(client.start("dev", true).await.unwrap().name, "dev");
    assert_eq!(client.checkpoint("dev", "s").await.unwrap().size_mb, 37);
    assert_eq!(client.snapshots().await.unwrap()[0].source_sandbox, "0123456789abcdef");
    assert_eq!(client.snapshot("s").await.unwrap().name, "s");
    let new = bhatti_api::ResumeSnapshot { name: "new".to_owned(), ..Default::default() };
    assert_eq!(
        client.resume_snapshot("s", &bhatti_api::ResumeSnapshot::default()).await.unwrap().name,
        "dev"
    );
    assert_eq!(client.resume_snapshot("s", &new).await.unwrap().name, "dev");
    client.delete_snapshot("s").await.unwrap();
    let wanted = [
        "POST /sandboxes/a%2Fb/stop Bearer bht_k - ",
        "POST /sandboxes/dev/start Bearer bht_k - ",
        "POST /sandboxes/dev/start Bearer bht_k - {\"force\":true}",
        "POST /sandboxes/dev/checkpoint Bearer bht_k - {\"name\":\"s\"}",
        "GET /snapshots Bearer bht_k - ",
        "GET /snapshots/s Bearer bht_k - ",
        "POST /snapshots/s/resume Bearer bht_k - {}",
        "POST /snapshots/s/resume Bearer bht_k - {\"name\":\"new\"}",
        "DELETE /snapshots/s Bearer bht_k - ",
    ];
    assert_eq!(log.lock().await.as_slice(), wanted);
}

#[tokio::test]
async fn a_stream_gives_its_events_whole_whatever_the_chunks() {
    let (client, _log) = serve().await;
    let mut stream = client.exec_stream("dev", &ExecRequest::default()).await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        events.push(event);
    }
    let wanted = [
        ExecEvent::Stdout { data: "a<".to_owned() },
        ExecEvent::Stderr { data: "e".to_owned() },
        ExecEvent::Exit { exit_code: 7, timed_out: false },
    ];
    assert_eq!(events, wanted);
    assert_eq!(stream.next().await.unwrap(), None, "nothing comes after the end");
}

#[tokio::test]
async fn phases_are_timed_and_a_kept_connection_has_no_connect() {
    let (client, _log) = serve().await;
    client.health().await.unwrap();
    let first = client.timing().unwrap();
    assert!(first.connect.is_some() && first.server.is_some() && first.transfer.is_some());
    assert!(first.dns.is_none() && first.tls.is_none(), "a literal address, without TLS");
    assert!(first.total >= first.connect.unwrap() + first.server.unwrap());
    client.health().await.unwrap();
    assert_eq!(client.timing().unwrap().connect, None);
}

#[tokio::test]
async fn a_listing_works_while_a_stream_is_open() {
    let (client, _log) = serve().await;
    let mut stream = client.exec_stream("dev", &ExecRequest::default()).await.unwrap();
    assert_eq!(client.list(&BTreeMap::new()).await.unwrap().len(), 1);
    assert!(matches!(stream.next().await.unwrap(), Some(ExecEvent::Stdout { .. })));
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address_and_a_way_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(&url, None).unwrap();
    let error = client.health().await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot connect to {url}"));
    assert!(matches!(&error, ClientError::Connect { source, .. }
        if source.kind() == std::io::ErrorKind::ConnectionRefused));
    assert!(error.hint().unwrap().text.contains("daemon running"));
}

#[test]
fn a_key_that_cannot_be_sent_is_refused() {
    let bad = Client::new("http://x", Some("a\nb"));
    assert!(matches!(bad, Err(ClientError::BadToken)));
}
