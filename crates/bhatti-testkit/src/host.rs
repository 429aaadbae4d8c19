//! A host of one test's own, and a world beyond it.
//!
//! ```text
//!   the test's host ── w0 192.0.2.1/24 ═══ w1 192.0.2.2/24 ── namespace "world"
//! ```

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// An address beyond the host: what a guest finds on "the internet".
pub const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Runs `test` on a fresh host. Processes and threads it starts are on that host too.
pub fn on_fresh_host(test: impl FnOnce() + Send) {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("private mounts");
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("a /run");
        std::fs::create_dir("/run/netns").expect("a fresh /run");
        for args in [
            "link set lo up",
            "netns add world",
            "link add w0 type veth peer name w1 netns world",
            "address add 192.0.2.1/24 dev w0",
            "link set w0 up",
            "route add default via 192.0.2.2",
            "-n world link set lo up",
            "-n world address add 192.0.2.2/24 dev w1",
            "-n world link set w1 up",
        ] {
            ip(args);
        }
        test();
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Does something in the world beyond the host that this is called on, on a thread of its own.
pub fn in_world<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    in_namespace("world", work)
}

/// The same in any named network namespace of this host.
pub fn in_namespace<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{name}")).expect("this host has it");
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("these tests need root");
        work()
    })
}

/// Runs `ip`, fails the test if it fails, gives what it printed.
pub fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split_whitespace()).output().expect("ip runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
