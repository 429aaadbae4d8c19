//! A host of one test's own, and a world beyond it.
//!
//! ```text
//!   the test's host ── w0 192.0.2.1/24 ═══ w1 192.0.2.2/24 ── namespace "world"
//! ```
//! The world's default route is the host, so that only address translation keeps untranslated
//! addresses out of what the world sees, not a missing route.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bhatti_net::{NetConfig, Networks, guest_subnet, lowest_free};
use bhatti_types::EngineId;
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

pub(crate) fn config(prefix: &str) -> NetConfig {
    NetConfig { prefix: prefix.to_owned(), ..NetConfig::default() }
}

/// Networks under a prefix that the process has not used, in case tests ever share a host.
pub(crate) async fn networks() -> (Networks, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("bht{}-", NEXT.fetch_add(1, Ordering::Relaxed));
    (Networks::open(config(&prefix)).await.unwrap(), prefix)
}

/// Has the network of user `index` made or verified, as a machine of theirs would.
pub(crate) async fn touch(networks: &Networks, index: u32) {
    drop(networks.open_tap(index, &EngineId::random()).await.unwrap());
}

fn gateway(index: u32) -> Ipv4Addr {
    let [a, b, c, _] = guest_subnet(index).unwrap().network().octets();
    Ipv4Addr::new(a, b, c, 1)
}

/// `count` guests of user `index`.
pub(crate) async fn guests(networks: &Networks, index: u32, count: usize) -> Vec<Guest> {
    let mut guests: Vec<Guest> = Vec::new();
    for _ in 0..count {
        let used: Vec<_> = guests.iter().map(Guest::address).collect();
        let id = EngineId::random();
        let tap = networks.open_tap(index, &id).await.unwrap();
        let address = lowest_free(index, &used).unwrap();
        guests.push(Guest::new(tap, &bhatti_net::guest_mac(&id), address, gateway(index)));
    }
    guests
}
