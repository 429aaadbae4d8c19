//! Published ports, asked by anybody.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, on_fresh_host};
use serde_json::{Value, json};

use crate::files::{curl, noise};
use crate::proxy::{raw, serve, until};
use crate::web_shell_browser::{Browser, DESK};

/// What anybody's curl is answered: the status and the body.
#[track_caller]
pub(crate) fn ask(url: &str, args: &[&str]) -> (u16, String) {
    let (_, status, body) = visit(url, args);
    (status, body)
}

/// How anybody's curl ends, and what it is answered.
#[track_caller]
pub(crate) fn visit(url: &str, args: &[&str]) -> (Option<i32>, u16, String) {
    let out = Command::new("curl")
        .args(["-sS", "--max-time", "90", "-w", "\n%{http_code}"])
        .args(args)
        .arg(url)
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (out.status.code(), status.parse().expect("a number"), body.to_owned())
}

/// Publishes a port; the URL.
#[track_caller]
pub(crate) fn publish(daemon: &TestDaemon, args: &[&str]) -> String {
    let printed = daemon.cli(&[&["publish"], args].concat()).ok();
    printed.strip_prefix("Published: ").expect("a URL").trim_end().to_owned()
}

/// `host:port` of a URL whose host is an alias, as an address.
pub(crate) fn address(url: &str) -> String {
    let port = url.trim_end_matches('/').rsplit_once(':').expect("a port").1;
    format!("127.0.0.1:{port}")
}

#[test]
fn a_published_port_is_anybodys_until_it_is_taken_back() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        let url = publish(&daemon, &["dev", "-p", "8000", "-a", "web"]);
        let here = address(&url);
        assert_eq!(
            url,
            format!("http://web.localhost:{}/", here.rsplit_once(':').expect("port").1)
        );
        strangers_are_answered(&daemon, &url, &here);
        what_is_too_large_is_refused(&daemon, &url);
        rules_are_listed_and_kept(&daemon, &url);
        aliases_are_somebodys(&daemon);
        assert_eq!(ask(&publish(&daemon, &["dev", "-p", "9"]), &[]).0, 502);
        for stranger in [format!("http://{here}/"), format!("http://{here}/nobody/")] {
            let answer = ask(&stranger, &[]);
            assert_eq!(answer, (404, "{\"error\":\"not found\"}\n".to_owned()), "{stranger}");
        }
        assert_eq!(ask(&format!("http://{here}/web/"), &["-H", "Host: evil.example"]).0, 404);
        daemon.cli(&["edit", "dev", "--name", "renamed"]).ok();
        assert_eq!(ask(&url, &[]).0, 200, "it is published under another name of the sandbox");
        unpublishing_is_at_once(&daemon, &url, &here);
        let url = publish(&daemon, &["renamed", "-p", "8000", "-a", "again"]);
        daemon.terminate();
        daemon.run();
        let path = url.strip_prefix("http://").expect("a URL").split(':').next().expect("a host");
        let moved = daemon.json(&["list"])[0]["urls"].as_array().expect("URLs").clone();
        let moved = moved.iter().filter_map(Value::as_str).find(|url| url.contains(path));
        assert_eq!(ask(moved.expect("it is listed"), &[]).0, 200, "after a restart");
        daemon.cli(&["destroy", "renamed", "--yes"]).ok();
        assert_eq!(ask(moved.expect("it was listed"), &[]).0, 404);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

