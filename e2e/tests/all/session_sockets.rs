//! The WebSockets of sessions as any client may speak them: `/exec/ws`, and what both refuse.

use std::net::TcpStream;
use std::time::Duration;

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, HandshakeError, Message, WebSocket, client};

pub(crate) type Socket = WebSocket<TcpStream>;

/// Connects, or gives the status and body of the refusal.
pub(crate) fn connect(daemon: &TestDaemon, key: &str, path: &str) -> Result<Socket, (u16, String)> {
    let address = daemon.url().trim_start_matches("http://");
    let mut request = format!("ws://{address}{path}").into_client_request().expect("a URL");
    let value = format!("Bearer {key}").parse().expect("a header");
    request.headers_mut().insert("authorization", value);
    let stream = TcpStream::connect(address).expect("the daemon listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    match client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(Error::Http(response))) => {
            let body = response.body().clone().unwrap_or_default();
            Err((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
        }
        Err(error) => panic!("{error}"),
    }
}

fn open(daemon: &TestDaemon, path: &str) -> Socket {
    connect(daemon, &daemon.admin().key, path).expect("an upgrade")
}

fn say(socket: &mut Socket, message: impl Into<Message>) {
    socket.send(message.into()).expect("it is taken");
}

/// The next message, which is text and JSON.
fn notice(socket: &mut Socket) -> Value {
    let message = socket.read().expect("a message");
    serde_json::from_str(message.to_text().expect("text")).expect("JSON")
}

/// Reads text until it ends with `end`.
fn text_until(socket: &mut Socket, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        text.push_str(socket.read().expect("a message").to_text().expect("text"));
    }
    text
}

/// The code of the close frame, after which nothing comes.
fn close_code(socket: &mut Socket) -> u16 {
    let Ok(Message::Close(Some(frame))) = socket.read() else { panic!("a close frame") };
    frame.code.into()
}

#[test]
fn a_piped_session_goes_on_without_its_client() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "256"]).ok();
        let path = "/sandboxes/dev/exec/ws";
        let script =
            "echo \"$A $PWD\"; echo err >&2; while read l; do echo \"got $l\"; done; exit 7";
        let cmd = json!({"cmd": ["sh", "-c", script], "env": {"A": "one two"}}).to_string();
        let mut first = open(&daemon, path);
        say(&mut first, cmd);
        assert_eq!(notice(&mut first), json!({"type": "session", "session_id": "s1"}));
        assert_eq!(text_until(&mut first, "err\n"), "one two /\nerr\n");
        // Text and bytes are both stdin, and a character may come in pieces.
        say(&mut first, "te");
        say(&mut first, Message::binary(b"xt \xc3".to_vec()));
        say(&mut first, Message::binary(b"\xa9\n".to_vec()));
        assert_eq!(text_until(&mut first, "\n"), "got text é\n");
        say(&mut first, Message::binary(b"\xff\n".to_vec()));
        assert_eq!(text_until(&mut first, "\n"), "got \u{fffd}\n");

        let mut second = open(&daemon, &format!("{path}?session=s1"));
        assert_eq!(notice(&mut second)["session_id"], "s1");
        let replay = "one two /\nerr\ngot text é\ngot \u{fffd}\n";
        assert_eq!(text_until(&mut second, "\u{fffd}\n"), replay);
        let taken = json!({"type": "error", "message": "another client has attached"});
        assert_eq!(notice(&mut first), taken);
        assert_eq!(close_code(&mut first), 4001);

        drop(second);
        wait_for("nobody is attached", || {
            (daemon.json(&["ps", "dev"])[0]["attached"] == false).then_some(())
        });
        let mut third = open(&daemon, &format!("{path}?session=s1"));
        assert_eq!(notice(&mut third)["session_id"], "s1");
        assert_eq!(text_until(&mut third, "\u{fffd}\n"), replay);
        daemon.cli(&["stop", "dev"]).ok();
        let asleep = json!({"type": "error", "message": "the sandbox was put to sleep"});
        assert_eq!(notice(&mut third), asleep);
        assert_eq!(close_code(&mut third), 4002);
        let mut third = open(&daemon, &format!("{path}?session=s1"));
        assert_eq!(notice(&mut third)["session_id"], "s1");
        assert_eq!(text_until(&mut third, "\u{fffd}\n"), replay);
        daemon.cli(&["exec", "dev", "--", "pkill", "-f", "while read"]).ok();
        assert_eq!(notice(&mut third), json!({"type": "exit", "exit_code": 143}));
        assert_eq!(close_code(&mut third), 1000);
    });
}

#[test]
fn what_cannot_be_is_said_in_the_contracts_words() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "256"]).ok();
        let stranger = daemon.create_user("stranger", 5);
        for path in ["/sandboxes/dev/ws", "/sandboxes/dev/exec/ws"] {
            let refused = |key: &str, path: &str| connect(&daemon, key, path).expect_err(path).0;
            assert_eq!(refused("nonsense", path), 401);
            assert_eq!(refused(&stranger.key, path), 404, "as if it were not there");
            let (status, body) =
                connect(&daemon, "nonsense", &format!("{path}?token={}", daemon.admin().key))
                    .expect_err("no token in a query");
            assert!(status == 401 && body.contains("invalid api key"), "{status} {body}");
        }
        let mut gone = open(&daemon, "/sandboxes/dev/ws?session=s9");
        let text = gone.read().expect("a message");
        assert_eq!(text.to_text().expect("text"), "attach error: agent: session not found");
        assert!(close_code(&mut gone) != 1000, "nothing has ended");
        let mut gone = open(&daemon, "/sandboxes/dev/exec/ws?session=s9");
        assert_eq!(notice(&mut gone), json!({"error": "attach: agent: session not found"}));
        for (request, error) in [
            ("{", "cmd required"),
            ("{}", "cmd required"),
            (r#"{"cmd":["no-such"]}"#, "start: agent: exec: \"no-such\": not found in PATH"),
        ] {
            let mut socket = open(&daemon, "/sandboxes/dev/exec/ws");
            say(&mut socket, request);
            assert_eq!(notice(&mut socket), json!({ "error": error }));
        }
        // As many as there may be, and not one more.
        let sessions: Vec<Socket> = (0..20)
            .map(|_| {
                let mut socket = open(&daemon, "/sandboxes/dev/exec/ws");
                say(&mut socket, r#"{"CMD":["cat"],"max_idle_sec":-1}"#);
                assert_eq!(notice(&mut socket)["type"], "session");
                socket
            })
            .collect();
        let mut shell = open(&daemon, "/sandboxes/dev/ws?new=true");
        let text = shell.read().expect("a message");
        assert_eq!(text.to_text().expect("text"), "shell error: agent: session limit exceeded");
        assert_eq!(daemon.json(&["ps", "dev"]).as_array().map(Vec::len), Some(20));
        drop(sessions);
    });
}
