//! Memory that a guest has freed is the host's again, and nothing that it holds is lost by that.

use std::time::Instant;

use bhatti_engine::conformance::{Harness, patience};
use bhatti_engine::{Below, Engine, RestoreSpec, Save, Vm};
use tokio::time::{Duration, sleep};

use crate::golden::Golden;
use crate::harness::{FirecrackerHarness, OWNER, ask};

/// What the guest needs on.
const HOLD: &str = "dd if=/dev/urandom of=/dev/shm/held bs=1M count=24 2>/dev/null; \
                    sha256sum /dev/shm/held";
/// And later, less: what is let go of is not all used again.
const HOLD_LITTLE: &str = "dd if=/dev/urandom of=/dev/shm/held bs=1M count=4 2>/dev/null; \
                           sha256sum /dev/shm/held";
/// So much of what it held is let go of at least: it is told of in blocks of 2 MiB.
const LET_GO: u64 = 12 << 20;
const HELD: &str = "sha256sum /dev/shm/held";
/// What it uses and frees.
const WASTE: &str = "dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\0' x > /dev/shm/waste";
const FREE: &str = "rm /dev/shm/waste";
const WASTED: u64 = 64 << 20;
/// So much of it is given back, and taken again by who wastes again. The rest may be in blocks
/// that are free in part, and be used again.
const MOST: u64 = WASTED / 4 * 3;
/// A guest tells of free memory 2 s after its driver was loaded, and each 2 s then.
const FIRST_REPORT: Duration = Duration::from_secs(2);

/// How many bytes of memory the VMM has to itself.
fn own(vm: &dyn Vm) -> u64 {
    held(vm, "Anonymous:")
}

/// How many bytes of memory the VMM has, by what the kernel calls them.
fn held(vm: &dyn Vm, kind: &str) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", vm.record().pid));
    let rollup = rollup.unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Has the guest free what it holds, which a template has for it; the VMM lets go of that.
async fn lets_go(vm: &dyn Vm) {
    let (before, freed) = (held(vm, "Rss:"), Instant::now());
    ask(vm, "rm /dev/shm/held").await;
    while held(vm, "Rss:") > before - LET_GO {
        assert!(freed.elapsed() < patience(), "{} of {before} bytes", held(vm, "Rss:"));
        sleep(Duration::from_millis(50)).await;
    }
}

/// Has the guest use memory and free it; the host has most of it back after a while.
async fn wastes_and_frees(vm: &dyn Vm) {
    let before = own(vm);
    ask(vm, WASTE).await;
    let used = own(vm);
    assert!(used >= before + MOST, "{before}, then {used}");
    ask(vm, FREE).await;
    let (freed, enough) = (Instant::now(), used - MOST);
    while own(vm) > enough {
        assert!(freed.elapsed() < patience(), "{} bytes are still not {enough}", own(vm));
        sleep(Duration::from_millis(50)).await;
    }
    println!("{before} bytes, {used}, {} after {:?}", own(vm), freed.elapsed());
}

/// How many bytes of its template a clone's memory still lies over: the rest was given back.
fn of_template(vm: &dyn Vm) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", vm.record().pid)).unwrap();
    let of = maps.lines().filter(|line| line.contains("/memfd:bhatti-memory"));
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    of.map(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        number(end) - number(start)
    })
    .sum()
}

