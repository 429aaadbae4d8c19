//! Making, repairing, adopting and removing.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bhatti_net::{Closed, NetError, Released};
use bhatti_types::EngineId;

use crate::host::{
    DEADLINE, Nets, WORLD, gateway, guests, inside, ip, networks, on_fresh_host, run, socket,
    touch, wait_for,
};

/// Everything on the host that a network could change, except forwarding and what the kernel counts.
pub(crate) fn picture() -> String {
    let links = ip("-o -4 address show") + &ip("-br link") + &ip("netns list");
    links + &ip("route show table all") + &run("nft", "-s -t list ruleset")
}

#[test]
fn nothing_is_left() {
    on_fresh_host(async || {
        let before = picture();
        let (networks, _) = networks().await;
        let one = guests(&networks, 1, 2).await;
        let two = guests(&networks, 2, 1).await;
        assert!(one[0].pings(WORLD) && two[0].pings(WORLD));
        assert_eq!(networks.release_user(1).await.unwrap(), Released::InUse(2));
        assert!(one[0].pings(WORLD), "a refused release changes nothing");

        drop(one);
        assert_eq!(networks.release_user(1).await.unwrap(), Released::Removed);
        assert_eq!(networks.release_user(1).await.unwrap(), Released::Removed);
        assert_eq!(networks.close().await.unwrap(), Closed::InUse(vec![2]));
        assert!(two[0].pings(WORLD), "a refused close changes nothing");

        drop(two);
        assert_eq!(networks.release_user(2).await.unwrap(), Released::Removed);
        assert_eq!(networks.close().await.unwrap(), Closed::Everything);
        assert_eq!(picture(), before);
    });
}

/// The network namespaces that this process holds.
fn held() -> BTreeSet<u64> {
    let files = std::fs::read_dir("/proc/self/fd").expect("our own");
    let inode = |file: PathBuf| {
        let target = std::fs::read_link(file).ok()?.into_os_string().into_string().ok()?;
        target.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
    };
    files.filter_map(|file| inode(file.ok()?.path())).collect()
}

#[test]
fn what_was_prepared_is_like_what_is_made() {
    on_fresh_host(async || {
        let (former, prefix) = networks().await;
        let end = Instant::now() + DEADLINE;
        // Who comes too soon makes their own.
        let mut index = 0;
        let machine = loop {
            assert!(Instant::now() < end, "nothing that was prepared is ever used");
            index += 1;
            let held = held();
            let machine = guests(&former, index, 1).await;
            let made = std::fs::metadata(format!("/run/netns/{prefix}{index}")).unwrap().ino();
            if held.contains(&made) {
                break machine;
            }
        };
        let namespace = format!("{prefix}{index}");
        let bridge = ip(&format!("-n {namespace} -d link show br0"));
        assert!(bridge.contains("no_linklocal_learn 1"), "{bridge}");
        // Before it has said anything: what the rules learn from that they forget.
        let picture = || {
            let rules = || {
                let switches =
                    ["ipv4/ip_forward", "ipv4/icmp_ratemask", "ipv6/conf/default/disable_ipv6"];
                let read =
                    |switch| std::fs::read_to_string(format!("/proc/sys/net/{switch}")).unwrap();
                run("nft", "-s list ruleset") + &switches.map(read).concat()
            };
            ip(&format!("-n {namespace} -o -4 address")) + &inside(&namespace, rules)
        };
        let prepared = picture();
        let people = former.people.clone();
        drop(former);
        // The next daemon loads the rules of what there is.
        let nets = Nets::again(&prefix, people).await;
        nets.sweep(&[index]).await.unwrap();
        assert_eq!(prepared, picture());
        assert!(machine[0].pings(WORLD) && machine[0].pings(gateway(index)));
    });
}

#[test]
fn a_released_user_can_come_back() {
    on_fresh_host(async || {
        let (networks, _) = networks().await;
        for _ in 0..5 {
            assert!(guests(&networks, 1, 1).await[0].pings(WORLD));
            assert_eq!(networks.release_user(1).await.unwrap(), Released::Removed);
        }
    });
}

