//! How fast a guest may use its disk and its network, as the guest sees it. Only Firecracker keeps
//! such limits, so this is ignored where there is none and run by the test bed's `firecracker-e2e`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, WORLD, in_world, on_fresh_host};

const ENGINE: &str = "engine: firecracker\nthermal:\n  warm_after: never\n  cold_after: never\n";
/// In MiB and MiB a second; what is moved takes four seconds then.
const DISK: (u64, u64) = (16, 4);
const NETWORK: (u64, u64) = (4, 1);

/// How often a use may be slow though nothing limits it.
const TRIES: u32 = 5;

/// What a use of the guest's took, and what it must take at least under its limit.
struct Use {
    what: &'static str,
    run: fn(&TestDaemon) -> Duration,
    limit: (u64, u64),
}

const USES: [Use; 3] = [
    Use { what: "reading the disk", run: reads_disk, limit: DISK },
    Use { what: "receiving", run: receives, limit: NETWORK },
    Use { what: "sending", run: sends, limit: NETWORK },
];

#[test]
#[ignore = "needs a real Firecracker"]
fn a_guest_is_as_fast_as_its_limits_and_no_slower_without() {
    on_fresh_host(|| {
        let (disk, network) = (DISK.1, NETWORK.1);
        let limits =
            format!("limits:\n  disk_mb_per_sec: {disk}\n  network_mb_per_sec: {network}\n");
        let mut daemon = TestDaemon::start_with(&format!("{ENGINE}{limits}"));
        daemon.cli(&["create", "--name", "s", "--memory", "256"]).ok();
        // The first of each also loads its programs, slowly.
        let limited = USES.each_ref().map(|each| (each.run)(&daemon));
        for (Use { what, limit: (mib, per_second), .. }, took) in USES.iter().zip(limited) {
            // A bucket, of what is allowed in a second, is full at the beginning; and Firecracker fills
            // it when it first finds it empty, for all the time before. Two of four are for nothing.
            let least = Duration::from_secs(mib / per_second) / 2;
            assert!(took > least, "{what} took {took:?}: nothing limits it");
        }
        how_often_is_told(&mut daemon);

        // Limits are those of today, also for what was saved under others.
        daemon.cli(&["stop", "s"]).ok();
        assert_eq!(daemon.terminate(), 0, "a clean end");
        daemon.reconfigure(ENGINE);
        daemon.run();
        assert!(daemon.json(&["inspect", "s"])["held_back"].is_null(), "nothing is counted");
        daemon.cli(&["start", "s"]).ok();
        for (Use { what, run, .. }, limited) in USES.iter().zip(limited) {
            // A busy host makes it slow now and then, a limit each time.
            let free = (0..TRIES).map(|_| run(&daemon)).find(|free| {
                println!("{what}: {limited:?} with a limit, {free:?} without");
                *free * 2 < limited
            });
            assert!(free.is_some(), "{what} is no quicker without a limit");
        }
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

/// Of a machine that was just held back in all it did.
fn how_often_is_told(daemon: &mut TestDaemon) {
    let told = |daemon: &TestDaemon| {
        let held_back = daemon.json(&["inspect", "s"])["held_back"].take();
        ["disk", "sent", "received"].map(|what| held_back[what].as_u64().unwrap_or_default())
    };
    let first = told(daemon);
    println!("held back on its disk, sending and receiving: {first:?} times");
    assert!(first.iter().all(|times| *times > 0), "{first:?}");
    let shown = daemon.cli(&["inspect", "s"]).ok();
    assert!(shown.contains("  Limits:   reached: disk "), "{shown}");
    reads_disk(daemon);
    assert!(told(daemon)[0] > first[0], "it is asked, and says so at once");

    // Another daemon counts on, from what it finds.
    daemon.kill_9();
    daemon.run();
    assert_eq!(told(daemon)[1..], [0, 0]);
    reads_disk(daemon);
    assert!(told(daemon)[0] > 0, "it hears nothing of a machine it has found");
}

/// Past the guest's page cache.
fn reads_disk(daemon: &TestDaemon) -> Duration {
    let mib = DISK.0;
    let started = Instant::now();
    daemon.sh("s", &format!("sudo dd if=/dev/vda of=/dev/null bs=1M count={mib} iflag=direct"));
    started.elapsed()
}

fn receives(daemon: &TestDaemon) -> Duration {
    let (port, served) = serve_one(|stream| {
        let part = vec![1; 1 << 20];
        for _ in 0..NETWORK.0 {
            stream.write_all(&part).expect("the guest takes it");
        }
        NETWORK.0 << 20
    });
    let started = Instant::now();
    let count = daemon.cli(&["exec", "s", "--", "bash", "-c", &connected(port, "wc -c <&3")]).ok();
    let took = started.elapsed();
    assert_eq!(count.trim(), served().to_string());
    took
}

fn sends(daemon: &TestDaemon) -> Duration {
    let (port, received) = serve_one(|stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("the guest sends it");
        all.len() as u64
    });
    let bytes = NETWORK.0 << 20;
    let send = connected(port, &format!("head -c {bytes} /dev/zero >&3"));
    let started = Instant::now();
    daemon.cli(&["exec", "s", "--", "bash", "-c", &send]).ok();
    // Not before the last byte has come: the guest's kernel takes more than it has sent.
    assert_eq!(received(), bytes);
    started.elapsed()
}

fn connected(port: u16, then: &str) -> String {
    format!("exec 3<>/dev/tcp/{WORLD}/{port}; {then}")
}

/// Serves one connection in the world; its port, and what the serving gave, once it is over.
fn serve_one(
    serve: impl FnOnce(&mut std::net::TcpStream) -> u64 + Send + 'static,
) -> (u16, impl FnOnce() -> u64) {
    let (tell, told) = mpsc::channel();
    let server = in_world(move || {
        let listener = TcpListener::bind((WORLD, 0)).expect("it is there");
        tell.send(listener.local_addr().expect("it listens").port()).expect("somebody asked");
        let (mut stream, _) = listener.accept().expect("the guest comes");
        serve(&mut stream)
    });
    let port = told.recv().expect("it listens");
    (port, move || server.join().expect("it was served"))
}
