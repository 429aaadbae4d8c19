//! `kill -9` at every stage: of the VMM while its machine is started, woken and saved, and of the
//! daemon that does it.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bhatti_engine::conformance::{Harness, patience};
use bhatti_engine::{Engine, EngineError, Exit, RootDisk, Save, Vm, VmRecord};
use bhatti_types::EngineId;
use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::golden::Golden;
use crate::harness::{FirecrackerHarness, ask};

/// A moment may be over before it was seen.
const ATTEMPTS: usize = 20;

/// Where a VMM is, as can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// There is a process, which may not be a VMM yet.
    Runs,
    Listens,
    HasDevices,
    HasCpus,
    /// It stands in the opening of its disk, while memory is put in.
    IsHeld,
    /// It stands in handing over its state, while memory is read.
    HandsOver,
}

impl Stage {
    /// The VMM, if it is there.
    fn reached(self, harness: &FirecrackerHarness, id: &EngineId, dir: &Utf8Path) -> Option<i32> {
        let pid = vmm(harness, id)?;
        let reached = match self {
            Self::Runs => true,
            Self::Listens => dir.join("api.sock").exists(),
            Self::HasDevices => dir.join("vsock.sock").exists(),
            Self::HasCpus => of_threads(pid, "comm").iter().any(|name| name.contains("vcpu")),
            Self::IsHeld => of_threads(pid, "wchan").iter().any(|place| place.contains("fanotify")),
            Self::HandsOver => of_threads(pid, "wchan").iter().any(|at| at.contains("pipe_write")),
        };
        reached.then_some(pid)
    }
}

/// The process in a machine's group.
fn vmm(harness: &FirecrackerHarness, id: &EngineId) -> Option<i32> {
    let groups = harness.groups(id.as_str());
    let procs = std::fs::read_to_string(groups.first()?.join("cgroup.procs")).ok()?;
    let mut pids = procs.lines().filter_map(|line| line.parse().ok());
    // KVM has a thread of the kernel's own in there.
    pids.find(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.contains("PPid:\t2\n")
    })
}

fn of_threads(pid: i32, what: &str) -> Vec<String> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let paths = threads.filter_map(Result::ok).map(|thread| thread.path().join(what));
    paths.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn murder(pid: i32) {
    // It may have died by itself, which is not what a test waits for and is seen there.
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

/// Kills the VMM of a machine when it gets there, while `work` goes on. Tells whether it did.
async fn killed_at<T>(
    stage: Stage,
    harness: &FirecrackerHarness,
    (id, dir): (&EngineId, &Utf8Path),
    work: impl Future<Output = T>,
) -> (T, bool) {
    let done = AtomicBool::new(false);
    let watch = || {
        while !done.load(Ordering::Acquire) {
            if let Some(pid) = stage.reached(harness, id, dir) {
                murder(pid);
                return true;
            }
        }
        false
    };
    // The work goes on in other threads of the runtime than this one.
    let result = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let watching = scope.spawn(watch);
            let work = tokio::time::timeout(patience(), work);
            let result = tokio::runtime::Handle::current().block_on(work);
            done.store(true, Ordering::Release);
            (result, watching.join().unwrap())
        })
    });
    (result.0.expect("it ends in time"), result.1)
}

/// A start whose VMM was killed fails with a word about that, and leaves nothing.
async fn ended_early(
    harness: &FirecrackerHarness,
    stage: Stage,
    record: &VmRecord,
    result: Result<std::sync::Arc<dyn Vm>, EngineError>,
) {
    match result {
        Err(EngineError::DiedEarly { .. } | EngineError::Gone) => {}
        Err(other) => panic!("{stage:?}: {other:?}"),
        // It was faster.
        Ok(vm) => {
            assert!(stage == Stage::HasCpus, "{stage:?}: it has started");
            let exit = tokio::time::timeout(patience(), vm.exited()).await.unwrap();
            assert!(matches!(exit, Exit::Died { .. }), "{exit:?}");
        }
    }
    let traces = harness.traces(record).await;
    assert!(traces.is_empty(), "{stage:?}: left behind: {traces:?}");
}

/// The record of a machine of which nobody heard.
fn unheard(id: &EngineId, dir: &Utf8Path) -> VmRecord {
    VmRecord {
        id: id.clone(),
        engine: bhatti_engine::EngineName::Firecracker,
        dir: dir.to_owned(),
        pid: 0,
        start_ticks: 0,
        host_boot_id: String::new(),
        cgroups: Vec::new(),
        memory: None,
        memory_at: Vec::new(),
    }
}

fn names(dir: &Utf8Path) -> BTreeSet<String> {
    let entries = dir.read_dir_utf8().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_owned());
    names.filter(|name| name != "console.log").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "needs a real Firecracker"]
