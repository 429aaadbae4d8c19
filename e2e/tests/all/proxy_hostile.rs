//! Programs that lie and clients that misbehave, many at once: each is answered or let go in time,
//! nothing of it stays, and nobody beside it notices.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, deadline, on_fresh_host, wait_for};

use crate::proxy::{serve, until};
use crate::publish::{address, ask, publish, visit};

/// They fall asleep by themselves, unless something of them is still under way.
const SLEEPY: &str = "thermal:\n  warm_after: 2s\n  cold_after: never\n";

/// Two sandboxes: one that is tried with, and its neighbour.
fn prepare() -> (TestDaemon, String, String) {
    let daemon = TestDaemon::start_with(SLEEPY);
    let mut urls = ["bad", "good"].map(|name| {
        daemon.cli(&["create", "--name", name, "--memory", "384"]).ok();
        serve(&daemon, name, 8000, "127.0.0.1");
        publish(&daemon, &[name, "-p", "8000", "-a", name])
    });
    let [bad, good] = urls.each_mut().map(std::mem::take);
    (daemon, bad, good)
}

fn asleep(daemon: &TestDaemon) {
    for name in ["bad", "good"] {
        daemon.wait_for_state(name, "warm");
    }
}

/// How many sockets are made for a user's guests at a time (ADR 0022).
const READY: usize = 16;

/// Does `work`, while the neighbour is asked again and again, and is there at once each time; and
/// waits until all of it is gone.
fn beside(daemon: &TestDaemon, neighbour: &str, work: impl FnOnce()) {
    asleep(daemon);
    let before = daemon.open_files();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let started = Instant::now();
                assert_eq!(ask(neighbour, &[]).0, 200);
                slowest = slowest.max(started.elapsed());
            }
            slowest
        });
        let ended = Over(&over);
        work();
        drop(ended);
        let slowest = neighbour.join().expect("it was answered");
        assert!(slowest < Duration::from_secs(10), "the neighbour waited {slowest:?}");
    });
    asleep(daemon);
    // Of the sockets that the daemon has ready for its user's guests, there may be more now.
    let most = before + READY;
    wait_for("what was opened is closed", || (daemon.open_files() <= most).then_some(()));
    assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
}

/// Says so when it goes, however it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_program_that_lies_harms_nobody_but_itself() {
    /// How curl ends when an answer broke off: in the body, or before its head was sent.
    const BROKEN: [Option<i32>; 3] = [Some(18), Some(52), Some(56)];
    on_fresh_host(|| {
        let (daemon, bad, good) = prepare();
        let gateway = (Some(0), 502, "{\"error\":\"bad gateway\"}\n".to_owned());
        beside(&daemon, &good, || {
            for path in ["garbage", "nothing", "endless-head", "lengths"] {
                let started = Instant::now();
                assert_eq!(visit(&format!("{bad}{path}"), &[]), gateway, "{path}");
                let took = started.elapsed();
                assert!(took < Duration::from_secs(30), "{path}: {took:?}");
            }
            // That it is not all is seen, whether or not something of it has arrived.
            for path in ["short", "endless-extension", "cut"] {
                let (code, status, _) = visit(&format!("{bad}{path}"), &[]);
                assert!(BROKEN.contains(&code), "{path}: {code:?}, {status}");
            }
            // What comes after an answer is nobody's answer.
            for _ in 0..10 {
                assert_eq!(visit(&format!("{bad}long"), &[]), (Some(0), 200, "ok".to_owned()));
                let (_, status, body) = visit(&format!("{bad}asked"), &[]);
                assert!(status == 200 && body.starts_with("GET /asked "), "{status}: {body}");
            }
            // As many hints as it likes are no answer.
            let hinted = visit(&format!("{bad}hints?10000"), &[]);
            assert_eq!(hinted, (Some(0), 200, "after the hints".to_owned()));
            // Whoever waits for these gives up by himself, and the program is told.
            for path in ["half", "hang", "endless-hints"] {
                assert_eq!(
                    visit(&format!("{bad}{path}"), &["--max-time", "2"]).0,
                    Some(28),
                    "{path}"
                );
            }
            wait_for("the program is told", || {
                let told = ["exec", "bad", "--", "ls", "/tmp/hung-up", "/tmp/half-hung-up"];
                (daemon.cli(&told).code == 0).then_some(())
            });
        });
        daemon.cli(&["stop", "bad"]).ok();
        daemon.cli(&["destroy", "bad", "--yes"]).ok();
    });
}

