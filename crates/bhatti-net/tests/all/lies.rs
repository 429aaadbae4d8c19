//! A guest that lies to its siblings: about who it is, in every way a frame can say it. What does
//! not cross the bridge is shown by the fence sent after it; what would have crossed, by taking the
//! rules away.

use std::net::Ipv4Addr;

use crate::guest::{ARP, IPV4, IPV6, VLAN};
use crate::host::{disarm, gateway, guests, networks, on_fresh_host, wait_for};

/// What it says, the hardware address it is said as, the kind of frame, and what is in it.
type Lie = (&'static str, [u8; 6], [u8; 2], Vec<u8>);

#[test]
fn no_lie_crosses_the_bridge() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let guests = guests(&nets, 1, 3).await;
        let [liar, victim, third] = guests.as_slice() else { unreachable!("three") };
        let gateway = gateway(1);
        let all = [0xff; 6];
        let (own, to) = (liar.mac(), victim.mac());
        let datagram = |from: Ipv4Addr, text: &str| liar.datagram(from, victim.address(), 53, text);
        let arp = |mac: [u8; 6], address: Ipv4Addr, kind: u8| {
            let head = [0, 1, 8, 0, 6, 4, 0, kind];
            let rest = [&mac[..], &address.octets(), &to, &victim.address().octets()].concat();
            [&head[..], &rest, b"arp lie"].concat()
        };
        let fragment = liar.fragment(gateway, victim.address(), 53, "fragment lie");
        let mut tagged = vec![0, 7, 8, 0];
        tagged.extend(datagram(gateway, "tagged lie"));
        // Between link-local addresses, with nothing behind the header.
        let mut ipv6 = vec![0x60, 0, 0, 0, 0, 8, 59, 255];
        for last in [1, 2] {
            ipv6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        ipv6.extend(b"ipv6 lie");
        // An answer of the gateway's name server, a router advertisement, and so on.
        let lies: [Lie; 9] = [
            ("as the gateway lie", own, IPV4, datagram(gateway, "as the gateway lie")),
            ("as a sibling lie", own, IPV4, datagram(third.address(), "as a sibling lie")),
            ("as a stranger lie", own, IPV4, datagram([8, 8, 8, 8].into(), "as a stranger lie")),
            (
                "with its hardware lie",
                third.mac(),
                IPV4,
                datagram(liar.address(), "with its hardware lie"),
            ),
            ("fragment lie", own, IPV4, fragment),
            ("tagged lie", own, VLAN, tagged),
            ("ipv6 lie", own, IPV6, ipv6),
            ("arp lie", own, ARP, arp(own, gateway, 2)),
            ("arp lie", third.mac(), ARP, arp(third.mac(), third.address(), 1)),
        ];
        let tell = || {
            for (_, source, kind, payload) in &lies {
                for to in [to, all] {
                    liar.send_raw(to, *source, *kind, payload);
                }
            }
        };
        tell();
        assert!(liar.pings(victim.address()), "what is true crosses");
        victim.fence(third.address());
        for (text, ..) in &lies {
            assert!(!victim.saw(text) && !third.saw(text), "{text}");
        }
        // Nobody is led to the liar's device.
        assert!(victim.pings(third.address()) && third.pings(gateway));

        disarm(&prefix, 1);
        tell();
        // The kernel may keep a fragment until the rest comes.
        for (text, ..) in lies.iter().filter(|(text, ..)| *text != "fragment lie") {
            wait_for(text, || victim.saw(text));
        }
    });
}

/// What is addressed to the bridge itself (LLDP and the like) does not cross it, but a bridge learns
/// from it which device somebody is behind.
#[test]
fn no_lie_to_the_bridge_leads_a_siblings_frames_astray() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let guests = guests(&nets, 1, 3).await;
        let [liar, victim, third] = guests.as_slice() else { unreachable!("three") };
        assert!(third.pings(victim.address()));
        let datagram = |text: &str| third.datagram(third.address(), victim.address(), 53, text);
        let lie = || {
            for last in [0x00, 0x02, 0x03, 0x0e] {
                let own = liar.datagram(liar.address(), third.address(), 53, "lie");
                liar.send_raw([1, 0x80, 0xc2, 0, 0, last], victim.mac(), IPV4, &own);
            }
            assert!(liar.pings(third.address()));
        };
        lie();
        third.send_raw(victim.mac(), third.mac(), IPV4, &datagram("for the victim"));
        wait_for("it to reach the victim", || victim.saw("for the victim"));
        assert!(!liar.saw("for the victim"));

        crate::host::ip(&format!("-n {prefix}1 link set br0 type bridge no_linklocal_learn 0"));
        lie();
        third.send_raw(victim.mac(), third.mac(), IPV4, &datagram("led astray"));
        wait_for("it to be led astray, if it learns", || liar.saw("led astray"));
    });
}

#[test]
fn ipv6_is_off_in_a_namespace() {
    on_fresh_host(async || {
        let (nets, prefix) = networks().await;
        let _guest = guests(&nets, 1, 1).await;
        let addresses = crate::host::ip(&format!("-n {prefix}1 -6 address show"));
        assert_eq!(addresses, "", "not even a link-local one");
        assert_eq!(crate::host::ip(&format!("-n {prefix}1 -6 route show")), "");
    });
}