fn strangers_are_answered(daemon: &TestDaemon, url: &str, here: &str) {
    let key = format!("Authorization: Bearer {}", daemon.admin().key);
    let (status, head) = ask(&format!("{url}a%2Fb?x"), &["-H", &key]);
    let head = head.to_lowercase();
    assert_eq!(status, 200);
    assert!(head.starts_with("get /a%2fb?x http/1.1\r\n"), "{head}");
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    for line in ["host: localhost:8000", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"] {
        assert!(head.contains(&format!("{line}\r\n")), "{head}");
    }
    assert!(head.contains(&format!("x-forwarded-host: {host}")), "{head}");
    assert!(!head.contains("bht_"), "a key said to the wrong server: {head}");
    let (_, head) = ask(url, &["-u", "user:password"]);
    assert!(head.to_lowercase().contains("authorization: basic "), "the program's own: {head}");
    let (status, head) = ask(&format!("http://{here}/web/x/"), &[]);
    assert!(status == 200 && head.starts_with("GET /x/ HTTP/1.1"), "by its path: {head}");
    let upgrade = format!("Host: {host}\r\nConnection: upgrade\r\nUpgrade: echo\r\n");
    let mut stream = TcpStream::connect(here).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let head = format!("GET /echo HTTP/1.1\r\n{upgrade}\r\n");
    stream.write_all(head.as_bytes()).expect("it is taken");
    assert!(until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 101"));
    stream.write_all(b"hello\n").expect("it is taken");
    until(&mut stream, "hello\n");
}

fn what_is_too_large_is_refused(daemon: &TestDaemon, url: &str) {
    let url = format!("{url}sum");
    let most = 50 << 20;
    let file = daemon.scratch_path().join("large");
    std::fs::write(&file, noise(1000)).expect("a file");
    let data = format!("@{file}");
    assert_eq!(ask(&url, &["--data-binary", &data]).0, 200);
    let large = std::fs::File::options().write(true).open(&file).expect("the file");
    large.set_len(most + 1).expect("a hole");
    let started = Instant::now();
    assert_eq!(ask(&url, &["-T", file.as_str(), "-X", "POST"]).0, 413);
    assert!(started.elapsed() < Duration::from_secs(20), "it was read: {:?}", started.elapsed());
}

fn rules_are_listed_and_kept(daemon: &TestDaemon, url: &str) {
    assert_eq!(publish(daemon, &["dev", "-p", "8000", "-a", "other"]), url, "as it was");
    let post = |body: &Value| {
        let body = body.to_string();
        curl(daemon, "/sandboxes/dev/publish", &["-X", "POST", "-d", &body])
    };
    let existing = post(&json!({"port": 8000}));
    assert_eq!((existing.status, existing.header("x-bhatti-existing")), (200, Some("true")));
    assert_eq!(existing.json()["url"], url);
    let made = post(&json!({"port": 8001}));
    let alias = made.json()["alias"].as_str().expect("an alias").to_owned();
    assert_eq!((made.status, alias.starts_with("dev-"), alias.len()), (201, true, 10));
    assert!(!made.json()["created_at"].as_str().expect("a time").starts_with("0001"));
    let rules = curl(daemon, "/sandboxes/dev/publish", &[]).json();
    let ports: Vec<&Value> = rules.as_array().expect("a list").iter().map(|r| &r["port"]).collect();
    assert_eq!(ports, [8000, 8001]);
    let fields: Vec<&String> = rules[0].as_object().expect("a rule").keys().collect();
    assert_eq!(fields.len(), 7, "{fields:?}");
    assert_eq!(daemon.json(&["list"])[0]["urls"][0], url);
    assert!(daemon.cli(&["ls"]).ok().contains(url));
    daemon.cli(&["unpublish", "dev", "-p", "8001"]).ok();
    for (body, status, error) in [
        ("nonsense", 400, "invalid request body"),
        ("{\"port\":\"x\"}", 400, "invalid request body"),
        ("{\"port\":0}", 400, "port must be 1-65535"),
        ("{\"port\":65536}", 400, "port must be 1-65535"),
        ("{\"port\":1,\"alias\":\"api\"}", 400, "alias \"api\" is reserved"),
        (
            "{\"port\":1,\"alias\":\"A\"}",
            400,
            "alias must be lowercase alphanumeric with hyphens, 1-63 chars",
        ),
        ("{\"port\":1,\"alias\":\"web\"}", 409, "alias \"web\" is already taken"),
    ] {
        let refused = curl(daemon, "/sandboxes/dev/publish", &["-X", "POST", "-d", body]);
        assert_eq!((refused.status, refused.error().as_str()), (status, error), "{body}");
    }
    let delete = |path: &str| {
        let answer = curl(daemon, &format!("/sandboxes/dev/publish{path}"), &["-X", "DELETE"]);
        (answer.status, answer.error())
    };
    assert_eq!(delete("/x"), (400, "invalid port in path".to_owned()));
    let none = "no publish rule for port 77 on this sandbox".to_owned();
    assert_eq!(delete("/77"), (404, none));
    assert_eq!(curl(daemon, "/sandboxes/dev/publish/80", &[]).status, 404);
    assert_eq!(curl(daemon, "/sandboxes/nobody/publish", &[]).status, 404);
}

fn aliases_are_somebodys(daemon: &TestDaemon) {
    let bob = daemon.create_user("bob", 1);
    daemon.cli_as(&bob, &["create", "--name", "dev", "--memory", "512"]).ok();
    let taken = daemon.cli_as(&bob, &["publish", "dev", "-p", "80", "-a", "web"]).fails(1);
    assert!(taken.contains("alias \"web\" is already taken"), "{taken}");
    let none = daemon.cli_as(&bob, &["unpublish", "dev", "-p", "8000"]).fails(1);
    assert!(none.contains("no publish rule for port 8000"), "{none}");
    daemon.cli_as(&bob, &["destroy", "dev", "--yes"]).ok();
}

fn unpublishing_is_at_once(daemon: &TestDaemon, url: &str, here: &str) {
    daemon.sh("renamed", "rm -f /tmp/go");
    let mut stream = raw(daemon, here, "/web/events", "");
    until(&mut stream, "data: one\n\n\r\n");
    daemon.cli(&["unpublish", "renamed", "-p", "8000"]).ok();
    assert_eq!(ask(url, &[]).0, 404);
    let mut rest = Vec::new();
    // Cut off, in whatever way; the program would go on for a minute.
    let started = Instant::now();
    drop(stream.read_to_end(&mut rest));
    assert!(started.elapsed() < Duration::from_secs(30) && rest.is_empty(), "{rest:?}");
}

#[test]
fn a_hundred_strangers_wake_a_cold_sandbox_once() {
    // The first, and a hundred more.
    const STRANGERS: usize = 101;
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        let here = address(&publish(&daemon, &["dev", "-p", "8000", "-a", "web"]));
        daemon.cli(&["stop", "dev"]).ok();
        assert_eq!(daemon.state("dev").as_deref(), Some("stopped"));
        // A daemon that has seen nothing of it since.
        daemon.terminate();
        daemon.run();
        let urls = daemon.json(&["list"])[0]["urls"][0].as_str().expect("a URL").to_owned();
        let here = if address(&urls) == here { here } else { address(&urls) };
        let visitors: Vec<_> = (0..STRANGERS)
            .map(|number| {
                let here = here.clone();
                std::thread::spawn(move || {
                    let mut stream = TcpStream::connect(&here).expect("it listens");
                    stream.set_read_timeout(Some(Duration::from_secs(90))).expect("a timeout");
                    let head = format!(
                        "GET /web/x{number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    );
                    stream.write_all(head.as_bytes()).expect("it is taken");
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).expect("an answer");
                    answer
                })
            })
            .collect();
        assert_eq!(visitors.len(), STRANGERS);
        for (number, visitor) in visitors.into_iter().enumerate() {
            let answer = visitor.join().expect("it was answered");
            let own = format!("GET /x{number} ");
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&own), "{answer}");
        }
        assert_eq!(daemon.count_logged("woken from cold"), 1);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