/// A connection on which `text` was said.
fn said(here: &str, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(here).expect("it listens");
    stream.set_read_timeout(Some(deadline())).expect("a timeout");
    stream.write_all(text.as_bytes()).expect("it is taken");
    stream
}

/// All that comes until the other side ends it, in whatever way.
fn rest(mut stream: TcpStream) -> String {
    let mut heard = Vec::new();
    // One that is reset has ended too.
    if let Err(error) = stream.read_to_end(&mut heard) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

#[test]
fn a_client_that_misbehaves_is_let_go_in_time() {
    on_fresh_host(|| {
        let (daemon, bad, good) = prepare();
        let here = address(&bad);
        let head = "GET /bad/hang HTTP/1.1\r\nHost: localhost\r\n";
        beside(&daemon, &good, || {
            // Who takes nothing of an answer.
            let stuck = said(&here, "GET /bad/big?2000 HTTP/1.1\r\nHost: localhost\r\n\r\n");
            std::thread::scope(|scope| {
                // Whose head never ends, a byte at a time.
                scope.spawn(|| {
                    let mut stream = said(&here, head);
                    let started = Instant::now();
                    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
                    wait_for("it is cut off", || {
                        let sent = stream.write_all(b"x");
                        (sent.is_err() || matches!(stream.read(&mut [0]), Ok(0))).then_some(())
                    });
                    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
                });
                // Who says nothing, and who says nothing more.
                for text in ["", "GET /bad/", "GET /bad/x HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
                    let here = &here;
                    scope.spawn(move || rest(said(here, text)));
                }
                // Who will hear nothing more: the program is told.
                scope.spawn(|| {
                    let stream = said(&here, &format!("{head}\r\n"));
                    stream.shutdown(Shutdown::Write).expect("half-closed");
                    rest(stream);
                });
            });
            for (text, status) in [
                ("nonsense\r\n\r\n".to_owned(), "400"),
                (format!("{head}{}\r\n", "a: b\r\n".repeat(1000)), "431"),
                (format!("{head}a: {}\r\n\r\n", "b".repeat(1 << 20)), "431"),
                (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)), "414"),
            ] {
                let heard = answered(&here, &text);
                assert!(heard.starts_with(&format!("HTTP/1.1 {status}")), "{heard}");
            }
            // A body that is longer than it may be, whatever it says of itself.
            let post = "POST /bad/sum HTTP/1.1\r\nHost: localhost\r\n";
            let announced = format!("{post}Content-Length: 99999999\r\n\r\n");
            let head = until(&mut said(&here, &announced), "\r\n\r\n");
            assert!(head.starts_with("HTTP/1.1 413"), "{head}");
            let mut stream = said(&here, &format!("{post}Transfer-Encoding: chunked\r\n\r\n"));
            let mut hearing = stream.try_clone().expect("another handle");
            let heard = scope_send(&mut stream, &mut hearing);
            assert!(heard.starts_with("HTTP/1.1 413"), "{heard}");
            // One whose body never comes keeps its sandbox for minutes, unless it goes.
            drop(said(&here, &format!("{post}Content-Length: 10\r\n\r\nx")));
            // The first of them is still there, and keeps nobody awake.
            daemon.wait_for_state("bad", "warm");
            drop(stuck);
        });
    });
}

/// What comes back, while the head is longer than anybody reads.
fn answered(here: &str, text: &str) -> String {
    let mut stream = said(here, "");
    let mut hearing = stream.try_clone().expect("another handle");
    std::thread::scope(|scope| {
        // It may be cut off before all of it is said.
        scope.spawn(move || drop(stream.write_all(text.as_bytes())));
        let mut head = [0; 12];
        hearing.read_exact(&mut head).expect("an answer");
        String::from_utf8_lossy(&head).into_owned()
    })
}

/// Sends chunks until there is an answer, and gives its beginning.
fn scope_send(stream: &mut TcpStream, hearing: &mut TcpStream) -> String {
    let chunk = [b"100000\r\n".as_slice(), &vec![0; 1 << 20], b"\r\n"].concat();
    std::thread::scope(|scope| {
        scope.spawn(move || (0..60).all(|_| stream.write_all(&chunk).is_ok()));
        let mut head = [0; 12];
        hearing.read_exact(&mut head).expect("an answer");
        String::from_utf8_lossy(&head).into_owned()
    })
}

