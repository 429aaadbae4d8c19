//! What a guest can reach.

use bhatti_types::EngineId;

use crate::host::{HOST, WORLD, guests, networks, on_fresh_host, receive, world_socket};

#[test]
fn siblings_and_world() {
    on_fresh_host(async || {
        let (networks, _) = networks().await;
        let guests = guests(&networks, 1, 2).await;
        let [a, b] = guests.as_slice() else { unreachable!("two were asked for") };
        assert_eq!([a.address().octets()[3], b.address().octets()[3]], [2, 3]);
        assert!(a.pings(b.address()) && b.pings(a.address()));
        assert!(a.pings([10, 0, 1, 1].into()), "the gateway");
        assert!(a.pings(WORLD));

        let (world, port) = world_socket();
        b.send(WORLD, port, "hello");
        let (text, from) = receive(&world);
        assert_eq!((text.as_str(), from.ip()), ("hello", HOST.into()), "addresses are translated");

        // And back along the same path.
        world.send_to(b"welcome", from).expect("the world can answer");
        crate::host::wait_for("the answer", || b.saw("welcome"));
        assert!(!a.saw("welcome"));
    });
}

#[test]
fn concurrent_callers_share_one_network() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let asked: Vec<_> = (0..8u32)
            .map(|n| {
                let networks = networks.clone();
                tokio::spawn(async move { networks.open_tap(1 + n % 2, &EngineId::random()).await })
            })
            .collect();
        for answer in asked {
            answer.await.expect("no panic").expect("a TAP");
        }
        let namespaces = crate::host::ip("netns list");
        let ours = namespaces.lines().filter(|line| line.starts_with(&prefix)).count();
        assert_eq!(ours, 2, "{namespaces}");
        assert!(guests(&networks, 1, 1).await[0].pings(WORLD));
        assert!(guests(&networks, 2, 1).await[0].pings(WORLD));
    });
}
