//! Which way a program in a guest is reached: at the guest's own address if it listens there, else
//! by the link; and that neither leads to anybody else.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, in_namespace, ip as host_ip, on_fresh_host, wait_for};

use crate::files::curl;
use crate::proxy::{raw, serve, until};

/// Whom the program on that port sees.
#[track_caller]
fn peer(daemon: &TestDaemon, sandbox: &str, port: u16) -> String {
    let answer = curl(daemon, &format!("/sandboxes/{sandbox}/proxy/{port}/peer"), &[]);
    assert_eq!(answer.status, 200, "{answer:?}");
    String::from_utf8(answer.body).expect("text")
}

fn ip(daemon: &TestDaemon, sandbox: &str) -> String {
    daemon.json(&["inspect", sandbox])["ip"].as_str().expect("an address").to_owned()
}

fn gateway(daemon: &TestDaemon, sandbox: &str) -> String {
    let ip = ip(daemon, sandbox);
    format!("{}.1", ip.rsplit_once('.').expect("four numbers").0)
}

#[test]
fn a_program_is_reached_where_it_listens() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "0.0.0.0");
        serve(&daemon, "dev", 8100, "127.0.0.1");
        let gateway = gateway(&daemon, "dev");
        let both = |daemon: &TestDaemon, when: &str| {
            assert_eq!(peer(daemon, "dev", 8000), gateway, "{when}");
            assert_eq!(peer(daemon, "dev", 8100), "127.0.0.1", "{when}");
        };
        both(&daemon, "hot");
        daemon.cli(&["stop", "dev"]).ok();
        both(&daemon, "woken from cold");
        daemon.cli(&["edit", "dev", "--egress", "deny"]).ok();
        both(&daemon, "where it may not reach anything itself");
        daemon.cli(&["edit", "dev", "--name", "other"]).ok();
        daemon.cli(&["edit", "other", "--name", "dev"]).ok();
        both(&daemon, "renamed");
        daemon.terminate();
        daemon.run();
        both(&daemon, "with the next daemon");
        // It begins anew on another address.
        daemon.sh("dev", "pkill -f '[s]erver.py 8000'");
        serve(&daemon, "dev", 8000, "127.0.0.1");
        assert_eq!(peer(&daemon, "dev", 8000), "127.0.0.1");
        assert_eq!(daemon.json(&["inspect", "dev"])["egress_denied"].as_u64().unwrap_or(0), 0);
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

/// Somebody who has heard the first of the events of `dev`, and waits for the next.
fn visitor(daemon: &TestDaemon) -> TcpStream {
    let here = daemon.url().trim_start_matches("http://");
    let mut stream = raw(daemon, here, "/sandboxes/dev/proxy/8000/events", "");
    until(&mut stream, "data: one\n\n\r\n");
    stream
}

#[test]
fn an_answer_ends_with_its_sandbox_and_its_address_may_be_anothers() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        for end in [["stop", "dev", ""], ["destroy", "dev", "--yes"]] {
            serve(&daemon, "dev", 8000, "0.0.0.0");
            daemon.sh("dev", "rm -f /tmp/go");
            let mut stream = visitor(&daemon);
            let was = ip(&daemon, "dev");
            let args: Vec<&str> = end.into_iter().filter(|word| !word.is_empty()).collect();
            let started = Instant::now();
            daemon.cli(&args).ok();
            let mut rest = Vec::new();
            // A body in chunks that ends without the last one has broken off.
            drop(stream.read_to_end(&mut rest));
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
            assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
            if end[0] == "destroy" {
                daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
                assert_eq!(ip(&daemon, "dev"), was);
                assert_eq!(curl(&daemon, "/sandboxes/dev/proxy/8000/", &[]).status, 502);
                serve(&daemon, "dev", 8000, "0.0.0.0");
                wait_for("the new one to answer", || {
                    (curl(&daemon, "/sandboxes/dev/proxy/8000/", &[]).status == 200).then_some(())
                });
            } else {
                assert_eq!(peer(&daemon, "dev", 8000), gateway(&daemon, "dev"));
                daemon.sh("dev", "pkill -f '[s]erver.py 8000'");
            }
        }
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

