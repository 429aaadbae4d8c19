//! Who reaches whom: two users with two sandboxes each, an internet host, a private network and a
//! metadata service, by TCP, UDP, ping and IPv6; and the same again after everything that might
//! forget a rule.
//!
//! The host is as open as it can be: it routes IPv6, and an operator's mistake has taught it and the
//! world ways to the guests. The guests have root who turn IPv6 on, and addresses of one range. So
//! what does not arrive was stopped by bhatti. The last look, without the bridge's rules, shows that
//! the same probe finds IPv6 where it crosses.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use bhatti_testkit::{TestDaemon, User, in_namespace, ip, on_fresh_host, wait_for};
use serde_json::Value;

use crate::network::{LAN, METADATA, PORT, echo, serve_datagrams};

/// Runs in the guests; says what the letters of a cell are.
const GUEST: &str = include_str!("../network_guest.py");
/// How long somebody outside waits for an answer that must not come.
const PATIENCE: Duration = Duration::from_secs(2);

/// By default. Each cell: TCP, UDP and ping; behind the slash the IPv6 addresses of the target.
const OPEN: &str = "
from  a1       a2       b1       b2       gateway uplink host    hostlan internet lan   metadata link
a1    ooo/ooo  ooo/---  rrr/---  rrr/---  rro/-   rrr/   rrr/-   rrr/    ooo/-    rrr/- rrr/-    /--
a2    ooo/---  ooo/ooo  rrr/---  rrr/---  rro/-   rrr/   rrr/-   rrr/    ooo/-    rrr/- rrr/-    /--
b1    rrr/---  rrr/---  ooo/ooo  ooo/---  rro/-   rrr/   rrr/-   rrr/    ooo/-    rrr/- rrr/-    /--
b2    rrr/---  rrr/---  ooo/---  ooo/ooo  rro/-   rrr/   rrr/-   rrr/    ooo/-    rrr/- rrr/-    /--
";

/// Under [`POLICIES`]. What a range opens in the user's namespace, the host still closes: b1 is told
/// by the host that it is the host, and nothing when it asks for other users.
const RULED: &str = "
from  a1       a2       b1       b2       gateway uplink host    hostlan internet lan   metadata link
a1    ooo/ooo  ooo/---  rrr/---  rrr/---  rro/-   rrr/   rrr/-   rrr/    rrr/-    ooo/- rrr/-    /--
a2    ooo/---  ooo/ooo  rrr/---  rrr/---  rro/-   rrr/   rrr/-   rrr/    ooo/-    rrr/- rrr/-    /--
b1    ---/---  ---/---  ooo/ooo  ooo/---  rro/-   ---/   rrr/-   rrr/    ooo/-    rrr/- rrr/-    /--
b2    rrr/---  rrr/---  ooo/---  ooo/ooo  rro/-   rrr/   rrr/-   rrr/    rrr/-    rrr/- rrr/-    /--
";

const POLICIES: [(&str, &[&str]); 3] = [
    ("a1", &["--egress", "deny", "--allow-cidr", "192.168.7.0/24"]),
    ("b1", &["--egress", "public", "--allow-cidr", "10.0.0.0/8", "--allow-cidr", "100.64.0.0/10"]),
    ("b2", &["--egress", "deny"]),
];

/// Where the address of a guest ends, and whose it is.
const GUESTS: [(&str, u8); 4] = [("a1", 0x11), ("a2", 0x12), ("b1", 0x21), ("b2", 0x22)];
/// Link-local, unique local, global.
const RANGES: [&str; 3] = ["fe80::", "fd00:7::", "2001:db8:7::"];
/// Of the gateway's hardware address, as it would be made.
const GATEWAY_LOCAL: &str = "fe80::400:ff:fe00:1";

fn own_ipv6(number: u8) -> [String; 3] {
    RANGES.map(|range| format!("{range}{number:x}"))
}

/// The daemon on its host, the users and who has which sandbox.
struct Scene {
    daemon: TestDaemon,
    bob: User,
}

impl Scene {
    fn owner(&self, guest: &str) -> User {
        if guest.starts_with('a') { self.daemon.admin().clone() } else { self.bob.clone() }
    }

    #[track_caller]
    fn run(&self, guest: &str, args: &[&str]) -> String {
        self.daemon.cli_as(&self.owner(guest), args).ok()
    }

    /// A shell script of root's.
    #[track_caller]
    fn root(&self, guest: &str, script: &str) -> String {
        self.run(guest, &["exec", guest, "--", "sudo", "sh", "-c", script])
    }

    fn inspect(&self, guest: &str) -> Value {
        let text = self.run(guest, &["--json", "inspect", guest]);
        serde_json::from_str(&text).expect("JSON")
    }