#[test]
fn a_protected_port_is_for_who_has_its_token() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        let made = daemon.json(&["publish", "dev", "-p", "8000", "-a", "web", "--auth"]);
        let text = |key: &str| made[key].as_str().expect("a text").to_owned();
        let (url, link, token) = (text("url"), text("link"), text("token"));
        assert_eq!(link, format!("{url}?bhatti_token={token}"));
        daemon.cli(&["stop", "dev"]).ok();
        let asleep = daemon.state("dev");
        let wrong = token.replace(|c: char| c.is_ascii_digit(), "f");
        let header = |token: &str| format!("X-Bhatti-Token: {token}");
        for args in [vec![], vec!["-H".to_owned(), header(&wrong)]] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let (status, body) = ask(&url, &args);
            assert_eq!((status, body.contains("asks for a token")), (401, true), "{body}");
        }
        assert_eq!(ask(&format!("{url}?bhatti_token={wrong}"), &[]).0, 401);
        assert_eq!(daemon.state("dev"), asleep, "it was woken for strangers");
        who_has_the_token_is_answered(&daemon, &url, &token);
        a_browser_is_let_in_by_the_link(&daemon, &url, &link);
        assert!(daemon.cli(&["publish", "dev", "-p", "8000"]).ok().contains("asks for a token"));
        assert_eq!(ask(&url, &["-H", &header(&token)]).0, 200, "as it was");
        assert_eq!(curl(&daemon, "/sandboxes/dev/publish", &[]).json()[0]["auth"], true);
        let anew = daemon.json(&["publish", "dev", "-p", "8000", "--auth"]);
        let anew = anew["token"].as_str().expect("a token").to_owned();
        assert_eq!(ask(&url, &["-H", &header(&token)]).0, 401, "it was replaced");
        assert_eq!(ask(&url, &["-H", &header(&anew)]).0, 200);
        let log = std::fs::read_to_string(daemon.log_file()).expect("the log");
        assert!(!log.contains(&token) && !log.contains(&anew), "a secret in the log");
        daemon.cli(&["unpublish", "dev", "-p", "8000"]).ok();
        assert_eq!(ask(&url, &["-H", &header(&anew)]).0, 404);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

