//! Which way a program in a guest is reached: at the guest's own address if it listens there, else
//! by the link; and that neither leads to anybody else.

use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

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

#[test]
fn an_answer_ends_with_its_sandbox_and_its_address_may_be_anothers() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        for end in [["stop", "dev", ""], ["destroy", "dev", "--yes"]] {
            serve(&daemon, "dev", 8000, "0.0.0.0");
            daemon.sh("dev", "rm -f /tmp/go");
            let here = daemon.url().trim_start_matches("http://");
            let mut stream = raw(&daemon, here, "/sandboxes/dev/proxy/8000/events", "");
            until(&mut stream, "data: one\n\n\r\n");
            let was = ip(&daemon, "dev");
            let args: Vec<&str> = end.into_iter().filter(|word| !word.is_empty()).collect();
            let started = Instant::now();
            daemon.cli(&args).ok();
            let mut rest = Vec::new();
            // A body in chunks that ends without the last one has broken off.
            drop(std::io::Read::read_to_end(&mut stream, &mut rest));
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
