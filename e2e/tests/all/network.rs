//! Who reaches whom, seen from inside guests: by default, under a policy, and after everything that
//! might forget one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use bhatti_testkit::{TestDaemon, User, WORLD, in_world, ip, on_fresh_host, wait_for};

/// Where everything that listens does.
pub(crate) const PORT: u16 = 7777;
/// A private network beyond the host, and the cloud's metadata service.
pub(crate) const LAN: &str = "192.168.7.1";
pub(crate) const METADATA: &str = "169.254.169.254";

/// Says of each `kind:address` how it went.
const PROBE: &str = r#"
import socket, subprocess, sys, errno
def attempt(kind, address):
    if kind == "name":
        return socket.gethostbyname(address)
    if kind == "ping":
        done = subprocess.run(["sudo", "ping", "-c1", "-W3", address], stdout=subprocess.DEVNULL)
        return "open" if done.returncode == 0 else "closed"
    s = socket.socket(type=socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    s.settimeout(10)
    s.connect((address, 7777))
    s.send(b"hello")
    return "open" if s.recv(5) == b"hello" else "garbled"
for word in sys.argv[1:]:
    kind, address = word.split(":")
    try:
        outcome = attempt(kind, address)
    except socket.gaierror:
        outcome = "unknown"
    except socket.timeout:
        outcome = "silent"
    except OSError as error:
        outcome = "refused"
    print(word, outcome)
"#;

/// Echoes over TCP and UDP until it is ended.
const SERVER: &str = r#"
import socket, threading
u = socket.socket(type=socket.SOCK_DGRAM); u.bind(("", 7777))
def datagrams():
    while True:
        data, peer = u.recvfrom(99); u.sendto(data, peer)
threading.Thread(target=datagrams).start()
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind(("", 7777)); t.listen(9)
while True:
    s, _ = t.accept(); s.send(s.recv(99))
"#;

/// Speaks to the world over one connection for as long as that goes.
const TALKER: &str = r#"
import socket, time
s = socket.socket(); s.settimeout(20); s.connect(("192.0.2.2", 7777))
print("connected", flush=True)
try:
    while s.send(b"x") and s.recv(1): time.sleep(0.2)
except OSError as error:
    print("cut", flush=True)
"#;

/// Has the world echo, over TCP and UDP on whatever address, and answer for `world.example`.
fn populate_world() {
    for address in [LAN, METADATA] {
        ip(&format!("-n world address add {address}/32 dev w1"));
        ip(&format!("route add {address}/32 via {WORLD}"));
    }
    in_world(|| {
        let any = Ipv4Addr::UNSPECIFIED;
        let listener = TcpListener::bind((any, PORT)).expect("a port");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
        let socket = UdpSocket::bind((any, PORT)).expect("a port");
        serve_datagrams(socket, |datagram| datagram.to_vec());
        let socket = UdpSocket::bind((any, 53)).expect("a port");
        serve_datagrams(socket, answer);
    })
    .join()
    .expect("the world is populated");
}

pub(crate) fn echo(mut stream: std::net::TcpStream) {
    let mut buffer = [0; 99];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
}

pub(crate) fn serve_datagrams(
    socket: UdpSocket,
    reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) {
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&reply(&buffer[..length]), from).ok();
        }
    });
}

