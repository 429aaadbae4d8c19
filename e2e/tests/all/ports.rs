//! What listens in a sandbox, and in all that are awake.

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use serde_json::json;

use crate::files::curl;

/// Listens on a port until it is killed.
const LISTEN: &str = "use Socket; \
    socket(S, $ARGV[1] ? PF_INET6 : PF_INET, SOCK_STREAM, 0) or die; \
    setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1); \
    bind(S, $ARGV[1] ? pack_sockaddr_in6($ARGV[0], Socket::IN6ADDR_ANY) \
                     : pack_sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die; \
    listen(S, 1) or die; sleep 1000";

#[test]
fn what_listens_is_listed_and_nobody_is_woken_for_all() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        for name in ["dev", "cold"] {
            daemon.cli(&["create", "--name", name, "--memory", "192"]).ok();
        }
        assert_eq!(daemon.cli(&["ports", "dev"]).ok(), "No listening ports detected.\n");
        assert_eq!(daemon.json(&["ports", "dev"]), json!([]));
        for more in [&["3000"][..], &["8080", "6"]] {
            let command = ["exec", "dev", "--detach", "--", "perl", "-e", LISTEN];
            daemon.cli(&[&command, more].concat()).ok();
        }
        let url = daemon.url();
        let wanted = format!(
            "PORT     URL\n3000     {url}/sandboxes/dev/proxy/3000/\n\
             8080     {url}/sandboxes/dev/proxy/8080/\n"
        );
        wait_for("both listen", || (daemon.cli(&["ports", "dev"]).ok() == wanted).then_some(()));
        let port = |port: u16| {
            let proxy_url = format!("/sandboxes/dev/proxy/{port}/");
            json!({"container_port": port, "proxy_url": proxy_url})
        };
        assert_eq!(daemon.json(&["ports", "dev"]), json!([port(3000), port(8080)]));
        daemon.cli(&["stop", "cold"]).ok();
        let all = curl(&daemon, "/ports", &[]).json();
        let id = daemon.json(&["inspect", "dev"])["id"].as_str().expect("an id").to_owned();
        let found: Vec<_> = all
            .as_array()
            .expect("a list")
            .iter()
            .map(|p| (p["sandbox_id"].clone(), p["container_port"].clone(), p["proxy_url"].clone()))
            .collect();
        let of =
            |port: u16| (json!(id), json!(port), json!(format!("/sandboxes/{id}/proxy/{port}/")));
        assert_eq!(found, [of(3000), of(8080)]);
        assert_eq!(daemon.state("cold").as_deref(), Some("stopped"), "it was woken");
        daemon.cli(&["ports", "nobody"]).fails(1);
        daemon.cli(&["ports", "cold"]).ok();
        assert_eq!(daemon.state("cold").as_deref(), Some("hot"), "one that is named wakes");
    });
}

#[test]
fn looking_at_all_keeps_nobody_awake() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start_with("thermal:\n  warm_after: 2s\n  cold_after: never\n");
        daemon.cli(&["create", "--name", "dev", "--memory", "192"]).ok();
        wait_for("it falls asleep all the same", || {
            assert_eq!(curl(&daemon, "/ports", &[]).status, 200);
            (daemon.state("dev").as_deref() == Some("warm")).then_some(())
        });
        assert_eq!(curl(&daemon, "/ports", &[]).status, 200);
        assert_eq!(daemon.state("dev").as_deref(), Some("warm"), "it was woken");
    });
}
