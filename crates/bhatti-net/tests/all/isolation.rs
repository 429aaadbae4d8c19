//! What a guest cannot reach. Each test ends by taking the rules away and showing that the very
//! same packet then arrives: so it was the rules that stopped it, and the test can fail.

use std::net::Ipv4Addr;

use crate::host::{
    HOST, WORLD, disarm, guests, inside, ip, is_silent, networks, on_fresh_host, receive, run,
    socket, touch, wait_for, world_socket,
};

fn table(prefix: &str) -> String {
    format!("delete table inet {}", prefix.trim_end_matches('-'))
}

#[test]
fn other_user_is_unreachable() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let mine = guests(&networks, 1, 1).await;
        let theirs = guests(&networks, 2, 2).await;
        let (me, victim) = (&mine[0], &theirs[0]);
        // An operator's mistake: the host and the world know a way to the other user's guests.
        let their_end = ip(&format!("-n {prefix}2 -4 -o address show dev up0"));
        let their_end: Ipv4Addr =
            their_end.split(&[' ', '/']).find_map(|word| word.parse().ok()).unwrap();
        ip(&format!("route add 10.0.2.0/24 via {their_end}"));

        me.send(victim.address(), 7, "from user 1");
        me.send(their_end, 7, "from user 1");
        assert!(me.gets_no_answer(their_end, WORLD));
        assert!(me.gets_no_answer(victim.address(), WORLD));
        inside("world", || {
            socket().0.send_to(b"from the world", (victim.address(), 7)).unwrap();
        });
        // What had arrived at the other user's bridge would be seen before this is answered.
        me.fence(WORLD);
        theirs[1].fence(victim.address());
        victim.fence(WORLD);
        assert!(!victim.saw("from user 1") && !victim.saw("from the world"));

        run("nft", &table(&prefix));
        disarm(&prefix, 1);
        disarm(&prefix, 2);
        me.send(victim.address(), 7, "from user 1");
        wait_for("the packet, without rules", || victim.saw("from user 1"));
    });
}

#[test]
fn the_host_alone_keeps_users_apart() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let mine = guests(&networks, 1, 1).await;
        let theirs = guests(&networks, 2, 1).await;
        let their_end = Ipv4Addr::new(100, 127, 0, 5);
        ip(&format!("route add 10.0.2.0/24 via {their_end}"));
        for user in [1, 2] {
            disarm(&prefix, user);
        }
        mine[0].send(theirs[0].address(), 7, "from user 1");
        // Without its namespace's translation neither is answered from outside; the gateway is.
        mine[0].fence([10, 0, 1, 1].into());
        theirs[0].fence([10, 0, 2, 1].into());
        assert!(!theirs[0].saw("from user 1"));

        run("nft", &table(&prefix));
        mine[0].send(theirs[0].address(), 7, "from user 1");
        wait_for("the packet, without rules", || theirs[0].saw("from user 1"));
    });
}

#[test]
fn host_and_metadata_are_unreachable() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        ip("-n world address add 169.254.169.254/32 dev w1");
        ip("route add 169.254.169.254/32 via 192.0.2.2");
        let guests = guests(&networks, 1, 1).await;
        let guest = &guests[0];
        let (host, port) = socket();
        let (world, world_port) = world_socket();
        let transit = Ipv4Addr::new(100, 127, 0, 2);

        for address in [HOST, transit] {
            guest.send(address, port, "to the host");
            assert!(guest.gets_no_answer(address, WORLD));
        }
        assert!(is_silent(&host));
        guest.send(metadata, world_port, "to the metadata service");
        assert!(guest.gets_no_answer(metadata, WORLD));
        assert!(is_silent(&world));

        // As a restarted nftables service does.
        run("nft", "flush ruleset");
        touch(&networks, 1).await;
        guest.send(HOST, port, "to the host");
        guest.fence(WORLD);
        assert!(is_silent(&host), "the rules are back");

        run("nft", &table(&prefix));
        guest.send(HOST, port, "to the host");
        assert_eq!(receive(&host).0, "to the host");
        guest.send(transit, port, "to the host");
        guest.send(metadata, world_port, "to the metadata service");
        guest.fence(WORLD);
        assert!(is_silent(&host) && is_silent(&world), "the namespace's own rules");

        disarm(&prefix, 1);
        guest.send(transit, port, "to the host");
        assert_eq!(receive(&host).0, "to the host");
        guest.send(metadata, world_port, "to the metadata service");
        assert_eq!(receive(&world).0, "to the metadata service");
    });
}

/// A container's published port: the host sends on what was meant for itself.
#[test]
fn what_the_host_translates_is_unreachable() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        ip("-n world address add 192.168.7.1/32 dev w1");
        ip("route add 192.168.7.1/32 via 192.0.2.2");
        let (container, port) = world_socket();
        run("nft", "add table ip docker");
        run("nft", "add chain ip docker pre { type nat hook prerouting priority dstnat ; }");
        let to = format!("192.168.7.1:{port}");
        run("nft", &format!("add rule ip docker pre ip daddr {HOST} udp dport 8080 dnat to {to}"));
        let guests = guests(&networks, 1, 1).await;
        let guest = &guests[0];
        guest.send(HOST, 8080, "to a container");
        assert_eq!(guest.refused_with(), Some((3, 13)), "and it is told so");
        assert!(is_silent(&container));

        run("nft", &table(&prefix));
        guest.send(HOST, 8080, "to a container");
        assert_eq!(receive(&container).0, "to a container");
    });
}

#[test]
fn false_source_goes_nowhere() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let guests = guests(&networks, 1, 1).await;
        let guest = &guests[0];
        let (world, port) = world_socket();
        let gateway = Ipv4Addr::new(10, 0, 1, 1);
        let spoof = || {
            for from in [[10, 0, 2, 2], [192, 0, 2, 9], [8, 8, 8, 8], [10, 0, 1, 255]] {
                guest.send_as(from.into(), WORLD, port, "false");
            }
        };
        spoof();
        guest.send(WORLD, port, "true");
        assert_eq!(receive(&world).0, "true");
        guest.fence(WORLD);
        assert!(is_silent(&world));

        // A namespace without rules: the host still checks where a packet can come from.
        disarm(&prefix, 1);
        spoof();
        guest.fence(gateway);
        assert!(is_silent(&world));

        run("nft", &table(&prefix));
        spoof();
        assert_eq!(receive(&world).0, "false");
    });
}
