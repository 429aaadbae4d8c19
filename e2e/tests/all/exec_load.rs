//! Commands by the hundred, and clients that do not read: what the daemon holds stays bounded.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bhatti_api::{ExecRequest, ExecStreamRequest, route, to_json};
use bhatti_client::{Client, ClientError, ExecOutput, ExecSocket, ExecStdin};
use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use bytes::Bytes;
use tokio::runtime::Runtime;

/// More than the daemon's own ups and downs, and far less than what would be queued.
const SLACK_MIB: u64 = 24;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn request(script: &str) -> ExecStreamRequest {
    let cmd = ["sh", "-c", script].map(str::to_owned).into();
    ExecStreamRequest { cmd, stdin: true, ..ExecStreamRequest::default() }
}

/// Opens an exec stream, however often the rate limit says no. Started when it returns.
async fn open<'a>(client: &'a Client, script: &str) -> ExecSocket<'a> {
    let request = request(script);
    let opened = async {
        loop {
            match client.exec_socket("dev", &request).await {
                Ok(socket) => return socket.expect("the daemon speaks it"),
                Err(ClientError::Api { status, .. }) if status.as_u16() == 429 => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let mut socket = tokio::time::timeout(bhatti_testkit::deadline(), opened).await.expect("soon");
    let first = socket.next().await.expect("it starts");
    assert!(matches!(first, Some(ExecOutput::Started { .. })), "{first:?}");
    socket
}

/// Each of them is there at the same time, answers to its own stdin, and ends.
#[test]
fn two_hundred_commands_at_once() {
    const COMMANDS: usize = 200;
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--cpus", "2", "--memory", "512"]).ok();
        let client = daemon.client(daemon.admin());
        runtime().block_on(async {
            let before = Instant::now();
            let mut running: Vec<(ExecSocket<'_>, ExecStdin)> = Vec::new();
            for _ in 0..COMMANDS {
                let mut socket = open(&client, "read line; echo \"got $line\"; exit 5").await;
                let stdin = socket.take_stdin().expect("asked for");
                running.push((socket, stdin));
            }
            println!("{COMMANDS} commands started within {:?}", before.elapsed());
            println!("daemon: {} MiB", daemon.memory_mib("VmRSS"));
            let before = Instant::now();
            for (nth, (_, stdin)) in running.iter_mut().enumerate() {
                stdin.write(Bytes::from(format!("{nth}\n"))).await.expect("it takes a line");
            }
            for (nth, (socket, _)) in running.iter_mut().enumerate() {
                let mut out = Vec::new();
                let code = loop {
                    match socket.next().await.expect("it goes on").expect("an event") {
                        ExecOutput::Stdout(bytes) => out.extend_from_slice(&bytes),
                        ExecOutput::Exit(code) => break code,
                        other => panic!("{other:?}"),
                    }
                };
                assert_eq!(
                    (String::from_utf8_lossy(&out).as_ref(), code),
                    (format!("got {nth}\n").as_str(), 5)
                );
            }
            println!("{COMMANDS} commands answered within {:?}", before.elapsed());
        });
        assert_eq!(daemon.cli(&["exec", "dev", "--", "pgrep", "-f", "read line"]).code, 1);
    });
}

/// `POST /exec` on a connection that is not read afterwards.
fn post(daemon: &TestDaemon, script: &str, accept: &str) -> TcpStream {
    let cmd = ["sh", "-c", script].map(str::to_owned).into();
    let body = to_json(&ExecRequest { cmd, ..ExecRequest::default() });
    let address = daemon.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("it listens");
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\naccept: {accept}\r\n\
         content-length: {}\r\n\r\n",
        route::exec("dev"),
        daemon.admin().key,
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("it is sent");
    stream.write_all(body.as_bytes()).expect("it is sent");
    stream
}

/// A guest that prints for ever to clients that do not read: the command stands still, and so
/// does the daemon's memory; everybody else goes on.
#[test]
fn nobody_reads_and_nothing_grows() {
    const CLIENTS: usize = 8;
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--cpus", "2", "--memory", "512"]).ok();
        daemon.cli(&["exec", "dev", "--", "true"]).ok();
        let client = daemon.client(daemon.admin());
        let before = daemon.memory_mib("VmRSS");
        let (lines, sockets) = runtime().block_on(async {
            let lines: Vec<_> =
                (0..CLIENTS).map(|_| post(&daemon, "exec yes", route::NDJSON)).collect();
            let mut sockets = Vec::new();
            for _ in 0..CLIENTS {
                // From here on nobody asks it for anything.
                sockets.push(open(&client, "exec yes").await);
            }
            (lines, sockets)
        });
        // They have filled whatever there is to fill once they do not run any more.
        let asleep =
            "for p in $(pgrep -x yes); do cut -d' ' -f3 /proc/$p/stat; done | sort | uniq -c";
        wait_for("every command stands still", || {
            let states = daemon.cli(&["exec", "dev", "--", "sh", "-c", asleep]).stdout;
            (states.trim() == format!("{} S", 2 * CLIENTS)).then_some(())
        });
        let after = daemon.memory_mib("VmRSS");
        println!("daemon: {before} MiB before, {after} MiB with {} clients", 2 * CLIENTS);
        assert!(after < before + SLACK_MIB, "{before} MiB before, {after} MiB after");
        drop((lines, sockets));
        wait_for("they are killed with their clients", || {
            (daemon.cli(&["exec", "dev", "--", "pgrep", "-x", "yes"]).code == 1).then_some(())
        });
    });
}
