//! What a policy allows and denies, packet by packet.

use std::net::Ipv4Addr;

use bhatti_types::NetPolicy;

use crate::host::{
    HOST, WORLD, gateway, guest, ip, is_silent, networks, on_fresh_host, policy, receive,
    world_socket,
};

/// A private network, and the cloud's metadata service, behind the same cable as the world.
fn make_lan() -> (Ipv4Addr, Ipv4Addr) {
    for address in ["192.168.7.1", "169.254.169.254"] {
        ip(&format!("-n world address add {address}/32 dev w1"));
        ip(&format!("route add {address}/32 via 192.0.2.2"));
    }
    (Ipv4Addr::new(192, 168, 7, 1), Ipv4Addr::new(169, 254, 169, 254))
}

#[test]
fn private_networks_are_denied_unless_they_are_named() {
    on_fresh_host(async || {
        let (lan, metadata) = make_lan();
        let (nets, _) = networks().await;
        let (world, port) = world_socket();
        let plain = guest(&nets, 1, NetPolicy::default()).await;
        let friend = guest(&nets, 1, policy("public", &[], &["192.168.7.0/24", "0.0.0.0/0"])).await;
        let closed = guest(&nets, 1, NetPolicy::closed()).await;
        let narrow = guest(&nets, 1, policy("deny", &[], &["192.0.2.2"])).await;

        for (who, to, arrives) in [
            (&plain, WORLD, true),
            (&plain, lan, false),
            (&plain, metadata, false),
            (&friend, WORLD, true),
            (&friend, lan, true),
            (&friend, metadata, false),
            (&closed, WORLD, false),
            (&closed, lan, false),
            (&narrow, WORLD, true),
            (&narrow, lan, false),
        ] {
            let text = format!("{} to {to}", who.address());
            who.send(to, port, &text);
            if arrives {
                assert_eq!(receive(&world).0, text);
            } else {
                assert_eq!(who.refused_with(), Some((3, 13)), "{text}");
                assert!(who.is_reset_by(to), "{text}");
            }
        }
        assert!(is_silent(&world));
        assert_eq!(nets.denied(1, closed.address()).await.unwrap(), 4, "two datagrams, two SYNs");
        assert_eq!(nets.denied(1, friend.address()).await.unwrap(), 2);
        assert!(closed.pings(plain.address()), "siblings are no egress");
        assert!(closed.pings(gateway(1)));
        // The host says no too, by whichever of its addresses it is asked.
        assert!(plain.is_reset_by(HOST));
        assert!(plain.is_reset_by(gateway(1)));
    });
}

#[test]
fn whoever_is_denied_often_is_told_every_time() {
    on_fresh_host(async || {
        let (lan, _) = make_lan();
        let (nets, _) = networks().await;
        let me = guest(&nets, 1, NetPolicy::default()).await;
        // The kernel's own limit would be six at once and one a second then.
        for port in 1..=30 {
            me.send(lan, port, "again");
            assert_eq!(me.refused_with(), Some((3, 13)), "port {port}");
        }
    });
}

#[test]
fn a_changed_policy_holds_for_connections_there_are() {
    on_fresh_host(async || {
        let (nets, _) = networks().await;
        let (world, port) = world_socket();
        let me = guest(&nets, 1, NetPolicy::default()).await;
        let other = guest(&nets, 1, NetPolicy::default()).await;
        let say = |text: &str| me.send(WORLD, port, text);
        say("open");
        let (_, from) = receive(&world);
        let edit = async |policy: NetPolicy| {
            nets.people.change(1, me.address(), |guest| guest.policy = policy);
            nets.apply(1).await.unwrap();
        };
        edit(NetPolicy::closed()).await;
        say("closed");
        world.send_to(b"to the closed", from).unwrap();
        me.fence(gateway(1));
        assert!(is_silent(&world) && !me.saw("to the closed"));
        other.send(WORLD, port, "somebody else");
        assert_eq!(receive(&world).0, "somebody else");

        edit(policy("deny", &[], &["192.0.2.0/24", "198.51.100.0/24"])).await;
        say("named");
        assert_eq!(receive(&world).0, "named");
        edit(policy("deny", &[], &["198.51.100.0/24"])).await;
        say("no longer");
        me.fence(gateway(1));
        assert!(is_silent(&world));
        edit(NetPolicy::default()).await;
        say("open again");
        assert_eq!(receive(&world).0, "open again");
        assert_eq!(nets.denied(1, me.address()).await.unwrap(), 2, "kept through every change");

        // Who comes next at that address begins anew, with nothing of the one before.
        edit(policy("deny", &["x.example"], &["198.51.100.0/24"])).await;
        let address = me.address();
        drop(me);
        nets.people.remove(1, address);
        let next = guest(&nets, 1, NetPolicy::default()).await;
        assert_eq!(next.address(), address);
        next.send(WORLD, port, "the next");
        assert_eq!(receive(&world).0, "the next");
        assert_eq!(nets.denied(1, address).await.unwrap(), 0);
    });
}