/// All that is answered to `text`, whose last request asks for the connection's end.
fn heard(here: &str, text: &str) -> String {
    rest(said(here, text))
}

#[test]
fn a_request_is_understood_in_one_way_only() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "384"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        let here = address(&publish(&daemon, &["dev", "-p", "8000", "-a", "web"]));
        what_is_malformed_is_refused(&here);
        bodies_have_one_length(&here);
        a_program_is_told_who_asks(&here);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

fn what_is_malformed_is_refused(here: &str) {
    let web = "Host: web.localhost\r\nConnection: close\r\n";
    for text in [
        format!("GET / HTTP/1.1\r\n{web}Host: web.localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{web}X-A: a\r\n folded: b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{web}X-A: a\rX-B: b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{web}X-A : a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{web}X-A: a\0b\r\n\r\n"),
        format!("GET /a b HTTP/1.1\r\n{web}\r\n"),
        format!("POST /sum HTTP/1.1\r\n{web}Content-Length: +5\r\n\r\nhello"),
        format!("POST /sum HTTP/1.1\r\n{web}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        format!("POST /sum HTTP/1.1\r\n{web}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /sum HTTP/1.1\r\n{web}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        format!("POST /sum HTTP/1.0\r\n{web}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("CONNECT web.localhost:80 HTTP/1.1\r\n{web}\r\n"),
    ] {
        let answer = heard(here, &text);
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{text}: {answer}"
        );
    }
    // Another host than the one that is asked.
    for text in [
        format!("GET http://evil.example/ HTTP/1.1\r\n{web}\r\n"),
        format!("GET http://web.localhost@evil.example/ HTTP/1.1\r\n{web}\r\n"),
    ] {
        let answer = heard(here, &text);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{text}: {answer}");
    }
}

/// What looks like a request within a body, or after it, is none for the program behind.
fn bodies_have_one_length(here: &str) {
    let hidden = "GET /hidden HTTP/1.1\r\nHost: web.localhost\r\n\r\n";
    let web = "Host: web.localhost\r\nConnection: close\r\n";
    let both = format!(
        "POST /sum HTTP/1.1\r\n{web}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{hidden}\r\n0\r\n\r\n{hidden}",
        hidden.len()
    );
    let answer = heard(here, &both);
    let counted = format!("\r\n\r\n{} ", hidden.len());
    // As chunks, or not at all; what follows is not looked at.
    let whole = answer.starts_with("HTTP/1.1 200 ") && answer.contains(&counted);
    assert!(whole || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(!answer.contains("/hidden"), "{answer}");
    // One of a GET belongs to it.
    let length = hidden.len();
    let get = format!("GET /sum HTTP/1.1\r\n{web}Content-Length: {length}\r\n\r\n{hidden}");
    let answer = heard(here, &get);
    assert!(answer.contains(&counted) && !answer.contains("/hidden"), "{answer}");
}

/// Whatever the client says of itself, or has removed on the way.
fn a_program_is_told_who_asks(here: &str) {
    let answer = heard(
        here,
        "GET http://web.localhost/a HTTP/1.1\r\nHost: other.localhost\r\n\
         Connection: close, Host, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Gone\r\n\
         X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Host: evil.example\r\nX_Forwarded_Host: evil.example\r\n\
         X-Forwarded-Prefix: /evil\r\nX-Forwarded-Port: 9\r\nForwarded: host=evil.example\r\n\
         X-Gone: 1\r\nProxy-Authorization: Basic eA==\r\n\
         aUTHORIZATION: bEARER bht_0123456789\r\n\r\n",
    );
    let answer = answer.to_lowercase();
    let (_, seen) = answer.split_once("\r\n\r\n").expect("a head and a body");
    for wanted in [
        "get /a http/1.1",
        "host: localhost:8000",
        "x-forwarded-host: web.localhost",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
    ] {
        assert!(seen.lines().any(|line| line.trim_end() == wanted), "{wanted}: {seen}");
    }
    for gone in ["evil", "192.0.2.9", "bht_", "x-gone", "authorization", "port: 9"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
}