/// Each report costs the one thread that also carries the link, and each clone would make the same
/// in its first moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn a_clone_tells_of_free_memory_when_it_has_run_for_a_while() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    ask(&*vm, "true").await;
    let golden = Golden::freeze(&harness, vm, disk).await;
    let machine = golden.machine(&harness, &engine).await;
    let clone = golden.restore(&harness, &engine, machine).await;
    let (whole, since) = (of_template(&*clone), Instant::now());
    clone.resume().await.unwrap();
    ask(&*clone, &format!("sleep {}", FIRST_REPORT.as_secs() * 2)).await;
    println!("{whole} bytes, {} after {:?}", of_template(&*clone), since.elapsed());
    assert_eq!(of_template(&*clone), whole, "it has told of some after {:?}", since.elapsed());
    while of_template(&*clone) == whole {
        assert!(since.elapsed() < patience(), "nothing was told of");
        sleep(Duration::from_millis(200)).await;
    }
    println!("{} after {:?}", of_template(&*clone), since.elapsed());
    clone.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn what_a_guest_frees_the_host_has_again() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    let held = ask(&*vm, HOLD).await;
    wastes_and_frees(&*vm).await;
    let left = own(&*vm);
    let golden = Golden::freeze(&harness, vm, disk).await;
    let files = std::fs::read_dir(&golden.snapshot).unwrap();
    let saved: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("{saved} bytes of {left} are saved");
    assert!(saved < left + (8 << 20), "{saved} bytes of {left} were saved");

    // One that comes back has memory of a file of ours, in whose place there is nothing then.
    let again = golden.machine(&harness, &engine).await;
    let disk = again.root.clone();
    let woken = engine.restore(golden.wake_of(again)).await.unwrap();
    harness.booted();
    woken.resume().await.unwrap();
    assert_eq!(ask(&*woken, HELD).await, held);
    wastes_and_frees(&*woken).await;
    assert_eq!(ask(&*woken, HELD).await, held);
    let later = Golden::freeze(&harness, woken, disk).await;
    let again = later.machine(&harness, &engine).await;
    let woken = engine.restore(later.wake_of(again)).await.unwrap();
    harness.booted();
    woken.resume().await.unwrap();
    assert_eq!(ask(&*woken, HELD).await, held);
    woken.kill().await.unwrap();
}

/// A clone frees what its template still has, for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn a_clone_gives_back_and_its_template_stays() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    let of_golden = ask(&*vm, HOLD).await;
    let golden = Golden::freeze(&harness, vm, disk).await;

    let machine = golden.machine(&harness, &engine).await;
    let mut disk = machine.root.clone();
    let clone = golden.restore(&harness, &engine, machine).await;
    clone.resume().await.unwrap();
    assert_eq!(ask(&*clone, HELD).await, of_golden);
    wastes_and_frees(&*clone).await;
    lets_go(&*clone).await;
    let held = ask(&*clone, HOLD_LITTLE).await;
    wastes_and_frees(&*clone).await;
    assert_eq!(ask(&*clone, HELD).await, held);

    // It sleeps over its template, wakes over it, and does so once more.
    let mut clone = clone;
    let mut since = None;
    for _ in 0..2 {
        ask(&*clone, "sync").await;
        clone.pause().await.unwrap();
        let own = harness.shelf();
        let base = Some(golden.snapshot.clone());
        clone.save(Save { into: own.clone(), since, base: base.clone() }).await.unwrap();
        let before = self::own(&*clone);
        let sealed = clone.seal_disk(&disk, &harness.shelf().join("layer")).await.unwrap();
        clone.kill().await.unwrap();
        let mut machine = harness.spec().await;
        std::fs::remove_file(&machine.root.file).unwrap();
        let below = Below {
            layers: sealed.layers,
            format: sealed.format,
            ..Below::image(sealed.base.unwrap())
        };
        machine.root = engine.create_root(below, &machine.dir, None, OWNER).await.unwrap();
        disk = machine.root.clone();
        let spec = RestoreSpec { machine, snapshot: own.clone(), base };
        clone = engine.restore(spec).await.unwrap();
        harness.booted();
        let woken = self::own(&*clone);
        println!("{before} bytes of its own before it slept, {woken} when it woke");
        assert!(woken < before + (2 << 20), "{before} bytes, and {woken} after it slept");
        clone.resume().await.unwrap();
        assert_eq!(ask(&*clone, HELD).await, held);
        wastes_and_frees(&*clone).await;
        since = Some(own);
    }
    clone.kill().await.unwrap();

    // Nobody else has noticed.
    let machine = golden.machine(&harness, &engine).await;
    let sibling = golden.restore(&harness, &engine, machine).await;
    sibling.resume().await.unwrap();
    assert_eq!(ask(&*sibling, HELD).await, of_golden);
    sibling.kill().await.unwrap();
}