    fn address(&self, guest: &str) -> Ipv4Addr {
        let record = self.inspect(guest);
        record["ip"].as_str().and_then(|ip| ip.parse().ok()).expect("an address")
    }

    /// Does something to every guest at once; what it came to, by guest.
    fn all<T: Send>(&self, work: impl Fn(&str, u8) -> T + Sync) -> BTreeMap<&'static str, T> {
        let work = &work;
        std::thread::scope(|scope| {
            let threads =
                GUESTS.map(|(guest, number)| (guest, scope.spawn(move || work(guest, number))));
            let join =
                |(guest, thread): (_, std::thread::ScopedJoinHandle<'_, T>)| match thread.join() {
                    Ok(value) => (guest, value),
                    Err(panic) => std::panic::resume_unwind(panic),
                };
            threads.into_iter().map(join).collect()
        })
    }

    /// Wakes it, and gives it all the IPv6 that root can give; a wake takes it away.
    fn prepare(&self, guest: &str, number: u8) {
        let mut script = "set -e; c=/proc/sys/net/ipv6/conf/eth0; echo 1 >$c/addr_gen_mode
            echo 0 >$c/disable_ipv6\n"
            .to_owned();
        for address in own_ipv6(number) {
            script += &format!("ip address replace {address}/64 dev eth0 nodad\n");
        }
        script += &format!(
            "ip neigh replace {GATEWAY_LOCAL} lladdr 06:00:00:00:00:01 nud permanent dev eth0
             ip -6 route replace default via {GATEWAY_LOCAL} dev eth0"
        );
        self.root(guest, &script);
    }

    /// What a guest of `user` asks for, column by column.
    fn targets(&self, guest: &str, addresses: &BTreeMap<&str, Ipv4Addr>) -> Vec<String> {
        let mut targets: Vec<String> = GUESTS
            .iter()
            .map(|(name, number)| {
                let [local, ula, global] = own_ipv6(*number);
                format!("{name}={},{local}%eth0,{ula},{global}", addresses[name])
            })
            .collect();
        let (own, other) = if guest.starts_with('a') { ("a1", "b1") } else { ("b1", "a1") };
        let gateway = gateway(addresses[own]);
        targets.push(format!("gateway={gateway},{GATEWAY_LOCAL}%eth0"));
        targets.push(format!("uplink={}", uplink(addresses[other])));
        for target in [
            "host=192.0.2.1,2001:db8::1",
            "hostlan=192.168.7.254",
            "internet=192.0.2.2,2001:db8::2",
            "lan=192.168.7.1,fd00:9::1",
            "metadata=169.254.169.254,fd00:ec2::254",
            "link=ff02::1%eth0,ff02::2%eth0",
        ] {
            targets.push(target.to_owned());
        }
        targets
    }

    /// Looks at the whole matrix; with one clear table if a cell is not as it has to be.
    #[track_caller]
    fn check(&self, when: &str, wanted: &str) {
        let wanted = Table::parse(wanted);
        self.all(|guest, number| self.prepare(guest, number));
        let addresses = self.all(|guest, _| self.address(guest));
        mistaken_routes(&addresses);
        let outside = addresses.iter().flat_map(|(name, address)| {
            ["world", "lan", "host"].map(|from| (from, *name, ask_from(from, *address)))
        });
        let outside: Vec<_> = outside.collect();
        let rows = self.all(|guest, number| {
            let expected = wanted.row(guest).join(",");
            let me = own_ipv6(number).join(",");
            let targets = self.targets(guest, &addresses);
            let names: Vec<&str> = targets.iter().filter_map(|t| t.split('=').next()).collect();
            assert_eq!(names, wanted.columns, "the columns of the table");
            let mut args =
                vec!["exec", guest, "--", "sudo", "python3", "-IS", "/tmp/guest.py", "probe", &me];
            args.push(&expected);
            args.extend(targets.iter().map(String::as_str));
            self.run(guest, &args).split_whitespace().map(str::to_owned).collect()
        });
        let found = Table { columns: wanted.columns.clone(), rows };
        let wrong = found.differences(&wanted);
        assert!(wrong.is_empty(), "{when}:\n{found}\nwrong:\n{}", wrong.join("\n"));
        for (from, to, thread) in outside {
            let letters = thread.join().expect("it asks");
            assert_eq!(letters, "--", "{when}: from {from} to {to} by TCP and UDP");
        }
    }
}

/// Cells by guest and column.
struct Table {
    columns: Vec<String>,
    rows: BTreeMap<&'static str, Vec<String>>,
}

