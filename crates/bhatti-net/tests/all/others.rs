//! What is on the host besides us, or is not.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use bhatti_net::{Closed, NetConfig, Networks};
use nix::mount::{MsFlags, mount};

use crate::host::{
    WORLD, guests, ip, networks, on_fresh_host, receive, run, socket, wait_for, world_socket,
};

/// What is logged by this thread until the guard goes.
fn listen() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    (log.0, tracing::subscriber::set_default(subscriber.finish()))
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn text(log: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(log.lock().unwrap().clone()).unwrap()
}

#[test]
fn a_host_without_nftables_says_what_to_install() {
    on_fresh_host(async || {
        let sbin = "/usr/sbin";
        assert!(Path::new("/usr/sbin/nft").exists() && Path::new("/usr/bin/ip").exists());
        mount(Some("none"), sbin, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let people = Arc::<crate::host::People>::default();
        let Err(error) = Networks::open(NetConfig::default(), people).await else {
            panic!("it does without nft")
        };
        assert_eq!(error.to_string(), "nft is not installed: install the package nftables");
        let routes = ip("-4 route show type unreachable");
        assert_eq!(routes, "", "and nothing was begun");
    });
}

#[test]
fn a_firewall_managers_rules_are_left_alone_and_spoken_of() {
    on_fresh_host(async || {
        for line in [
            "add table inet firewalld",
            "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy drop ; }",
            "add rule inet firewalld filter_FORWARD ct state established,related accept",
            "add rule inet firewalld filter_FORWARD ip daddr 192.0.2.0/24 accept",
            "add table ip bht",
            "add chain ip bht post { type nat hook postrouting priority srcnat ; }",
        ] {
            run("nft", line);
        }
        let theirs = || run("nft", "list ruleset");
        let before = theirs();
        let (log, guard) = listen();
        let (nets, _) = networks().await;
        let said = text(&log);
        assert!(
            said.contains("inet firewalld filter_FORWARD") && said.contains("drops forwarded"),
            "{said}"
        );
        drop(guard);
        let mine = guests(&nets, 1, 1).await;
        assert!(mine[0].pings(WORLD), "as far as they let it through");
        drop(mine);
        assert!(nets.sweep(&[]).await.unwrap().len() == 1);
        assert_eq!(nets.close().await.unwrap(), Closed::Everything);
        assert_eq!(theirs(), before);
    });
}

#[test]
fn a_transit_range_in_use_is_spoken_of() {
    on_fresh_host(async || {
        ip("link add other type bridge");
        ip("address add 100.127.200.1/24 dev other");
        let (log, guard) = listen();
        let (nets, _) = networks().await;
        let said = text(&log);
        drop(guard);
        for part in ["took another transit range", "100.126.0.0/16", "in_use_by"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(guests(&nets, 1, 1).await[0].pings(WORLD));
    });
}

/// The host's own network is what a user's guests have, down to the addresses: they never meet.
#[test]
fn a_host_in_the_guests_range_goes_on() {
    on_fresh_host(async || {
        ip("address add 10.0.1.1/24 dev w0");
        ip("-n world address add 10.0.1.2/24 dev w1");
        let (neighbour, port) = world_socket();
        let (host, _) = socket();
        let (nets, _) = networks().await;
        let guests = guests(&nets, 1, 2).await;
        assert_eq!(guests[0].address(), std::net::Ipv4Addr::new(10, 0, 1, 2));
        assert!(guests[0].pings(WORLD) && guests[0].pings(guests[1].address()));
        host.send_to(b"to a neighbour", ("10.0.1.2", port)).unwrap();
        assert_eq!(receive(&neighbour).0, "to a neighbour");
        guests[1].send(guests[0].address(), port, "to a sibling");
        wait_for("it to reach the sibling", || guests[0].saw("to a sibling"));
        assert!(!guests[0].saw("to a neighbour") && crate::host::is_silent(&neighbour));
    });
}