/// The namespace of the only user who has one.
fn namespace() -> String {
    let list = host_ip("netns list");
    let ours = |line: &&str| !line.starts_with("world");
    let line = list.lines().find(ours).expect("somebody has a network");
    line.split(' ').next().expect("a name").to_owned()
}

/// How many TCP connections have been begun in a namespace.
fn begun(namespace: &str) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").expect("the kernel counts");
    let counts = in_namespace(namespace, read).join().expect("it is read");
    let mut tcp = counts.lines().filter(|line| line.starts_with("Tcp:"));
    let names = tcp.next().expect("a line of names").split(' ');
    let numbers = tcp.next().expect("a line of numbers").split(' ');
    let opened = names.zip(numbers).find(|(name, _)| *name == "ActiveOpens");
    opened.expect("it is counted").1.parse().expect("a number")
}

#[test]
fn a_guest_that_drops_what_its_network_brings_is_reached_by_the_link() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "0.0.0.0");
        let gateway = gateway(&daemon, "dev");
        assert_eq!(peer(&daemon, "dev", 8000), gateway);
        // Nothing is refused, and nothing comes back.
        daemon.sh("dev", &format!("sudo ip route add blackhole {gateway}/32"));
        let namespace = namespace();
        wait_for("a port that is known to be silent", || {
            let before = begun(&namespace);
            let by_link = || {
                let started = Instant::now();
                assert_eq!(peer(&daemon, "dev", 8000), "127.0.0.1");
                assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
            };
            by_link();
            let tried = begun(&namespace);
            by_link();
            by_link();
            // It is remembered for half a minute: on a machine that is slower than that, again.
            (tried == before + 1 && begun(&namespace) == tried).then_some(())
        });
        daemon.sh("dev", &format!("sudo ip route del blackhole {gateway}/32"));
        wait_for("it to be forgotten", || (peer(&daemon, "dev", 8000) == gateway).then_some(()));
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

#[test]
fn a_network_that_somebody_removed_costs_nobody_their_program() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "0.0.0.0");
        let mut stream = visitor(&daemon);
        host_ip(&format!("netns delete {}", namespace()));
        let answers = |when: &str| {
            let answer = curl(&daemon, "/sandboxes/dev/proxy/8000/peer", &[]);
            assert_eq!(answer.status, 200, "{when}: {answer:?}");
        };
        for _ in 0..20 {
            answers("its namespace has no name");
        }
        // Another machine needs it: it is made anew, and the first one's device is not in it.
        daemon.cli(&["create", "--name", "other", "--memory", "512"]).ok();
        answers("its network is another one");
        serve(&daemon, "other", 8000, "0.0.0.0");
        assert_eq!(peer(&daemon, "other", 8000), gateway(&daemon, "other"));
        answers("beside one that is reached");
        // What was open goes on or ends.
        daemon.sh("dev", "touch /tmp/go");
        drop(stream.read_to_end(&mut Vec::new()));
        // The next start has a device in the network that there is.
        daemon.cli(&["stop", "dev"]).ok();
        assert_eq!(peer(&daemon, "dev", 8000), gateway(&daemon, "dev"));
    });
}

#[test]
fn a_clone_at_its_sources_address_has_none_of_its_visitors() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "0.0.0.0");
        let mut stream = visitor(&daemon);
        // The clone's kernel holds this connection too, and its program waits to say more on it.
        daemon.cli(&["snapshot", "create", "dev", "--name", "base"]).ok();
        let was = ip(&daemon, "dev");
        daemon.cli(&["destroy", "dev", "--yes"]).ok();
        daemon.cli(&["snapshot", "resume", "base", "--name", "clone"]).ok();
        assert_eq!(ip(&daemon, "clone"), was);
        daemon.sh("clone", "touch /tmp/go");
        // Who comes now is the clone's visitor, and hears it whole.
        let here = daemon.url().trim_start_matches("http://");
        let mut own = raw(&daemon, here, "/sandboxes/clone/proxy/8000/events", "");
        until(&mut own, "data: two\n\n\r\n");
        assert_eq!(peer(&daemon, "clone", 8000), gateway(&daemon, "clone"));
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest));
        let rest = String::from_utf8_lossy(&rest);
        assert!(!rest.contains("two"), "{rest}");
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}
