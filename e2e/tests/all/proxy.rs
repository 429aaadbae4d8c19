//! Programs in a guest, asked through the API by who may use the sandbox.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use tokio_tungstenite::tungstenite::Message;

use crate::files::{curl, noise};
use crate::session_sockets::connect;

/// What runs in the guest. In the binary, which also runs where there is no source tree.
const SERVER: &str = include_str!("../server.py");

/// Starts the server in a sandbox, on `port` and, echoing, on the one after it.
pub(crate) fn serve(daemon: &TestDaemon, sandbox: &str, port: u16, address: &str) {
    let here = daemon.scratch_path().join("server.py");
    std::fs::write(&here, SERVER).expect("it can be written");
    daemon.cli(&["cp", here.as_str(), &format!("{sandbox}:/tmp/server.py")]).ok();
    let number = port.to_string();
    let server = ["exec", sandbox, "--detach", "--", "python3", "/tmp/server.py", &number, address];
    daemon.cli(&server).ok();
    wait_for("it listens", || {
        let ports = daemon.json(&["ports", sandbox]);
        let listens = |wanted| {
            ports.as_array().expect("a list").iter().any(|p| p["container_port"] == wanted)
        };
        (listens(port) && listens(port + 1)).then_some(())
    });
}

/// A request as the admin, written by hand, to `address`.
pub(crate) fn raw(daemon: &TestDaemon, address: &str, path: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let key = &daemon.admin().key;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n{more}\r\n"
    );
    stream.write_all(head.as_bytes()).expect("it is taken");
    stream
}

/// Reads until `end` has come.
pub(crate) fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        let n = stream.read(&mut byte).expect("a byte in time");
        assert_ne!(n, 0, "an early end: {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).expect("text")
}

fn api(daemon: &TestDaemon) -> &str {
    daemon.url().trim_start_matches("http://")
}

#[test]
fn a_program_in_a_guest_is_asked_and_answers() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        what_is_no_port_is_told(&daemon);
        serve(&daemon, "dev", 8000, "127.0.0.1");
        everything_passes(&daemon);
        serve(&daemon, "dev", 8100, "::1");
        assert_eq!(curl(&daemon, "/sandboxes/dev/proxy/8100/", &[]).status, 200);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

/// Where the guest's own address leads to the program.
#[test]
fn a_program_on_all_addresses_is_asked_and_answers() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "0.0.0.0");
        everything_passes(&daemon);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

fn everything_passes(daemon: &TestDaemon) {
    what_a_program_sees(daemon);
    bodies_of_every_kind(daemon);
    bytes_come_as_they_are_sent(daemon);
    hints_come_before_the_answer(daemon);
    a_client_that_leaves_is_seen_to_leave(daemon);
    sockets_work(daemon);
}