async fn a_vmm_killed_while_it_boots_leaves_nothing() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    for stage in [Stage::Runs, Stage::Listens, Stage::HasDevices, Stage::HasCpus] {
        let spec = harness.spec().await;
        let (id, dir) = (spec.id.clone(), spec.dir.clone());
        let before = names(&dir);
        let (result, struck) = killed_at(stage, &harness, (&id, &dir), engine.boot(spec)).await;
        assert!(struck, "{stage:?} was not seen");
        ended_early(&harness, stage, &unheard(&id, &dir), result).await;
        assert_eq!(names(&dir), before, "{stage:?}");
    }
    // Nothing of it is in the way.
    let vm = engine.boot(harness.spec().await).await.unwrap();
    harness.booted();
    ask(&*vm, "true").await;
    vm.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "needs a real Firecracker"]
async fn a_vmm_killed_while_it_wakes_leaves_nothing() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    let golden = Golden::new(&harness, &engine).await;
    let stages = [Stage::Runs, Stage::Listens, Stage::HasDevices, Stage::HasCpus, Stage::IsHeld];
    for stage in stages {
        let mut attempts = 0..ATTEMPTS;
        loop {
            assert!(attempts.next().is_some(), "{stage:?} was not seen");
            let machine = golden.machine(&harness, &engine).await;
            let (id, dir) = (machine.id.clone(), machine.dir.clone());
            let before = names(&dir);
            // Only memory of its own is put in while it is held.
            let spec = match stage {
                Stage::IsHeld => golden.wake_of(machine),
                _ => golden.clone_of(machine),
            };
            let work = engine.restore(spec);
            let (result, struck) = killed_at(stage, &harness, (&id, &dir), work).await;
            if struck {
                ended_early(&harness, stage, &unheard(&id, &dir), result).await;
                assert_eq!(names(&dir), before, "{stage:?}");
                break;
            }
            result.unwrap().kill().await.unwrap();
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
    // The snapshot is whole.
    let machine = golden.machine(&harness, &engine).await;
    let vm = golden.restore(&harness, &engine, machine).await;
    vm.resume().await.unwrap();
    ask(&*vm, "true").await;
    vm.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "needs a real Firecracker"]
async fn a_vmm_killed_while_it_is_saved_is_gone_and_the_former_generation_is_not() {
    let harness = FirecrackerHarness::new();
    let engine = harness.firecracker().await;
    let golden = Golden::new(&harness, &engine).await;
    let machine = golden.machine(&harness, &engine).await;
    let vm = golden.restore(&harness, &engine, machine).await;
    // So much that reading it takes longer than looking once whether somebody does.
    vm.resume().await.unwrap();
    ask(&*vm, "dd if=/dev/zero of=/dev/shm/much bs=1M count=64").await;
    vm.pause().await.unwrap();
    let record = vm.record();
    let mut attempts = 0..ATTEMPTS;
    loop {
        assert!(attempts.next().is_some(), "it was not seen to hand over its state");
        let base = Some(golden.snapshot.clone());
        let save = vm.save(Save { into: harness.shelf(), since: None, base });
        let machine = (&record.id, record.dir.as_path());
        match killed_at(Stage::HandsOver, &harness, machine, save).await {
            (saved, true) => {
                assert!(matches!(saved, Err(EngineError::Gone)), "{saved:?}");
                break;
            }
            (saved, false) => drop(saved.unwrap()),
        }
    }
    let exit = tokio::time::timeout(patience(), vm.exited()).await.unwrap();
    assert!(matches!(exit, Exit::Died { .. }), "{exit:?}");
    assert!(harness.traces(&record).await.is_empty(), "{:?}", harness.traces(&record).await);
    let machine = golden.machine(&harness, &engine).await;
    let vm = golden.restore(&harness, &engine, machine).await;
    vm.resume().await.unwrap();
    ask(&*vm, "true").await;
    vm.kill().await.unwrap();
}

/// What a daemon is told to do until it is killed.
const ORDER: &str = "BHATTI_TEST_ORDER";
const PLACE: &str = "BHATTI_TEST_PLACE";
const CGROUP: &str = "BHATTI_TEST_CGROUP";
/// What it has begun with, for who kills it.
const BEGUN: &str = "begun";

#[derive(Serialize, Deserialize)]
struct Begun {
    id: EngineId,
    dir: Utf8PathBuf,
    root: RootDisk,
    /// What it is woken from.
    golden: Option<Golden>,
    /// Of a machine that was handed out.
    record: Option<VmRecord>,
}

impl Begun {
    fn tell(&self, harness: &FirecrackerHarness) {
        let (file, partial) = (harness.path().join(BEGUN), harness.path().join("partial"));
        std::fs::write(&partial, serde_json::to_vec(self).unwrap()).unwrap();
        std::fs::rename(partial, file).unwrap();
    }
}

/// A daemon in a process of its own, killed when it is dropped.
struct Daemon(Child);

impl Daemon {
    /// Returns when it has begun with what it was told.
    fn start(harness: &FirecrackerHarness, order: &str) -> (Self, Begun) {
        let begun = harness.path().join(BEGUN);
        std::fs::remove_file(&begun).ok();
        let daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--include-ignored", "--exact", "deaths::a_daemon_at_work"])
            .env(ORDER, order)
            .env(PLACE, harness.path())
            .env(CGROUP, &harness.cgroup)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Self(daemon);
        let end = Instant::now() + patience();
        loop {
            if let Ok(text) = std::fs::read(&begun) {
                return (daemon, serde_json::from_slice(&text).unwrap());
            }
            assert_eq!(daemon.0.try_wait().unwrap(), None, "it ended by itself");
            assert!(Instant::now() < end, "it does not begin to {order}");
            std::thread::yield_now();
        }
    }

    /// Kills it when the VMM of its machine gets there, which lives on.
    fn die_at(self, stage: Stage, harness: &FirecrackerHarness, begun: &Begun) -> i32 {
        let end = Instant::now() + patience();
        loop {
            if let Some(pid) = stage.reached(harness, &begun.id, &begun.dir) {
                drop(self);
                return pid;
            }
            assert!(Instant::now() < end, "{stage:?} was not seen");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Not a test, but what the tests below start and kill; by itself it has no orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real Firecracker"]
async fn a_daemon_at_work() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let place = Utf8PathBuf::from(std::env::var(PLACE).unwrap());
    let harness = FirecrackerHarness::at(place, std::env::var(CGROUP).unwrap());
    let engine = harness.firecracker().await;
    let golden = match order.as_str() {
        "wake" => Some(Golden::new(&harness, &engine).await),
        _ => None,
    };
    let spec = match &golden {
        Some(golden) => golden.machine(&harness, &engine).await,
        None => harness.spec().await,
    };
    let (id, dir, root) = (spec.id.clone(), spec.dir.clone(), spec.root.clone());
    let mut begun = Begun { id, dir, root, golden, record: None };
    let again =
        |begun: &Begun| harness.machine(begun.id.clone(), begun.dir.clone(), begun.root.clone());
    match (order.as_str(), begun.golden.clone()) {
        ("wake", Some(golden)) => {
            begun.tell(&harness);
            loop {
                let vm = engine.restore(golden.wake_of(again(&begun))).await.unwrap();
                vm.kill().await.unwrap();
            }
        }
        ("boot", _) => {
            begun.tell(&harness);
            loop {
                let vm = engine.boot(again(&begun)).await.unwrap();
                vm.kill().await.unwrap();
            }
        }
        ("save", _) => {
            let vm = engine.boot(spec).await.unwrap();
            ask(&*vm, "echo remembered > /dev/shm/it").await;
            vm.pause().await.unwrap();
            begun.record = Some(vm.record());
            begun.tell(&harness);
            loop {
                let into = harness.shelf();
                vm.save(Save { into: into.clone(), since: None, base: None }).await.unwrap();
                std::fs::remove_dir_all(into).unwrap();
            }
        }
        other => panic!("{:?} is no order", other.0),
    }
}

/// Nobody knows of a machine that was not handed out: it is swept, and is not in the way of the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "needs a real Firecracker"]
async fn what_a_daemon_leaves_that_dies_in_a_start_is_swept() {
    let harness = FirecrackerHarness::new();
    for (order, stage) in [
        ("boot", Stage::Runs),
        ("boot", Stage::Listens),
        ("boot", Stage::HasDevices),
        ("boot", Stage::HasCpus),
        ("wake", Stage::Runs),
        ("wake", Stage::IsHeld),
        ("wake", Stage::HasCpus),
    ] {
        let (daemon, begun) = Daemon::start(&harness, order);
        daemon.die_at(stage, &harness, &begun);

        let engine = harness.firecracker().await;
        engine.sweep(&[]).await.unwrap();
        assert_eq!(vmm(&harness, &begun.id), None, "{order}, {stage:?}");
        assert!(harness.groups(begun.id.as_str()).is_empty(), "{order}, {stage:?}");
        let machine = harness.machine(begun.id, begun.dir, begun.root);
        let vm = match begun.golden {
            Some(golden) => engine.restore(golden.wake_of(machine)).await.unwrap(),
            None => engine.boot(machine).await.unwrap(),
        };
        harness.booted();
        vm.resume().await.unwrap();
        ask(&*vm, "true").await;
        vm.kill().await.unwrap();
        let traces = harness.traces(&vm.record()).await;
        assert!(traces.is_empty(), "{order}, {stage:?}: left behind: {traces:?}");
    }
}

/// A machine whose daemon dies while it is saved stands as before: it is saved again, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "needs a real Firecracker"]
async fn a_machine_outlives_a_daemon_that_dies_in_a_save() {
    let harness = FirecrackerHarness::new();
    let (daemon, begun) = Daemon::start(&harness, "save");
    harness.booted();
    let record = begun.record.clone().unwrap();
    let pid = daemon.die_at(Stage::HandsOver, &harness, &begun);
    assert_eq!(pid, record.pid);

    let engine = harness.firecracker().await;
    let vm = engine.adopt(&record).await.unwrap().expect("it lives");
    vm.save(Save { into: harness.shelf(), since: None, base: None }).await.unwrap();
    vm.resume().await.unwrap();
    assert_eq!(ask(&*vm, "cat /dev/shm/it").await, "remembered");
    vm.kill().await.unwrap();
    assert!(harness.traces(&record).await.is_empty(), "{:?}", harness.traces(&record).await);
}