/// A name server that knows two names, of which one leads to a private network.
fn answer(question: &[u8]) -> Vec<u8> {
    let name_end = question[12..].iter().position(|byte| *byte == 0).expect("a name") + 13;
    let name = question[12..name_end].to_ascii_lowercase();
    let is_a = question[name_end..name_end + 2] == [0, 1];
    let address: Option<Ipv4Addr> = match () {
        () if !is_a => None,
        () if name == b"\x05world\x07example\0" => Some(WORLD),
        () if name == b"\x06rebind\x07example\0" => LAN.parse().ok(),
        () => None,
    };
    let count = u8::from(address.is_some());
    let mut reply = [&question[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
    reply.extend(&question[12..name_end + 4]);
    if let Some(address) = address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}

/// What is tried, and how it has to go.
type Expected<'a> = &'a [(&'a str, &'a str)];

#[track_caller]
fn check(daemon: &TestDaemon, user: &User, from: &str, when: &str, expected: Expected<'_>) {
    let mut args = vec!["exec", from, "--", "python3", "-c", PROBE];
    args.extend(expected.iter().map(|(tried, _)| *tried));
    let said = daemon.cli_as(user, &args).ok();
    let wanted: String =
        expected.iter().map(|(tried, outcome)| format!("{tried} {outcome}\n")).collect();
    assert_eq!(said, wanted, "{from}, {when}");
}

#[test]
fn siblings_meet_strangers_do_not_and_the_world_is_out_there_vm() {
    on_fresh_host(|| {
        populate_world();
        let mut daemon = TestDaemon::start_with("dns_upstreams: [192.0.2.2]\n");
        let bob = daemon.create_user("bob", 5);
        let admin = daemon.admin().clone();
        daemon.cli(&["create", "--name", "a", "--memory", "192"]).ok();
        daemon.cli(&["create", "--name", "b", "--memory", "192"]).ok();
        daemon.cli_as(&bob, &["create", "--name", "c", "--memory", "192"]).ok();
        for (user, name) in [(&admin, "a"), (&bob, "c")] {
            daemon.cli_as(user, &["exec", name, "--detach", "--", "python3", "-c", SERVER]).ok();
            let itself = ["exec", name, "--", "python3", "-c", PROBE, "tcp:127.0.0.1"];
            let listens = || daemon.cli_as(user, &itself).ok() == "tcp:127.0.0.1 open\n";
            wait_for("it listens", || listens().then_some(()));
        }
        let from_b: Expected<'_> = &[
            ("tcp:a", "open"),
            ("udp:10.0.1.2", "open"),
            ("ping:a.sb", "open"),
            ("name:a.sb", "10.0.1.2"),
            ("name:c", "unknown"),
            ("tcp:10.0.2.2", "refused"),
            ("udp:10.0.2.2", "refused"),
            ("ping:10.0.2.2", "closed"),
            ("tcp:world.example", "open"),
            ("udp:192.0.2.2", "open"),
            ("ping:192.0.2.2", "open"),
            ("tcp:192.168.7.1", "refused"),
            ("udp:192.168.7.1", "refused"),
            ("ping:192.168.7.1", "closed"),
            ("name:rebind.example", "unknown"),
            ("tcp:169.254.169.254", "refused"),
            ("ping:169.254.169.254", "closed"),
            ("tcp:192.0.2.1", "refused"),
            ("ping:192.0.2.1", "closed"),
            ("tcp:10.0.1.1", "refused"),
        ];
        check(&daemon, &admin, "b", "new", from_b);
        let from_c: Expected<'_> = &[
            ("name:a", "unknown"),
            ("tcp:10.0.1.2", "refused"),
            ("ping:10.0.1.2", "closed"),
            ("tcp:192.0.2.2", "open"),
        ];
        check(&daemon, &bob, "c", "new", from_c);
        daemon.cli(&["stop", "b"]).ok();
        check(&daemon, &admin, "a", "its sibling sleeps", &[("name:b.sb", "10.0.1.3")]);
        check(&daemon, &admin, "b", "woken", from_b);
        daemon.kill_9();
        daemon.run();
        check(&daemon, &admin, "b", "after a crash of the daemon", from_b);
        daemon.cli(&["edit", "a", "--name", "renamed"]).ok();
        check(&daemon, &admin, "b", "a renamed", &[("tcp:renamed", "open"), ("name:a", "unknown")]);
        let resolv = daemon.cli(&["exec", "b", "--", "cat", "/etc/resolv.conf"]).ok();
        assert_eq!(resolv, "nameserver 10.0.1.1\n");
        // The link is not the network: breaking eth0 from inside does not lock anybody out.
        daemon.cli(&["exec", "b", "--", "sudo", "ip", "link", "set", "eth0", "down"]).ok();
        assert_eq!(daemon.cli(&["exec", "b", "--", "echo", "still here"]).ok(), "still here\n");
        for name in ["renamed", "b"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.cli_as(&bob, &["destroy", "c", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

#[test]
fn a_policy_holds_through_everything_vm() {
    on_fresh_host(|| {
        populate_world();
        let mut daemon = TestDaemon::start_with("dns_upstreams: [192.0.2.2]\n");
        let admin = daemon.admin().clone();
        let refused = |args: &[&str], sentence: &str| {
            let said = daemon.cli(&[&["create", "--name", "x"], args].concat()).fails(1);
            assert!(said.contains(sentence), "{said}");
        };
        refused(&["--egress", "none"], "--egress must be public or deny");
        refused(&["--allow-host", "a.example"], "--allow-host needs --egress deny");
        refused(&["--egress=deny", "--allow-cidr=10.0.0.1/8"], "did you mean 10.0.0.0/8?");
        refused(&["--allow-cidr", METADATA], "is never reachable from a sandbox");

        let policy = ["--egress", "deny", "--allow-host", "*.example", "--allow-cidr", LAN];
        let create = ["create", "--name", "p", "--memory", "192"];
        daemon.cli(&[&create[..], &policy].concat()).ok();
        daemon.cli(&["create", "--name", "q", "--memory", "192", "--egress", "deny"]).ok();
        // By its name, and by its address only once the name was resolved.
        let before: Expected<'_> = &[
            ("tcp:192.0.2.2", "refused"),
            ("ping:192.0.2.2", "closed"),
            ("name:world.test", "unknown"),
        ];
        let after: Expected<'_> = &[
            ("tcp:world.example", "open"),
            ("udp:192.0.2.2", "open"),
            ("name:rebind.example", LAN),
            ("tcp:192.168.7.1", "open"),
            ("tcp:169.254.169.254", "refused"),
        ];
        check(&daemon, &admin, "p", "new", before);
        check(&daemon, &admin, "p", "new", after);
        let closed: Expected<'_> = &[
            ("tcp:192.0.2.2", "refused"),
            ("udp:192.0.2.2", "refused"),
            ("name:world.example", "unknown"),
            ("ping:p", "open"),
        ];
        check(&daemon, &admin, "q", "new", closed);
        let shown = daemon.cli(&["inspect", "q"]).ok();
        let lines = ["Egress:   deny", "Denied:   2 packets"];
        assert!(lines.iter().all(|line| shown.contains(line)), "{shown}");

        daemon.cli(&["snapshot", "create", "q", "--name", "base"]).ok();
        daemon.cli(&["stop", "p"]).ok();
        daemon.kill_9();
        daemon.run();
        check(&daemon, &admin, "p", "woken by another daemon", after);
        check(&daemon, &admin, "q", "under another daemon", closed);
        daemon.cli(&["snapshot", "resume", "base", "--name", "r"]).ok();
        check(&daemon, &admin, "r", "of a snapshot", closed);
        let open = ["snapshot", "resume", "base", "--name", "s", "--egress", "public"];
        daemon.cli(&open).ok();
        check(&daemon, &admin, "s", "told otherwise", &[("tcp:192.0.2.2", "open")]);

        // Changed under a connection that stands.
        daemon.cli(&["edit", "q", "--egress", "public"]).ok();
        let talker = format!("python3 -c '{TALKER}' > /tmp/talker 2>&1");
        daemon.cli(&["exec", "q", "--detach", "--", "sh", "-c", &talker]).ok();
        // Until its shell has run there is no such file: a detached command is answered before.
        let heard = || daemon.sh("q", "if [ -e /tmp/talker ]; then cat /tmp/talker; fi");
        let says = |wanted: &str| (heard() == wanted).then_some(());
        wait_for("it speaks", || says("connected\n"));
        daemon.cli(&["edit", "q", "--egress", "deny", "--allow-cidr", LAN]).ok();
        wait_for("it is cut", || says("connected\ncut\n"));
        check(
            &daemon,
            &admin,
            "q",
            "changed",
            &[("tcp:192.0.2.2", "refused"), ("tcp:192.168.7.1", "open")],
        );

        let told = wait_for("what was denied is told", || {
            let events = daemon.json(&["admin", "events", "--type", "egress.denied"]).to_string();
            let all = [r#""port":7777"#, r#""host":"world.test""#, r#""protocol":"tcp""#];
            all.iter().all(|part| events.contains(part)).then_some(events)
        });
        assert!(told.contains(r#""to":"192.0.2.2""#), "{told}");
    });
}
