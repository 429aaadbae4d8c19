//! A host of one test's own, and a world beyond it.
//!
//! ```text
//!   the test's host ── w0 192.0.2.1/24 ═══ w1 192.0.2.2/24 ── namespace "world"
//! ```
//! The world's default route is the host, so that only address translation keeps untranslated
//! addresses out of what the world sees, not a missing route.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use bhatti_net::plan::Guest as Entry;
use bhatti_net::{Denied, Directory, NetConfig, Networks, Upstreams, guest_subnet, lowest_free};
use bhatti_types::{EngineId, NetPolicy};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::guest::Guest;

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `test` on a fresh host. Every thread of the runtime inherits it.
pub(crate) fn on_fresh_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        std::fs::create_dir("/run/netns").unwrap();
        for args in [
            "link set lo up",
            "netns add world",
            "link add w0 type veth peer name w1 netns world",
            "address add 192.0.2.1/24 dev w0",
            "link set w0 addrgenmode none up",
            "route add default via 192.0.2.2",
            "-n world link set lo up",
            "-n world address add 192.0.2.2/24 dev w1",
            "-n world link set w1 up",
            "-n world route add default via 192.0.2.1",
        ] {
            ip(args);
        }
        wait_for("the link to the world", || ip("-br link show w0").contains(" UP "));
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).enable_all().build().unwrap().block_on(test());
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a program, fails the test if it fails, gives what it printed.
pub(crate) fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split_whitespace()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(args: &str) -> String {
    run("ip", args)
}

/// Does `work` inside a namespace.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let entered = move || {
            let file = File::open(format!("/run/netns/{namespace}")).unwrap();
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(entered).join().expect("work inside a namespace")
    })
}

/// A UDP socket in the world, on all its addresses.
pub(crate) fn world_socket() -> (UdpSocket, u16) {
    inside("world", socket)
}

/// A UDP socket in the caller's namespace.
pub(crate) fn socket() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// The next datagram: its text and who sent it.
pub(crate) fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 256];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram arrives");
    (String::from_utf8_lossy(&buffer[..len]).into_owned(), from)
}

/// Whether nothing has arrived so far.
pub(crate) fn is_silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let silent = socket.recv_from(&mut [0; 256]).is_err();
    socket.set_nonblocking(false).unwrap();
    silent
}

pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::yield_now();
    }
}

fn config(prefix: &str) -> NetConfig {
    let upstreams = Upstreams::Fixed(vec![WORLD.into()]);
    NetConfig { prefix: prefix.to_owned(), upstreams, ..NetConfig::default() }
}

/// Networks under a prefix that the process has not used, in case tests ever share a host.
pub(crate) async fn networks() -> (Nets, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("bht{}-", NEXT.fetch_add(1, Ordering::Relaxed));
    (Nets::open(&prefix).await, prefix)
}

/// Networks, and who is in them.
#[derive(Clone)]
pub(crate) struct Nets {
    networks: Networks,
    pub(crate) people: Arc<People>,
}

impl std::ops::Deref for Nets {
    type Target = Networks;
    fn deref(&self) -> &Networks {
        &self.networks
    }
}

impl Nets {
    pub(crate) async fn open(prefix: &str) -> Self {
        Self::again(prefix, Arc::default()).await
    }

    /// As the next daemon would: it knows who there is, and nothing else.
    pub(crate) async fn again(prefix: &str, people: Arc<People>) -> Self {
        let networks = Networks::open(config(prefix), people.clone()).await.unwrap();
        Self { networks, people }
    }
}

/// Who there is, as the store would know.
#[derive(Default)]
pub(crate) struct People {
    guests: Mutex<BTreeMap<u32, BTreeMap<Ipv4Addr, Entry>>>,
    /// The next who asks waits here twice.
    pub(crate) gate: Mutex<Option<Arc<Barrier>>>,
    /// Who was denied what.
    pub(crate) denied: Mutex<Vec<(String, Denied)>>,
}

impl Directory for People {
    fn guests(
        &self,
        index: u32,
    ) -> Result<BTreeMap<Ipv4Addr, Entry>, Box<dyn std::error::Error + Send + Sync>> {
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            // Somebody asks; and goes on when they are let.
            gate.wait();
            gate.wait();
        }
        Ok(self.guests.lock().unwrap().get(&index).cloned().unwrap_or_default())
    }

    fn denied(&self, _: u32, guest: &Entry, what: &Denied) {
        self.denied.lock().unwrap().push((guest.name.clone(), what.clone()));
    }
}

impl People {
    /// Somebody new, called `g` and the end of the address.
    pub(crate) fn add(&self, index: u32, policy: NetPolicy) -> (EngineId, Ipv4Addr) {
        let mut people = self.guests.lock().unwrap();
        let guests = people.entry(index).or_default();
        let used: Vec<Ipv4Addr> = guests.keys().copied().collect();
        let (id, address) = (EngineId::random(), lowest_free(index, &used).unwrap());
        let name = format!("g{}", address.octets()[3]);
        guests.insert(address, Entry { name, id: id.clone(), policy });
        (id, address)
    }

    pub(crate) fn change(&self, index: u32, address: Ipv4Addr, how: impl FnOnce(&mut Entry)) {
        how(self.guests.lock().unwrap().get_mut(&index).unwrap().get_mut(&address).unwrap());
    }

    pub(crate) fn remove(&self, index: u32, address: Ipv4Addr) {
        self.guests.lock().unwrap().get_mut(&index).unwrap().remove(&address);
    }
}

/// Has the network of user `index` made or verified, as a machine of theirs would.
pub(crate) async fn touch(networks: &Nets, index: u32) {
    drop(networks.open_tap(index, &EngineId::random()).await.unwrap());
}

pub(crate) fn gateway(index: u32) -> Ipv4Addr {
    guest_subnet(index).unwrap().at(1)
}

/// `count` guests of user `index`.
pub(crate) async fn guests(nets: &Nets, index: u32, count: usize) -> Vec<Guest> {
    let mut guests = Vec::new();
    for _ in 0..count {
        guests.push(guest(nets, index, NetPolicy::default()).await);
    }
    guests
}

/// A guest of user `index` under `policy`.
pub(crate) async fn guest(nets: &Nets, index: u32, policy: NetPolicy) -> Guest {
    let (id, address) = nets.people.add(index, policy);
    let tap = nets.open_tap(index, &id).await.unwrap();
    Guest::new(tap, &bhatti_net::guest_mac(&id), address, gateway(index))
}

/// A policy, from what an owner would write.
pub(crate) fn policy(default: &str, hosts: &[&str], cidrs: &[&str]) -> NetPolicy {
    let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    NetPolicy::parse(default, &own(hosts), &own(cidrs)).unwrap()
}

/// Takes all rules out of a namespace.
pub(crate) fn disarm(prefix: &str, index: u32) {
    let table = prefix.trim_end_matches('-');
    inside(&format!("{prefix}{index}"), || {
        for family in ["inet", "bridge"] {
            run("nft", &format!("delete table {family} {table}"));
        }
    });
}