fn what_is_no_port_is_told(daemon: &TestDaemon) {
    for port in ["0", "65536", "x", "-1", "+80"] {
        let answer = curl(daemon, &format!("/sandboxes/nobody/proxy/{port}/"), &[]);
        assert_eq!((answer.status, answer.error().as_str()), (400, "invalid port"), "{port}");
    }
    assert_eq!(curl(daemon, "/sandboxes/nobody/proxy/80/", &[]).status, 404);
    let started = Instant::now();
    let nobody = curl(daemon, "/sandboxes/dev/proxy/9/", &[]);
    assert_eq!(nobody.error(), "bad gateway: nothing listens on port 9");
    assert_eq!(nobody.status, 502);
    let upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket"];
    let nobody = curl(daemon, "/sandboxes/dev/proxy/9/", &upgrade);
    assert_eq!(nobody.error(), "tunnel failed: nothing listens on port 9");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

fn what_a_program_sees(daemon: &TestDaemon) {
    let path = "/sandboxes/dev/proxy/8000/a%2Fb/c/?x=%20y";
    let answer = curl(daemon, path, &["-H", "X-Forwarded-For: 10.9.9.9", "-H", "Cookie: a=b"]);
    let head = String::from_utf8(answer.body.clone()).expect("text").to_lowercase();
    assert!(head.starts_with("get /a%2fb/c/?x=%20y http/1.1\r\n"), "{head}");
    let has = |line: &str| head.split("\r\n").any(|l| l == line);
    let address = api(daemon);
    assert!(has("host: localhost:8000") && has("cookie: a=b"), "{head}");
    assert!(has("x-forwarded-for: 127.0.0.1") && has("x-forwarded-proto: http"), "{head}");
    assert!(has(&format!("x-forwarded-host: {address}")), "{head}");
    assert!(!head.contains("authorization") && !head.contains("bht_"), "{head}");
    assert_eq!(answer.header("x-bhatti-warning"), None, "the program speaks for us");
    let bare = curl(daemon, "/sandboxes/dev/proxy/8000", &[]);
    assert!(bare.body.starts_with(b"GET / HTTP/1.1\r\n"), "{bare:?}");
    let refused = curl(daemon, "/sandboxes/dev/proxy/8000/refused", &["-X", "BREW"]);
    assert_eq!((refused.status, refused.header("allow")), (405, Some("post")));
    let garbage = curl(daemon, "/sandboxes/dev/proxy/8000/garbage", &[]);
    assert_eq!(garbage.status, 502);
    assert!(garbage.error().starts_with("bad gateway: the program"), "{}", garbage.error());
}

fn bodies_of_every_kind(daemon: &TestDaemon) {
    let file = daemon.scratch_path().join("body");
    let body = noise(3 << 20);
    std::fs::write(&file, &body).expect("a file");
    let sum = |more: &[&str]| {
        let data = format!("@{file}");
        let args = [&["--data-binary", data.as_str()], more].concat();
        let answer = curl(daemon, "/sandboxes/dev/proxy/8000/sum", &args);
        assert_eq!(answer.status, 200, "{answer:?}");
        String::from_utf8(answer.body).expect("text")
    };
    let whole = sum(&[]);
    assert!(whole.starts_with(&format!("{} ", body.len())), "{whole}");
    assert_eq!(sum(&["-H", "Transfer-Encoding: chunked"]), whole);
    let big = curl(daemon, "/sandboxes/dev/proxy/8000/big?160", &[]);
    assert_eq!((big.status, big.body.len()), (200, 160 * 65_536));
    assert_eq!(big.header("content-length"), Some("10485760"));
    assert!(big.body.chunks(256).all(|c| c.iter().enumerate().all(|(i, b)| usize::from(*b) == i)));
    let head = curl(daemon, "/sandboxes/dev/proxy/8000/sum", &["-I"]);
    assert_eq!((head.status, head.header("content-length")), (200, Some("35")));
}

/// Each event when it happens, trailers at the end.
fn bytes_come_as_they_are_sent(daemon: &TestDaemon) {
    let path = "/sandboxes/dev/proxy/8000/events";
    let mut stream = raw(daemon, api(daemon), path, "");
    let first = until(&mut stream, "data: one\n\n\r\n");
    assert!(first.contains("text/event-stream"), "{first}");
    daemon.sh("dev", "touch /tmp/go");
    until(&mut stream, "data: two\n\n\r\n");
    until(&mut stream, "0\r\n\r\n");
    let path = "/sandboxes/dev/proxy/8000/trailers";
    let mut stream = raw(daemon, api(daemon), path, "TE: trailers\r\nConnection: TE\r\n");
    let end = until(&mut stream, "0\r\nx-sum: 42\r\n\r\n");
    assert!(end.to_lowercase().contains("trailer: x-sum"), "{end}");
}

/// While the program is at work on it; and the connection is as good as before.
fn hints_come_before_the_answer(daemon: &TestDaemon) {
    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
    let path = "/sandboxes/dev/proxy/8000/hinted";
    let mut stream = raw(daemon, api(daemon), path, "");
    assert_eq!(until(&mut stream, "\r\n\r\n"), HINT);
    daemon.sh("dev", "touch /tmp/hinted");
    let answer = until(&mut stream, "after the hint");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The next ones on it, all asked at once; the last knows no hints.
    let request = |version: u8, hints: u32| {
        let key = &daemon.admin().key;
        let path = format!("/sandboxes/dev/proxy/8000/hints?{hints}");
        format!("GET {path} HTTP/1.{version}\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n")
    };
    let asked = [request(1, 2), request(1, 0), request(1, 10_000), request(0, 3)].concat();
    stream.write_all(asked.as_bytes()).expect("it is taken");
    for (most, version) in [(2, 1), (0, 1), (8, 1), (0, 0)] {
        let answer = until(&mut stream, "after the hints");
        let hints = answer.matches(HINT).count();
        assert_eq!(hints, most, "{answer}");
        let rest = answer.replace(HINT, "");
        assert!(rest.starts_with(&format!("HTTP/1.{version} 200 ")), "{answer}");
        assert_eq!(rest.matches("HTTP/").count(), 1, "{answer}");
    }
}

fn a_client_that_leaves_is_seen_to_leave(daemon: &TestDaemon) {
    let stream = raw(daemon, api(daemon), "/sandboxes/dev/proxy/8000/hang", "");
    let there = |file: &str| daemon.cli(&["exec", "dev", "--", "test", "-e", file]).code == 0;
    wait_for("the program is asked", || there("/tmp/hung").then_some(()));
    drop(stream);
    wait_for("the program is told", || there("/tmp/hung-up").then_some(()));
}

fn sockets_work(daemon: &TestDaemon) {
    let key = &daemon.admin().key;
    let mut socket = connect(daemon, key, "/sandboxes/dev/proxy/8000/ws").expect("an upgrade");
    for message in [Message::text("hello"), Message::binary(noise(200_000))] {
        socket.send(message.clone()).expect("it is taken");
        assert_eq!(socket.read().expect("an echo"), message);
    }
    socket.close(None).expect("it is said");
    assert!(matches!(socket.read(), Ok(Message::Close(_))));
    // Any other protocol, with a half-close.
    let upgrade = "Connection: upgrade\r\nUpgrade: echo\r\n";
    let mut stream = raw(daemon, api(daemon), "/sandboxes/dev/proxy/8000/echo", upgrade);
    let head = until(&mut stream, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: echo"), "{head}");
    let sent = noise(1 << 20);
    let mut sending = stream.try_clone().expect("another handle");
    let written = sent.clone();
    let writer = std::thread::spawn(move || {
        sending.write_all(&written).expect("it is taken");
        sending.shutdown(Shutdown::Write).expect("half-closed");
    });
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("an end");
    writer.join().expect("all was sent");
    assert!(heard == sent, "{} of {} bytes", heard.len(), sent.len());
}