#[test]
fn a_tap_vanishes_with_its_descriptor() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let id = EngineId::random();
        let name = format!("t{}", &id.as_str()[..8]);
        let tap = networks.open_tap(1, &id).await.unwrap();
        let list = || ip(&format!("-n {prefix}1 -o link show master br0"));
        assert!(list().contains(&name) && list().contains("UP"), "{}", list());
        let flags =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", tap.as_raw_fd())).unwrap();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_ne!(flags & nix::libc::O_CLOEXEC, 0, "nobody inherits it by accident");

        let again = networks.open_tap(1, &id).await.unwrap_err();
        assert!(matches!(&again, NetError::TapBusy { tap } if *tap == name), "{again}");
        drop(tap);
        wait_for("the TAP to vanish", || list().is_empty());
        networks.open_tap(1, &id).await.unwrap();
    });
}

#[test]
fn sweep_removes_leftovers() {
    on_fresh_host(async || {
        ip("netns add bhatti-other");
        let former = Nets::open("bhatti-").await;
        let mut machines = Vec::new();
        for index in [1, 2, 3] {
            machines.extend(guests(&former, index, 1).await);
        }
        let people = former.people.clone();
        drop(former);
        // A link whose namespace somebody removed, and a file that never became a namespace.
        let stale = "/run/netns/bhatti-9";
        std::fs::write(stale, "").unwrap();

        let networks = Nets::again("bhatti-", people).await;
        assert_eq!(networks.sweep(&[2]).await.unwrap(), [1, 3, 9]);
        assert_eq!(networks.sweep(&[2]).await.unwrap(), [] as [u32; 0]);
        let left = ip("netns list");
        assert!(left.contains("bhatti-2") && left.contains("bhatti-other"), "{left}");
        assert_eq!(left.lines().count(), 3, "and the world: {left}");
        assert!(!Path::new(stale).exists());
        assert!(machines[1].pings(WORLD), "a kept machine does not notice");
        touch(&networks, 2).await;
        assert!(machines[1].pings(WORLD), "nor that its network was verified");
    });
}

/// An engine whose VMM opens its TAP by name makes it persist for that moment.
#[test]
fn sweep_removes_taps_that_nobody_holds() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let machine = guests(&networks, 1, 1).await;
        let [held, left] = [(), ()].map(|()| EngineId::random());
        let [held_tap, left_tap] = [&held, &left].map(|id| format!("t{}", &id.as_str()[..8]));
        let held = networks.open_tap(1, &held).await.unwrap();
        let left = networks.open_tap(1, &left).await.unwrap();
        for tap in [&held, &left] {
            const TUNSETPERSIST: u64 = 0x4004_54cb;
            // SAFETY: a system call on integers; the descriptor is open.
            assert_eq!(unsafe { nix::libc::ioctl(tap.as_raw_fd(), TUNSETPERSIST, 1) }, 0);
        }
        drop(left);
        let list = || ip(&format!("-n {prefix}1 -o link show master br0"));
        assert!(list().contains(&left_tap), "{}", list());
        // A process that another test starts has a copy for a moment.
        let end = std::time::Instant::now() + DEADLINE;
        while list().contains(&left_tap) {
            assert!(std::time::Instant::now() < end, "{}", list());
            assert!(networks.sweep(&[1]).await.unwrap().is_empty(), "the network is kept");
        }
        assert!(list().contains(&held_tap), "{}", list());
        assert!(machine[0].pings(WORLD), "a machine does not notice");
        drop(held);
    });
}

#[test]
fn twice_is_once() {
    on_fresh_host(async || {
        let former = Nets::open("bhatti-").await;
        let machine = guests(&former, 1, 1).await;
        assert!(machine[0].pings(WORLD));
        let all = || picture() + &ip("-n bhatti-1 -o address") + &ip("-n bhatti-1 route");
        let before = all();
        touch(&former, 1).await;
        let people = former.people.clone();
        drop(former);
        touch(&Nets::again("bhatti-", people).await, 1).await;
        wait_for("everything to be as before", || all() == before);
        assert!(machine[0].pings(WORLD));
    });
}

