//! Connections forwarded to the caller's machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use serde_json::Value;

use crate::files::noise;
use crate::proxy::serve;

/// A `bhatti forward` that runs; it is ended with this.
struct Forwarding {
    child: Child,
    address: String,
}

impl Forwarding {
    fn start(daemon: &TestDaemon, sandbox: &str, port: u16) -> Self {
        let args = ["forward", sandbox, &port.to_string(), "0", "--json"];
        let mut command = daemon.prepare(Some(daemon.admin()), &args);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        while !said.ends_with("}\n") {
            assert_ne!(lines.read_line(&mut said).expect("text"), 0, "it ended: {said}");
        }
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let address = said["listen"].as_str().expect("an address").to_owned();
        Self { child, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(90))).expect("a timeout");
        stream
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.child.kill().expect("ours to kill");
        self.child.wait().expect("it ends");
    }
}

/// Sends all of `bytes` and the end, and reads what comes back to its end.
fn echoed(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut sending = stream.try_clone().expect("another handle");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(bytes).expect("it is taken");
            sending.shutdown(Shutdown::Write).expect("half-closed");
        });
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).expect("an end");
        heard
    })
}

#[test]
fn a_port_of_the_guest_is_reached_from_here() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        let forwarding = Forwarding::start(&daemon, "dev", 8001);
        let bytes = noise(1 << 20);
        assert!(echoed(forwarding.connect(), &bytes) == bytes);
        daemon.cli(&["stop", "dev"]).ok();
        // All at once, of a sandbox that sleeps.
        let many: Vec<_> = (0..30_u8).map(|n| (vec![n; 50_000], forwarding.connect())).collect();
        std::thread::scope(|scope| {
            for (bytes, stream) in many {
                scope.spawn(move || assert!(echoed(stream, &bytes) == bytes));
            }
        });
        let nobody = Forwarding::start(&daemon, "dev", 9);
        let ended = nobody.connect().read(&mut [0]);
        assert!(ended.is_err(), "a server that has nothing to say: {ended:?}");
        let mut ssh = Piped::start(&daemon);
        drop(ssh.input.take());
        let ended = wait_for("it ends", || ssh.child.try_wait().expect("it can be asked"));
        assert!(ended.success(), "{ended}");
        let refused = daemon.cli(&["forward", "dev", "9", "--stdio"]).fails(1);
        assert!(refused.contains("tunnel failed: nothing listens on port 9"), "{refused}");
        daemon.cli(&["forward", "nobody", "80"]).fails(1);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

/// A `forward --stdio` to what echoes on port 8001, as ssh would have it, after a first line each way.
struct Piped {
    child: Child,
    input: Option<std::process::ChildStdin>,
}

impl Piped {
    fn start(daemon: &TestDaemon) -> Self {
        let mut child = daemon
            .prepare(Some(daemon.admin()), &["forward", "dev", "8001", "--stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(b"SSH-2.0\r\n").expect("it is taken");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "SSH-2.0\r\n", "while its input is open");
        Self { child, input: Some(input) }
    }

    /// How it ends by itself, and what it says.
    fn end(mut self) -> (Option<i32>, String) {
        let ended = wait_for("it ends", || self.child.try_wait().expect("it can be asked"));
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        stderr.read_to_string(&mut said).expect("text");
        (ended.code(), said.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Ends its side first, and counts what comes on the other.
const LISTENER: &str = "
import socket
listener = socket.create_server(('127.0.0.1', 8200))
while True:
    peer, _ = listener.accept()
    peer.sendall(b'hello')
    peer.shutdown(socket.SHUT_WR)
    count = 0
    while part := peer.recv(65536):
        count += len(part)
    open('/tmp/counted', 'w').write(str(count))
    peer.close()
";

#[test]
fn either_side_may_end_first() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "384"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        daemon.cli(&["exec", "dev", "--detach", "--", "python3", "-c", LISTENER]).ok();
        wait_for("it listens", || {
            daemon.cli(&["ports", "dev"]).ok().contains("8200").then_some(())
        });
        daemon.cli(&["stop", "dev"]).ok();
        // Two commands at once, of a sandbox that sleeps.
        let (one, two) =
            (Forwarding::start(&daemon, "dev", 8200), Forwarding::start(&daemon, "dev", 8001));
        assert_eq!(daemon.state("dev").as_deref(), Some("stopped"), "nobody has connected yet");
        let bytes = noise(1 << 20);
        std::thread::scope(|scope| {
            let echo = scope.spawn(|| echoed(two.connect(), &bytes));
            let mut stream = one.connect();
            let mut heard = String::new();
            stream.read_to_string(&mut heard).expect("an end");
            assert_eq!(heard, "hello");
            stream.write_all(&bytes).expect("the other direction goes on");
            stream.shutdown(Shutdown::Write).expect("half-closed");
            assert!(echo.join().expect("it is answered") == bytes);
        });
        wait_for("all of it has arrived", || {
            let counted = daemon.cli(&["exec", "dev", "--", "cat", "/tmp/counted"]);
            (counted.stdout == (1 << 20).to_string()).then_some(())
        });
        assert_eq!(daemon.count_logged("woken from cold"), 1);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

#[test]
fn what_breaks_off_is_not_taken_for_an_end() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        // The same port after a restart, or nobody could find it again.
        let config = std::fs::read_to_string(daemon.config()).expect("a file");
        let address = daemon.url().trim_start_matches("http://");
        let config = config.replace("listen: 127.0.0.1:0", &format!("listen: {address}"));
        std::fs::write(daemon.config(), config).expect("a file");
        daemon.cli(&["create", "--name", "dev", "--memory", "384"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        daemon.terminate();
        daemon.run();
        let mut forwarding = Forwarding::start(&daemon, "dev", 8001);
        let mut stream = forwarding.connect();
        stream.write_all(b"x").expect("it is taken");
        stream.read_exact(&mut [0]).expect("an echo");
        let piped = Piped::start(&daemon);
        assert_eq!(daemon.terminate(), 0);
        let ended = stream.read(&mut [0]);
        assert!(ended.is_err(), "taken for a server that had no more to say: {ended:?}");
        let (code, said) = piped.end();
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("the connection to dev:8001 broke") && said.contains("restarted"),
            "{said}"
        );
        // Nobody is there: told, and the next is tried anew.
        assert!(forwarding.connect().read(&mut [0]).is_err());
        daemon.run();
        assert!(echoed(forwarding.connect(), b"again") == b"again");
        assert!(forwarding.child.try_wait().expect("it can be asked").is_none(), "it goes on");
        // The same with a sandbox that goes.
        let (piped, mut stream) = (Piped::start(&daemon), forwarding.connect());
        stream.write_all(b"x").expect("it is taken");
        stream.read_exact(&mut [0]).expect("an echo");
        daemon.cli(&["destroy", "dev", "--yes"]).ok();
        assert!(stream.read(&mut [0]).is_err());
        assert_eq!(piped.end().0, Some(1));
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}