impl Table {
    fn parse(text: &str) -> Self {
        let words = |line: &str| line.split_whitespace().skip(1).map(str::to_owned).collect();
        let mut lines = text.trim().lines();
        let columns = words(lines.next().expect("a head"));
        let rows = GUESTS.iter().zip(lines).map(|((guest, _), line)| {
            assert!(line.starts_with(guest), "{line}");
            (*guest, words(line))
        });
        Self { columns, rows: rows.collect() }
    }

    fn row(&self, guest: &str) -> &[String] {
        &self.rows[guest]
    }

    /// A line for each cell that is not as in `wanted`.
    fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (guest, row) in &self.rows {
            for (column, (found, wanted)) in
                self.columns.iter().zip(row.iter().zip(wanted.row(guest)))
            {
                if found != wanted {
                    lines.push(format!("  {guest} to {column}: {found} and not {wanted}"));
                }
            }
        }
        lines
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:6}", "from")?;
        for column in &self.columns {
            write!(f, "{column:9}")?;
        }
        for (guest, row) in &self.rows {
            write!(f, "\n{guest:6}")?;
            for cell in row {
                write!(f, "{cell:9}")?;
            }
        }
        Ok(())
    }
}

/// Of the network that `guest` is in.
fn gateway(guest: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = guest.octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// The namespace that `guest` is behind, as the host names it.
fn namespace(guest: Ipv4Addr) -> String {
    let index = format!("-{}", u16::from_be_bytes([guest.octets()[1], guest.octets()[2]]));
    let list = ip("netns list");
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let name = names.into_iter().find(|name| name.ends_with(&index));
    name.unwrap_or_else(|| panic!("no namespace {index} in {list}")).to_owned()
}

/// The address towards the host of the namespace that `guest` is behind.
fn uplink(guest: Ipv4Addr) -> Ipv4Addr {
    let shown = ip(&format!("-n {} -4 -o address show dev up0", namespace(guest)));
    shown.split([' ', '/']).find_map(|word| word.parse().ok()).expect("an address")
}

/// A private network on a wire of the host's own, and a metadata service on another.
fn make_hosts() {
    for (name, host, address, range6) in
        [("lan", "192.168.7.254/24", LAN, "fd00:9::"), ("metadata", "", METADATA, "fd00:ec2::25")]
    {
        ip(&format!("netns add {name}"));
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"));
        if host.is_empty() {
            ip(&format!("address add 169.254.169.1/24 dev {name}"));
        } else {
            ip(&format!("address add {host} dev {name}"));
        }
        ip(&format!("address add {range6}f/64 dev {name} nodad"));
        ip(&format!("link set {name} up"));
        let last = if name == "lan" { "1" } else { "4" };
        for args in [
            "link set lo up".to_owned(),
            format!("address add {address}/24 dev eth0"),
            format!("address add {range6}{last}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            format!("-6 route add default via {range6}f"),
        ] {
            ip(&format!("-n {name} {args}"));
        }
    }
    ip("address add 2001:db8::1/64 dev w0 nodad");
    ip("-n world address add 2001:db8::2/64 dev w1 nodad");
    ip("-n world -6 route add default via 2001:db8::1");
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("the host routes IPv6");
    for name in ["world", "lan", "metadata"] {
        in_namespace(name, listen).join().expect("it listens");
    }
    listen();
}

/// Echoes by TCP and UDP, in both families.
fn listen() {
    let listener = TcpListener::bind(("::", PORT)).expect("a port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    serve_datagrams(UdpSocket::bind(("::", PORT)).expect("a port"), <[u8]>::to_vec);
}

/// Ways that nobody should have made: to guests and to the networks between.
fn mistaken_routes(addresses: &BTreeMap<&str, Ipv4Addr>) {
    for guest in ["a1", "b1"] {
        let [a, b, c, _] = addresses[guest].octets();
        let range = format!("{a}.{b}.{c}.0/24");
        ip(&format!("route replace {range} via {}", uplink(addresses[guest])));
        for (from, via) in [("world", "192.0.2.1"), ("lan", "192.168.7.254")] {
            ip(&format!("-n {from} route replace {range} via {via}"));
        }
    }
}

/// How it goes to connect, and to be answered a datagram, from a namespace beyond the guests'.
fn ask_from(from: &'static str, to: Ipv4Addr) -> std::thread::JoinHandle<String> {
    let to = SocketAddr::from((to, PORT));
    let work = move || {
        let tcp = if TcpStream::connect_timeout(&to, PATIENCE).is_ok() { "o" } else { "-" };
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.connect(to).and_then(|()| socket.send(b"hello")).ok();
        let udp = if socket.recv(&mut [0; 9]).is_ok() { "o" } else { "-" };
        format!("{tcp}{udp}")
    };
    if from == "host" { std::thread::spawn(work) } else { in_namespace(from, work) }
}

#[test]
fn who_reaches_whom_and_nothing_changes_it_vm() {
    on_fresh_host(|| {
        make_hosts();
        let thermal = "thermal:\n  warm_after: 2s\n  cold_after: never\n";
        let daemon = TestDaemon::start_with(thermal);
        let bob = daemon.create_user("bob", 5);
        let mut scene = Scene { daemon, bob };
        let program = scene.daemon.scratch_path().join("guest.py");
        std::fs::write(&program, GUEST).expect("a file");
        let program = program.as_str();
        for (guest, _) in GUESTS {
            scene.run(guest, &["create", "--name", guest, "--memory", "192", "--keep-hot"]);
            scene.run(guest, &["cp", program, &format!("{guest}:/tmp/guest.py")]);
            let serve =
                ["exec", guest, "--detach", "--", "sudo", "python3", "-IS", "/tmp/guest.py"];
            scene.run(guest, &[&serve[..], &["serve"]].concat());
        }
        scene.all(|guest, _| {
            let look = ["exec", guest, "--", "test", "-e", "/tmp/listens"];
            let listens = || scene.daemon.cli_as(&scene.owner(guest), &look).code == 0;
            wait_for("it listens", || listens().then_some(()));
        });
        scene.check("new", OPEN);

        scene.all(|guest, _| scene.run(guest, &["edit", guest, "--allow-cold"]));
        wait_for("all are warm", || {
            let states =
                scene.all(|guest, _| scene.inspect(guest)["last_transition"]["to"] == "warm");
            states.values().all(|warm| *warm).then_some(())
        });
        scene.all(|guest, _| scene.run(guest, &["edit", guest, "--keep-hot"]));
        scene.check("after a warm sleep", OPEN);

        scene.all(|guest, _| scene.run(guest, &["stop", guest]));
        scene.check("after a cold sleep", OPEN);

        scene.daemon.kill_9();
        scene.daemon.run();
        scene.check("after a crash of the daemon", OPEN);

        for guest in ["a2", "b2"] {
            resume_from_snapshot(&scene, guest);
        }
        scene.check("after the resume of a snapshot", OPEN);

        for (guest, policy) in POLICIES {
            scene.run(guest, &[&["edit", guest], policy].concat());
        }
        scene.check("under policies", RULED);

        scene.all(|guest, _| scene.run(guest, &["stop", guest]));
        scene.daemon.kill_9();
        scene.daemon.run();
        resume_from_snapshot(&scene, "b2");
        scene.check("under policies, after all that at once", RULED);

        for (guest, _) in POLICIES {
            scene.run(guest, &["edit", guest, "--egress", "public"]);
        }
        scene.check("the policies taken back", OPEN);
        no_ipv6_has_crossed(&scene);
    });
}

/// Puts a copy made from a snapshot in the place of `guest`.
fn resume_from_snapshot(scene: &Scene, guest: &str) {
    let snapshot = format!("of-{guest}");
    scene.run(guest, &["snapshot", "create", guest, "--name", &snapshot]);
    scene.run(guest, &["destroy", guest, "-y"]);
    scene.run(guest, &["snapshot", "resume", &snapshot, "--name", guest]);
    scene.run(guest, &["snapshot", "delete", &snapshot, "-y"]);
    scene.run(guest, &["edit", guest, "--keep-hot"]);
}

/// Nobody has seen a frame of it; and it would have been seen.
fn no_ipv6_has_crossed(scene: &Scene) {
    let seen = "cat /tmp/ipv6-seen 2>/dev/null || true";
    let heard = scene.all(|guest, _| scene.root(guest, seen));
    assert!(heard.values().all(String::is_empty), "frames of IPv6, as guests saw them: {heard:?}");

    let namespace = namespace(scene.address("a1"));
    let table = namespace.rsplit_once('-').expect("a number").0;
    let disarm = ["netns", "exec", &namespace, "nft", "delete", "table", "bridge", table];
    ip(&disarm.join(" "));
    let siblings = ["a1", "a2"].map(|guest| scene.address(guest));
    let addresses = BTreeMap::from([("a1", siblings[0]), ("a2", siblings[1])]);
    let [local, ula, global] = own_ipv6(0x12);
    let target = format!("a2={},{local}%eth0,{ula},{global}", addresses["a2"]);
    let me = own_ipv6(0x11).join(",");
    let probe =
        ["exec", "a1", "--", "sudo", "python3", "-IS", "/tmp/guest.py", "probe", &me, "ooo/ooo"];
    let found = scene.run("a1", &[&probe[..], &[target.as_str()]].concat());
    assert_eq!(found, "ooo/ooo\n", "without the bridge's rules");
    assert_ne!(scene.root("a2", seen), "", "and it is noted");
}
