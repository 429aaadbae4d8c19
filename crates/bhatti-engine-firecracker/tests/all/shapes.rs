//! Machines whose memory Firecracker has in another way: in two pieces, and on huge pages.

use std::sync::Arc;

use bhatti_engine::conformance::Harness;
use bhatti_engine::{BootSpec, Engine, EngineError, Vm};
use bhatti_types::Mib;

use crate::golden::Golden;
use crate::harness::{FirecrackerHarness, ask};

/// What the guest holds in memory: more than fits into any one place by chance.
const FILL: &str = "dd if=/dev/urandom of=/dev/shm/held bs=1M count=48 2>/dev/null; \
                    sha256sum /dev/shm/held";
const HELD: &str = "sha256sum /dev/shm/held";

/// Boots, freezes, wakes and clones machines of one shape, and finds their memory in each.
async fn keeps_its_memory(harness: &FirecrackerHarness, memory: Mib, hugepages: bool) {
    let shaped = |mut spec: BootSpec| {
        spec.shape.memory = memory;
        spec.hugepages = hugepages;
        spec
    };
    let engine = harness.firecracker().await;
    let spec = shaped(harness.spec().await);
    let disk = spec.root.clone();
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    let total = ask(&*vm, "awk '/MemTotal/ {print $2}' /proc/meminfo").await;
    assert!(total.parse::<u32>().unwrap() / 1024 > memory.0 / 10 * 8, "it has only {total} KiB");
    let held = ask(&*vm, FILL).await;
    on_huge_pages(&*vm, hugepages);
    let golden = Golden::freeze(harness, vm, disk).await;

    let again = shaped(golden.machine(harness, &engine).await);
    let own_disk = again.root.clone();
    let woken = engine.restore(golden.wake_of(again)).await.unwrap();
    on_huge_pages(&*woken, hugepages);
    let held_by = async |vm: &Arc<dyn Vm>| {
        harness.booted();
        vm.resume().await.unwrap();
        ask(&**vm, HELD).await
    };
    assert_eq!(held_by(&woken).await, held);
    // And once more, of one that was restored and has changed.
    let held_later = ask(&*woken, FILL).await;
    let later = Golden::freeze(harness, woken, own_disk).await;
    let again = shaped(later.machine(harness, &engine).await);
    let woken = engine.restore(later.wake_of(again)).await.unwrap();
    assert_eq!(held_by(&woken).await, held_later);
    woken.kill().await.unwrap();

    let again = shaped(golden.machine(harness, &engine).await);
    let clone = engine.restore(golden.clone_of(again)).await.unwrap();
    on_huge_pages(&*clone, hugepages);
    assert_eq!(held_by(&clone).await, held);
    clone.kill().await.unwrap();
}

/// Whether its memory lies on huge pages, all of it there.
fn on_huge_pages(vm: &dyn Vm, expected: bool) {
    let record = vm.record();
    let status = std::fs::read_to_string(format!("/proc/{}/status", record.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("HugetlbPages:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    let memory = record.memory.unwrap().bytes() / 1024;
    assert_eq!(kib, if expected { memory } else { 0 }, "{line}");
}

/// Reserves huge pages while it lives.
struct Reserved(u64);

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

impl Reserved {
    fn pages(pages: u64) -> Self {
        let there: u64 = std::fs::read_to_string(RESERVED).unwrap().trim().parse().unwrap();
        std::fs::write(RESERVED, (there + pages).to_string()).unwrap();
        Self(there)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        std::fs::write(RESERVED, self.0.to_string()).ok();
    }
}

/// Above the devices' addresses there is a second piece.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn memory_in_two_pieces_is_kept() {
    let harness = FirecrackerHarness::new();
    keeps_its_memory(&harness, Mib((3 << 10) + 320), false).await;
}

/// One test, because what is reserved is anybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn huge_pages_are_given_kept_or_missed() {
    let harness = FirecrackerHarness::new();
    {
        let _reserved = Reserved::pages(2 * 128 + 8);
        keeps_its_memory(&harness, Mib(256), true).await;
    }
    let mut spec = harness.spec().await;
    let (id, dir) = (spec.id.clone(), spec.dir.clone());
    spec.hugepages = true;
    match harness.firecracker().await.boot(spec).await.err() {
        Some(EngineError::NoHugepages { needed: 128, free }) => assert!(free < 128),
        other => panic!("{other:?}"),
    }
    assert!(harness.groups(id.as_str()).is_empty());
    assert!(!dir.join("memory.sock").exists());
}
