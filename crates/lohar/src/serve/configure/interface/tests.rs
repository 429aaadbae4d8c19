//! Settings as a host may send them.

use super::*;

fn network(address: &str, prefix_len: u32, gateway: &str, mac: &str) -> Network {
    Network {
        address: address.into(),
        prefix_len,
        gateway: gateway.into(),
        nameservers: vec!["10.0.0.1".into(), "fd00::1".into()],
        mac: mac.into(),
    }
}

#[test]
fn sound_settings_are_taken() {
    let parsed =
        Address::parse(&network("10.64.3.7", 24, "10.64.3.1", "02:aB:00:00:00:01")).unwrap();
    assert_eq!(parsed.mac, Some([2, 0xab, 0, 0, 0, 1]));
    assert_eq!(parsed.netmask(), Ipv4Addr::new(255, 255, 255, 0));
    assert!(
        parsed.contains(Ipv4Addr::new(10, 64, 3, 255))
            && !parsed.contains(Ipv4Addr::new(10, 64, 4, 7))
    );
    assert_eq!(parsed.nameservers.len(), 2);
    let bare = Address::parse(&network("10.64.3.7", 32, "", "")).unwrap();
    assert_eq!((bare.gateway, bare.mac, bare.netmask()), (None, None, Ipv4Addr::BROADCAST));
}

#[test]
fn nonsense_is_refused_by_name() {
    let check = |network: &Network, expected: &str| {
        assert_eq!(Address::parse(network).unwrap_err().to_string(), expected);
    };
    check(&network("10.0.0", 24, "", ""), "address \"10.0.0\" is not an address");
    check(&network("", 24, "", ""), "address \"\" is not an address");
    check(&network("10.0.0.1", 24, "gw", ""), "gateway \"gw\" is not an address");
    check(&network("10.0.0.1", 0, "", ""), "prefix length 0 is not between 1 and 32");
    check(&network("10.0.0.1", 33, "", ""), "prefix length 33 is not between 1 and 32");
    for mac in [
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "2:0:0:0:0:1",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
        "+2:00:00:00:00:01",
    ] {
        check(
            &network("10.0.0.1", 24, "", mac),
            &format!("{mac:?} is not the MAC of one interface"),
        );
    }
    let mut many = network("10.0.0.1", 24, "", "");
    many.nameservers = vec!["10.0.0.1".into(); 9];
    check(&many, "more than 8 name servers");
}

#[test]
fn old_socket_addresses_have_the_kernels_layout() {
    let address = internet(Ipv4Addr::new(10, 1, 2, 3));
    assert_eq!(address.sa_family, libc::AF_INET as u16);
    assert_eq!(address.sa_data.map(|byte| byte as u8)[..8], [0, 0, 10, 1, 2, 3, 0, 0]);
}

#[test]
fn a_name_too_long_for_the_kernel_is_an_error() {
    assert!(up("an-interface-with-a-long-name").is_err());
}

#[test]
fn labels_are_told_from_other_interfaces() {
    let text = |text: &str| {
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(text.bytes()) {
            *to = from as c_char;
        }
        name
    };
    let device = text("eth0");
    for (label, is_ours) in
        [("eth0", true), ("eth0:1", true), ("eth01", false), ("eth", false), ("lo", false)]
    {
        assert_eq!(is_label_of(&text(label), &device), is_ours, "{label}");
    }
}

/// In a network namespace of its own, which needs root.
#[test]
fn no_address_stays_whatever_its_label() {
    let looking = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may do this");
        let device = Interface::open("lo").unwrap();
        device.set_up(Up::Yes).unwrap();
        for (label, address) in [("lo:1", [10, 1, 1, 1]), ("lo:b", [10, 2, 2, 2])] {
            Interface::open(label).unwrap().set_address(address.into()).unwrap();
        }
        let second = Interface::open("lo:b").unwrap().address().unwrap();
        assert_eq!(second, Ipv4Addr::new(10, 2, 2, 2));
        device.set_up(Up::No).unwrap();
        assert!(device.labels().unwrap()[0].is_some(), "down is not enough");
        device.remove_addresses().unwrap();
        assert!(device.labels().unwrap()[0].is_none());
        assert!(Interface::open("lo:b").unwrap().address().is_err());
    });
    looking.join().unwrap();
}

fn ip(args: &str) -> String {
    let run = std::process::Command::new("ip").args(args.split(' ')).output().expect("iproute2");
    assert!(run.status.success(), "ip {args}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// In a network namespace of its own, which needs root.
#[test]
fn another_identity_leaves_nothing_of_the_former_one() {
    let looking = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may do this");
        ip("link add d0 type veth peer name d1");
        ip("link set d1 up");
        let become_ = |network: Network| {
            let address = Address::parse(&network).unwrap();
            assert_eq!(address.apply(Some("d0")).unwrap(), "d0");
            assert!(address.is_applied(Some("d0")));
        };
        become_(network("192.0.2.2", 24, "192.0.2.1", "02:00:00:00:00:01"));
        ip("route add 198.51.100.0/24 via 192.0.2.1");
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev d0");
        assert_eq!(ip("-6 addr show dev d0"), "", "no network carries it");
        for (address, gateway, mac, extra) in [
            ("10.0.1.2", "10.0.1.1", "02:00:00:00:00:02", None),
            ("10.0.1.3", "10.0.1.1", "02:00:00:00:00:03", Some("10.0.1.77/24")),
            ("10.9.1.3", "10.9.1.1", "02:00:00:00:00:04", Some("172.16.0.1/30")),
            ("10.0.1.2", "10.0.1.1", "02:00:00:00:00:02", None),
            ("10.0.1.2", "10.0.1.9", "02:00:00:00:00:05", None),
        ] {
            become_(network(address, 24, gateway, mac));
            assert_eq!(
                ip("-o -4 addr show dev d0").split_whitespace().nth(3),
                Some(&*format!("{address}/24"))
            );
            assert_eq!(ip("-o addr show dev d0").lines().count(), 1, "and no other");
            assert!(ip("link show d0").contains(mac));
            let route = format!("default via {gateway} dev d0");
            let routes = ip("route show");
            assert!(routes.contains(&route) && routes.lines().count() == 2, "{routes}");
            assert_eq!(ip("neigh show dev d0"), "");
            if let Some(extra) = extra {
                ip(&format!("addr add {extra} dev d0"));
            }
        }
    });
    looking.join().unwrap();
}
