//! Malformed, oversized and slow requests, straight at the socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bhatti_testkit::{TestDaemon, on_fresh_host};

fn connect(daemon: &TestDaemon) -> TcpStream {
    let address = daemon.url().trim_start_matches("http://");
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream
}

/// Sends raw bytes, gives everything that comes back until the server closes.
fn raw(daemon: &TestDaemon, request: &[u8]) -> String {
    let mut stream = connect(daemon);
    // The server may answer and close before it has read everything.
    let _sent = stream.write_all(request);
    let mut answer = Vec::new();
    let _closed = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(daemon: &TestDaemon, method: &str, path: &str, body: &[u8]) -> String {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        daemon.admin().key,
        body.len()
    );
    raw(daemon, &[head.as_bytes(), body].concat())
}

#[test]
fn every_bad_request_gets_its_sentence() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let check = |answer: String, status: &str, text: &str| {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert!(answer.contains(text), "{text} is not in {answer}");
            assert!(answer.contains("x-bhatti-version: v"), "{answer}");
        };
        let get = |path: &str| request(&daemon, "GET", path, b"");
        let post = |path: &str, body: &[u8]| request(&daemon, "POST", path, body);
        check(post("/sandboxes", b""), "400", "{\"error\":\"invalid json: EOF\"}\n");
        check(post("/sandboxes", b"{"), "400", "invalid json: ");
        check(post("/sandboxes", br#"{"name":"-"}"#), "400", "invalid sandbox name: must match");
        check(post("/sandboxes", br#"{"cpus":64}"#), "400", "max 4 CPUs per sandbox");
        check(post("/sandboxes", br#"{"memory_mb":99999}"#), "400", "max 4096 MB memory");
        check(
            post("/sandboxes", br#"{"memory_mb":12}"#),
            "400",
            "min 128 MB memory per sandbox, asked for 12",
        );
        check(post("/sandboxes", br#"{"labels":{"a b":"c"}}"#), "400", "invalid label key");
        let huge = vec![b' '; 33 << 20];
        check(post("/sandboxes", &huge), "400", "http: request body too large");
        check(post("/sandboxes/x/exec", br#"{"cmd":["a"]}"#), "404", "sandbox \\\"x\\\" not found");
        check(get("/sandboxes/"), "400", "missing sandbox id");
        check(get("/sandboxes/x/bogus"), "404", "{\"error\":\"not found\"}");
        check(get("/nowhere"), "404", "404 page not found\n");
        check(request(&daemon, "PUT", "/sandboxes", b""), "405", "method not allowed");
        check(get("//sandboxes?label=a=b"), "301", "location: /sandboxes?label=a=b");
        check(get("/sandboxes?label=a"), "400", "must be key=value");
        check(
            raw(&daemon, b"GET /sandboxes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            "401",
            "authorization required",
        );
        check(raw(&daemon, b"GET /sandboxes?token=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nope\r\nConnection: close\r\n\r\n"), "401", "invalid api key");
        check(
            raw(&daemon, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            "200",
            "\"status\":\"ok\"",
        );
        assert_eq!(get("/sandboxes").lines().last(), Some("[]"));
    });
}

#[test]
fn a_client_that_never_finishes_its_request_is_dropped() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let mut slow = connect(&daemon);
        slow.write_all(b"GET /health HT").expect("it is connected");
        // Whoever is quick is served meanwhile.
        daemon.cli(&["list"]).ok();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).expect("the server closes before the read times out");
        assert!(!String::from_utf8_lossy(&answer).contains("200"));
    });
}
