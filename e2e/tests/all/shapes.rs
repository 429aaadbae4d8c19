//! Machines of other shapes than most: with more memory than lies below the devices' addresses, and on
//! huge pages.

use bhatti_testkit::{TestDaemon, on_fresh_host};

/// What a guest holds in memory and nowhere else.
const HOLD: &str = "dd if=/dev/urandom of=/dev/shm/held bs=1M count=32 2>/dev/null; \
                    sha256sum /dev/shm/held";
const HELD: &str = "sha256sum /dev/shm/held";
/// How much memory it says it has, in MiB.
const TOTAL: &str = "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo";

fn create(daemon: &TestDaemon, name: &str, mib: u32, more: &[&str]) {
    let memory = mib.to_string();
    let args = ["create", "--name", name, "--memory", &memory];
    daemon.cli(&[&args, more].concat()).ok();
    let total: u32 = daemon.sh(name, TOTAL).trim().parse().expect("a number");
    assert!((mib * 4 / 5..mib).contains(&total), "{total} MiB of {mib}");
}

/// It sleeps with its memory in files, and wakes with it; also what it has changed since.
fn keeps_its_memory(daemon: &TestDaemon, name: &str) {
    for _ in 0..2 {
        let held = daemon.sh(name, HOLD);
        daemon.cli(&["stop", name]).ok();
        assert_eq!(daemon.state(name).as_deref(), Some("stopped"));
        assert_eq!(daemon.sh(name, HELD), held);
    }
}

#[test]
fn more_memory_than_lies_below_the_devices_is_kept_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        create(&daemon, "large", (3 << 10) + 320, &[]);
        keeps_its_memory(&daemon, "large");
        // One that is cloned, where the other was booted.
        create(&daemon, "second", (3 << 10) + 320, &[]);
        keeps_its_memory(&daemon, "second");
        for name in ["large", "second"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.assert_nothing_left();
    });
}

/// Reserves huge pages of the host's while it lives.
struct Reserved(String);

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

impl Reserved {
    fn pages(pages: u64) -> Self {
        let former = std::fs::read_to_string(RESERVED).expect("this kernel has huge pages");
        std::fs::write(RESERVED, pages.to_string()).expect("root may");
        Self(former)
    }
}

/// How many of them nobody has, or has been promised.
fn available() -> u64 {
    let count = |name| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let text = std::fs::read_to_string(path).expect("this kernel has huge pages");
        text.trim().parse::<u64>().expect("a number")
    };
    count("free_hugepages") - count("resv_hugepages")
}

impl Drop for Reserved {
    fn drop(&mut self) {
        std::fs::write(RESERVED, &self.0).ok();
    }
}

#[test]
#[ignore = "takes memory from the whole host: run in the test bed"]
fn memory_on_huge_pages_is_given_kept_and_given_back_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let refused = ["create", "--name", "none", "--memory", "256", "--hugepages"];
        let why = daemon.cli(&refused).fails(1);
        assert!(why.contains("hugepages"), "{why}");

        let reserved = Reserved::pages(128 + 4);
        create(&daemon, "huge", 256, &["--hugepages"]);
        assert_eq!(available(), 4, "all of its memory is on them");
        keeps_its_memory(&daemon, "huge");
        assert_eq!(available(), 4, "and is again after it slept");
        // There are no pages for two.
        let refused = ["create", "--name", "two", "--memory", "256", "--hugepages"];
        daemon.cli(&refused).fails(1);
        // While one sleeps, another can have them.
        daemon.cli(&["stop", "huge"]).ok();
        create(&daemon, "other", 256, &["--hugepages"]);
        let why = daemon.cli(&["exec", "huge", "--", "true"]).fails(1);
        assert!(why.contains("hugepages"), "{why}");
        daemon.cli(&["destroy", "other", "-y"]).ok();
        daemon.sh("huge", HELD);
        daemon.cli(&["destroy", "huge", "-y"]).ok();
        daemon.assert_nothing_left();
        drop(reserved);
    });
}
