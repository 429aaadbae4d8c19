//! A guest that has as many connections as it can.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::net::TcpListener;

use bhatti_types::NetPolicy;

use crate::guest::Guest;
use crate::host::{WORLD, gateway, guest, inside, networks, on_fresh_host, receive, world_socket};

/// How many connections of a guest, and of a user, the kernel keeps in mind.
const OF_A_GUEST: usize = 4096;
const OF_A_USER: usize = 8192;
/// What was refused a moment ago may still be counted.
const ABOUT: usize = 64;

/// How many connections the kernel tracks on this host.
fn tracked() -> usize {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    count.trim().parse().unwrap()
}

/// However busy the machine is, what there is stays until the test ends.
fn keep_for_long() {
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "600").unwrap();
}

fn speak_to_many(guest: &Guest, how_many: usize) {
    guest.send_to_each(WORLD, (1000..).take(how_many));
}

#[test]
fn nobody_fills_the_hosts_table() {
    on_fresh_host(async || {
        keep_for_long();
        let (nets, prefix) = networks().await;
        let (world, port) = world_socket();
        // Two, since a guest speaks from one port: it has one connection with each.
        let listen = || inside("world", || TcpListener::bind((WORLD, 0)).unwrap());
        let listeners = [listen(), listen()];
        let doors = listeners.each_ref().map(|l| l.local_addr().unwrap().port());
        let greedy = guest(&nets, 1, NetPolicy::default()).await;
        inside(&format!("{prefix}1"), keep_for_long);
        greedy.send(WORLD, port, "first");
        let (_, first) = receive(&world);
        // However many packets there are, it is one.
        greedy.send_to_each(WORLD, std::iter::repeat_n(999, OF_A_GUEST + ABOUT));
        assert!(tracked() < ABOUT);
        assert!(greedy.pings(gateway(1)) && greedy.connects_to(WORLD, doors[0]));
        let sent = OF_A_GUEST + 400;
        speak_to_many(&greedy, sent);
        assert!((OF_A_GUEST - ABOUT..=OF_A_GUEST + ABOUT).contains(&tracked()), "{}", tracked());
        let refused = nets.denied(1, greedy.address()).await.unwrap();
        assert!((400 - 64..=400 + 64).contains(&refused), "{refused}");
        assert!(!greedy.connects_to(WORLD, doors[1]), "and it is told so");
        // What it has it keeps, in both directions.
        greedy.send(WORLD, port, "still here");
        assert_eq!(receive(&world), ("still here".to_owned(), first));

        // Another of theirs has room of its own, until all together are too many.
        let others = [
            guest(&nets, 1, NetPolicy::default()).await,
            guest(&nets, 1, NetPolicy::default()).await,
        ];
        assert!(others.iter().all(|other| other.connects_to(WORLD, doors[0])));
        for other in &others {
            speak_to_many(other, OF_A_GUEST - ABOUT);
        }
        assert!(tracked() <= OF_A_USER + ABOUT, "{}", tracked());
        assert!(!others[1].connects_to(WORLD, doors[1]), "the host says no");
        // Nobody else notices.
        assert!(guest(&nets, 2, NetPolicy::default()).await.connects_to(WORLD, doors[1]));
    });
}
