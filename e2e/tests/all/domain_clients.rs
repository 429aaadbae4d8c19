//! What clients of every kind see of one program below a domain of one's own: a browser, curl, and a
//! client of HTTP/2 that says trailers.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;

use base64::Engine as _;
use bhatti_testkit::{TestDaemon, deadline, on_fresh_host};
use bytes::Bytes;
use camino::Utf8Path;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::domain::{Ca, curl, trusting, with_files};
use crate::proxy::serve;
use crate::web_shell_browser::{Browser, DESK};

#[test]
fn every_client_gets_what_a_program_says() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::prepared("");
        let dir = daemon.scratch_path().to_owned();
        let ca = Ca::new(&dir);
        let key = ca.issue(&["*.box.test"]);
        daemon.reconfigure(&with_files(&dir));
        daemon.run();
        let silent = TcpStream::connect("127.0.0.1:443").expect("it listens");
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        daemon.cli(&["publish", "dev", "-p", "8000", "-a", "web"]).ok();
        let ca = dir.join("ca.pem");
        hints_come_first_where_they_can(&ca);
        trailers_cross_both_ways(&ca);
        a_browser_shows_a_page_with_a_socket(&daemon, &hash(&key));
        who_says_nothing_is_let_go(silent);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

/// Who has not even begun a handshake.
fn who_says_nothing_is_let_go(mut silent: TcpStream) {
    silent.set_read_timeout(Some(deadline())).expect("a timeout");
    assert_eq!(silent.read(&mut [0]).expect("an end in time"), 0);
}

/// And what follows them is the answer.
fn hints_come_first_where_they_can(ca: &Utf8Path) {
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
    for (version, first, status) in
        [("--http1.1", hint, "HTTP/1.1 200 "), ("--http2", "", "HTTP/2 200 ")]
    {
        let (ok, answer) = curl(ca, "https://web.box.test/hints", &[version, "-i"]);
        let rest = answer.strip_prefix(first).unwrap_or_default();
        assert!(ok && rest.starts_with(status) && !rest.contains("103"), "{answer}");
        assert!(rest.contains("after the hints\n200 "), "{answer}");
    }
}

fn trailers_cross_both_ways(ca: &Utf8Path) {
    let te = ["-i", "-H", "TE: trailers"];
    for version in ["--http1.1", "--http2"] {
        let args = [&[version], te.as_slice()].concat();
        let (ok, answer) = curl(ca, "https://web.box.test/trailers", &args);
        let answer = answer.to_lowercase();
        assert!(ok && answer.contains("trailer: x-sum\r\n"), "{version}: {answer}");
        assert!(answer.contains("x-sum: 42\r\n"), "{version}: {answer}");
    }
    let (answer, trailers) = two_way(ca, "sum");
    assert_eq!((answer.as_str(), trailers), ("5 5d41402abc4b2a76b9719d911017c592 x-sum: 7", None));
    let (answer, trailers) = two_way(ca, "trailers");
    assert_eq!(answer, "body");
    assert_eq!(trailers.expect("some")["x-sum"], "42");
}

/// Says `hello` and a trailer in HTTP/2; the body of the answer and its trailers.
fn two_way(ca: &Utf8Path, path: &str) -> (String, Option<HeaderMap>) {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().expect("a value"));
    let frames = [Frame::data(Bytes::from("hello")), Frame::trailers(trailers)];
    let frames = frames.map(Ok::<_, std::convert::Infallible>);
    let request = Request::post(format!("https://web.box.test/{path}"))
        .header("te", "trailers")
        .header("trailer", "x-sum")
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .expect("a request");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let answer: Response<Incoming> = by_http2(ca, request).await;
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.expect("a whole answer");
        let trailers = body.trailers().cloned();
        (String::from_utf8(body.to_bytes().to_vec()).expect("text"), trailers)
    })
}

/// The answer as it begins; the connection goes on by itself.
async fn by_http2<B>(ca: &Utf8Path, request: Request<B>) -> Response<Incoming>
where
    B: hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    B: Unpin,
{
    let mut config = trusting(ca);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("web.box.test").expect("a name");
    let stream = tokio::net::TcpStream::connect("127.0.0.1:443").await.expect("it listens");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = TokioIo::new(stream.expect("a handshake"));
    let built = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
    let (mut sender, connection) = built.expect("a connection");
    tokio::spawn(connection);
    sender.send_request(request).await.expect("an answer")
}

/// By TLS, in HTTP/2, with a WebSocket, events and a request of its own, all of the published name.
fn a_browser_shows_a_page_with_a_socket(daemon: &TestDaemon, key: &str) {
    daemon.sh("dev", "rm -f /tmp/go");
    let dir = daemon.scratch_path();
    let flags = [
        "--host-resolver-rules=MAP *.box.test 127.0.0.1".to_owned(),
        format!("--ignore-certificate-errors-spki-list={key}"),
    ];
    let mut browser = Browser::start_with(dir.as_std_path(), DESK, &flags);
    browser.open("https://web.box.test/page");
    browser.wait_for_text("#socket", "from the browser");
    browser.wait_for_text("#asked", "GET /asked HTTP/1.1");
    browser.wait_for_text("#asked", "https");
    browser.wait_for_text("#events", "one");
    assert_eq!(browser.run("document.getElementById('events').textContent"), "one", "not yet");
    daemon.sh("dev", "touch /tmp/go");
    browser.wait_for_text("#events", "onetwo");
    let spoken = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(browser.run(spoken), "h2");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// The hash of a certificate's key, as Chromium wants it to trust that one.
fn hash(key: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(key))
}
