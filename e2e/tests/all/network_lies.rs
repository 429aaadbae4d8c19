//! A guest whose root lies to its siblings and to the world, with frames of its own making: false
//! addresses, ARP, fragments, answers in the name server's name, DHCP and router advertisements.
//!
//! What did not arrive was stopped, and not lost: what the liar says after it arrives, and without the
//! bridge's rules so do the lies. (`bhatti-net` has the same without machines, and more
//! of it: frames with a VLAN's tag, which QEMU's card keeps from who has no such VLAN.)

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, channel};

use bhatti_testkit::{TestDaemon, WORLD, deadline, in_world, ip, on_fresh_host, wait_for};

use crate::network::PORT;

/// Runs in the guests.
const GUEST: &str = include_str!("../network_liar.py");
/// What is said truly, after all lies.
const TRUE: &str = "what-is-true";
/// What the victim must not see.
const LIES: [&str; 12] = [
    "lie-as-the-gateway",
    "lie-as-the-sibling",
    "lie-as-a-stranger",
    "lie-with-its-mac",
    "lie-dns-answer",
    "lie-dhcp-offer",
    "lie-fragmented",
    "lie-arp-gateway",
    "lie-arp-sibling",
    "lie-arp-announced",
    "lie-arp-with-its-mac",
    "lie-router-advert",
];

/// The three guests of one user: who lies, to whom, and in whose name.
const GUESTS: [&str; 3] = ["liar", "victim", "third"];

/// What each has seen, from when it is told to watch.
fn watch(daemon: &TestDaemon, round: &str) {
    for guest in &GUESTS[1..] {
        let place = format!("/tmp/{round}");
        let watch = ["exec", guest, "--detach", "--", "sudo", "python3", "/tmp/guest.py", "watch"];
        daemon.cli(&[&watch[..], &[&place, TRUE], &LIES[..]].concat()).ok();
        wait_for("it watches", || {
            let exists = daemon.cli(&["exec", guest, "--", "test", "-e", &place]).code == 0;
            exists.then_some(())
        });
    }
}

fn seen(daemon: &TestDaemon, guest: &str, round: &str) -> BTreeSet<String> {
    daemon.sh(guest, &format!("cat /tmp/{round}")).lines().map(str::to_owned).collect()
}

/// What datagrams say that reach the world.
fn listen() -> Receiver<String> {
    let (say, heard) = channel();
    let socket = in_world(|| UdpSocket::bind((WORLD, PORT)).expect("a port")).join();
    let socket = socket.expect("the world is there");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok(length) = socket.recv(&mut buffer) {
            if say.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                break;
            }
        }
    });
    heard
}

#[test]
fn no_lie_of_a_guest_is_heard_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let program = daemon.scratch_path().join("guest.py");
        std::fs::write(&program, GUEST).expect("a file");
        for guest in GUESTS {
            daemon.cli(&["create", "--name", guest, "--memory", "192"]).ok();
            daemon.cli(&["cp", program.as_str(), &format!("{guest}:/tmp/guest.py")]).ok();
        }
        let world = listen();
        let facts = GUESTS.map(|guest| {
            let mac = daemon.sh(guest, "cat /sys/class/net/eth0/address");
            let address = daemon.json(&["inspect", guest])["ip"].as_str().map(str::to_owned);
            (mac.trim().to_owned(), address.expect("an address"))
        });
        let [(own, me), (victim, to), (third, sibling)] = &facts;
        let gateway = format!("{}.1", me.rsplit_once('.').expect("an address").0);
        let about = [
            ("own", own),
            ("victim", victim),
            ("third", third),
            ("me", me),
            ("to", to),
            ("sibling", sibling),
            ("gateway", &gateway),
            ("world", &WORLD.to_string()),
        ];
        let about = about.map(|(key, value)| format!("{key}={value}"));
        let lie = || {
            let mut args = vec!["exec", "liar", "--", "sudo", "python3", "/tmp/guest.py", "lie"];
            args.extend(about.iter().map(String::as_str));
            daemon.cli(&args).ok();
        };

        // Known before, so that there is something to overwrite.
        let reach =
            format!("ping -c1 -W20 {sibling} >/dev/null && ping -c1 -W20 {gateway} >/dev/null");
        daemon.sh("victim", &format!("sudo sh -c '{reach}'"));
        watch(&daemon, "with-rules");
        lie();
        for guest in &GUESTS[1..] {
            wait_for("what is true arrives", || {
                seen(&daemon, guest, "with-rules").contains(TRUE).then_some(())
            });
            let seen = seen(&daemon, guest, "with-rules");
            assert_eq!(seen, BTreeSet::from([TRUE.to_owned()]), "{guest}");
        }
        assert_eq!(world.recv_timeout(deadline()).as_deref(), Ok(TRUE), "and the world");
        // Of whom the victim takes the liar for, by its hardware address.
        let taken_for = || {
            let neighbours = daemon.sh("victim", "ip neigh show dev eth0");
            let wrong = |line: &&str| line.contains(own.as_str()) && !line.starts_with(me.as_str());
            neighbours.lines().filter(wrong).count()
        };
        assert_eq!(taken_for(), 0);
        daemon.sh("victim", &format!("sudo sh -c '{reach}'"));

        let namespaces = ip("netns list");
        let namespace = namespaces.split_whitespace().find(|name| name.ends_with("-1"));
        let namespace = namespace.expect("the admin's");
        let table = namespace.trim_end_matches("-1");
        ip(&format!("netns exec {namespace} nft delete table bridge {table}"));
        watch(&daemon, "without");
        lie();
        let all: BTreeSet<String> =
            LIES.iter().chain([&TRUE]).map(|word| (*word).to_owned()).collect();
        wait_for("what is true arrives", || {
            seen(&daemon, "victim", "without").contains(TRUE).then_some(())
        });
        assert_eq!(seen(&daemon, "victim", "without"), all, "without the bridge's rules");
        // Said once it may be put right at once, by what the true ones say.
        wait_for("somebody is taken in", || {
            (taken_for() > 0).then_some(()).or_else(|| {
                lie();
                None
            })
        });
        // A guest's address is as good as another's then; the host has none that is nobody's.
        let said = [(); 2].map(|()| world.recv_timeout(deadline()).expect("something"));
        assert_eq!(said, ["lie-to-the-world", TRUE], "in the sibling's name, and truly");
    });
}