#[test]
fn half_built_is_repaired() {
    on_fresh_host(async || {
        let names = bhatti_net::plan::Names::new("bhatti-").unwrap();
        let veth = names.veth(1);
        let add = format!("link add {veth} type veth peer name up0 netns bhatti-1");
        let elsewhere = format!("link add {veth} type veth peer name up0 netns world");
        let damages: [&[&str]; 8] = [
            &[],
            &["netns add bhatti-1"],
            &["netns add bhatti-1", &add],
            &["netns add bhatti-1", &add, "-n bhatti-1 link add br0 type bridge"],
            &["netns add bhatti-1", &elsewhere],
            &["netns add bhatti-1", &elsewhere, "-n bhatti-1 link add up0 type bridge"],
            &["netns add bhatti-1", &add, "-n bhatti-1 address add 192.0.2.77/24 dev up0"],
            &[&elsewhere],
        ];
        for damage in damages {
            damage.iter().for_each(|args| drop(ip(args)));
            let networks = Nets::open("bhatti-").await;
            assert!(guests(&networks, 1, 1).await[0].pings(WORLD), "after {damage:?}");
            assert_eq!(networks.release_user(1).await.unwrap(), Released::Removed);
        }
        std::fs::write("/run/netns/bhatti-1", "").unwrap();
        let networks = Nets::open("bhatti-").await;
        assert!(guests(&networks, 1, 1).await[0].pings(WORLD), "after a stale file");

        // Behind the back of a running daemon.
        ip("netns delete bhatti-1");
        assert!(guests(&networks, 1, 1).await[0].pings(WORLD), "after a deleted namespace");
    });
}

#[test]
fn a_dropped_future_still_completes() {
    on_fresh_host(async || {
        let (networks, prefix) = networks().await;
        let id = EngineId::random();
        let mut asked = Box::pin(networks.open_tap(1, &id));
        let once = std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx))).await;
        assert!(once.is_pending());
        drop(asked);
        let route = || {
            let namespace = format!("/run/netns/{prefix}1");
            Path::new(&namespace).exists() && {
                // Entered by thread, not by `ip -n`: the file can exist before it is a namespace.
                let args = ["-n", &format!("{prefix}1"), "route"];
                let output = std::process::Command::new("ip").args(args).output().unwrap();
                String::from_utf8_lossy(&output.stdout).contains("default")
            }
        };
        wait_for("the network nobody waits for", route);
    });
}

/// The transit ranges of all daemons, in order.
fn claimed() -> Vec<String> {
    let routes = ip("-4 route show type unreachable");
    let mut ranges: Vec<_> =
        routes.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    ranges.sort_unstable();
    ranges.into_iter().map(str::to_owned).collect()
}

#[test]
fn two_daemons_take_different_ranges() {
    on_fresh_host(async || {
        ip("link add other type bridge");
        ip("address add 100.127.5.5/24 dev other");
        let one = Nets::open("one-").await;
        let two = Nets::open("two-").await;
        assert_eq!(claimed(), ["100.125.0.0/16", "100.126.0.0/16"]);
        let (a, b) = (guests(&one, 1, 1).await, guests(&two, 1, 1).await);
        assert!(a[0].pings(WORLD) && b[0].pings(WORLD));

        // The obstacle goes; the next start takes the configured range and moves the user to it.
        ip("link delete other");
        let people = one.people.clone();
        drop(one);
        let one = Nets::again("one-", people).await;
        assert_eq!(claimed(), ["100.125.0.0/16", "100.127.0.0/16"]);
        touch(&one, 1).await;
        assert!(a[0].pings(WORLD) && b[0].pings(WORLD));
        assert_eq!(two.sweep(&[]).await.unwrap(), [1]);
        assert_eq!(two.close().await.unwrap(), Closed::Everything);
        assert!(a[0].pings(WORLD), "what another daemon removes is its own");
    });
}

#[test]
fn forwarding_is_turned_on_where_it_was_off() {
    on_fresh_host(async || {
        let path = "/proc/sys/net/ipv4/ip_forward";
        // The sysctl is of the reader's namespace, so it has to be a thread of this host.
        // A new namespace begins with what the machine has.
        std::fs::write(path, "0").unwrap();
        let (networks, prefix) = networks().await;
        assert_eq!(std::fs::read_to_string(path).unwrap(), "1\n");
        touch(&networks, 1).await;
        let (forward, ipv6) = inside(&format!("{prefix}1"), || {
            let ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
            (std::fs::read_to_string(path).unwrap(), std::fs::read_to_string(ipv6).unwrap())
        });
        assert_eq!((forward.as_str(), ipv6.as_str()), ("1\n", "1\n"));
        drop(socket());
    });
}