/// By every way it can be said; and the program sees none of it.
fn who_has_the_token_is_answered(daemon: &TestDaemon, url: &str, token: &str) {
    let link = format!("{url}a?x=1&bhatti_token={token}");
    let jar = daemon.scratch_path().join("cookies");
    let jar = jar.as_str();
    let (header, bearer) =
        (format!("X-Bhatti-Token: {token}"), format!("Authorization: Bearer {token}"));
    for (url, args) in [
        (format!("{url}a?x=1"), vec!["-H", header.as_str()]),
        (format!("{url}a?x=1"), vec!["-H", bearer.as_str()]),
        (link.clone(), vec![]),
        // A browser: sent on, and remembered.
        (link, vec!["-L", "-c", jar, "-H", "Accept: text/html"]),
        (format!("{url}a?x=1"), vec!["-b", jar]),
    ] {
        let (status, head) = ask(&url, &args);
        assert_eq!(status, 200, "{args:?}: {head}");
        assert!(head.starts_with("GET /a?x=1 HTTP/1.1\r\n"), "{args:?}: {head}");
        assert!(!head.contains("bhp_") && !head.contains("bhatti_token"), "{args:?}: {head}");
    }
    let mut stream = TcpStream::connect(address(url)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let head = format!(
        "GET /web/echo?bhatti_token={token} HTTP/1.1\r\nHost: localhost\r\n\
         Connection: upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("it is taken");
    assert!(until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 101"));
    stream.write_all(b"hello\n").expect("it is taken");
    until(&mut stream, "hello\n");
}

/// And finds its way back without it, at a name below `localhost`.
fn a_browser_is_let_in_by_the_link(daemon: &TestDaemon, url: &str, link: &str) {
    let mut browser = Browser::start(daemon.scratch_path().as_std_path(), DESK);
    browser.open(link);
    browser.wait_for_text("body", "GET / HTTP/1.1");
    assert_eq!(browser.run("location.href"), url, "the token is gone from the address");
    browser.open(&format!("{url}again"));
    browser.wait_for_text("body", "GET /again HTTP/1.1");
    let shown = browser.run("document.body.textContent");
    assert!(!shown.as_str().expect("text").contains("bhp_"), "{shown}");
}
