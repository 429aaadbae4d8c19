//! Measures what the documentation quotes about sleep: `cargo run --release --example sleep [N]`.
//!
//! One golden machine of 512 MiB and one vCPU under emulation, then N clones of it, one after the
//! other: from `restore` to a machine that stands, and to an agent that has greeted. One clone is
//! paused and resumed, and saved after doing nothing and after writing 100 MiB. Medians. Needs
//! what the tests need.

#![expect(clippy::unwrap_used, reason = "a tool for the developer may panic")]

#[path = "../tests/all/harness.rs"]
mod harness;

use std::sync::Arc;
use std::time::Instant;

use bhatti_engine::conformance::Harness;
use bhatti_engine::{Below, BootSpec, Engine, RestoreSpec, RootDisk, Save, Vm};
use bhatti_engine_qemu::QemuEngine;
use bhatti_types::Mib;
use camino::{Utf8Path, Utf8PathBuf};

use harness::{OWNER, QemuHarness, Talk, ask};

struct Row(&'static str, Vec<f64>);

impl Row {
    fn time(&mut self, start: Instant) {
        self.1.push(start.elapsed().as_secs_f64() * 1e3);
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        let Self(name, values) = self;
        values.sort_by(f64::total_cmp);
        let (least, most) = (values[0], values[values.len() - 1]);
        let median = values[values.len() / 2];
        println!("{name:44} median {median:8.2} ms  {least:8.2} to {most:8.2}  n={}", values.len());
    }
}

async fn machine(harness: &QemuHarness, engine: &QemuEngine, disk: Option<&RootDisk>) -> BootSpec {
    let mut spec = harness.spec().await;
    spec.shape.memory = Mib(512);
    if let Some(disk) = disk {
        std::fs::remove_file(&spec.root.file).unwrap();
        let below = Below {
            base: disk.base.clone().unwrap(),
            layers: disk.layers.clone(),
            format: disk.format,
            bytes: disk.bytes,
        };
        spec.root = engine.create_root(below, &spec.dir, None, OWNER).await.unwrap();
    }
    spec
}

async fn save(
    harness: &QemuHarness,
    vm: &dyn Vm,
    since: Option<&Utf8Path>,
    base: Option<&Utf8Path>,
    what: &'static str,
) -> Utf8PathBuf {
    let into = harness.shelf();
    let (since, base) = (since.map(Utf8Path::to_owned), base.map(Utf8Path::to_owned));
    let start = Instant::now();
    let saved = vm.save(Save { into: into.clone(), since, base }).await.unwrap();
    let (time, written, total) =
        (start.elapsed().as_secs_f64() * 1e3, saved.written >> 10, saved.total >> 10);
    println!("save {what:39} {time:8.2} ms  {written} KiB written of {total}");
    into
}

/// Clones, one at a time; the last one is left running.
async fn clones(
    harness: &QemuHarness,
    engine: &QemuEngine,
    golden: &Utf8Path,
    disk: &RootDisk,
    rounds: usize,
) -> Arc<dyn Vm> {
    let mut stands = Row("clone: restore to a machine that stands", Vec::new());
    let mut answers = Row("clone: restore to an agent that has greeted", Vec::new());
    let mut first = true;
    loop {
        let machine = machine(harness, engine, Some(disk)).await;
        let (snapshot, base) = (golden.to_owned(), Some(golden.to_owned()));
        let start = Instant::now();
        let vm = engine.restore(RestoreSpec { machine, snapshot, base }).await.unwrap();
        let standing = start;
        if std::mem::take(&mut first) {
            let time = start.elapsed().as_secs_f64() * 1e3;
            println!("the first clone, which loads the template    {time:15.2} ms");
            vm.kill().await.unwrap();
            continue;
        }
        stands.time(standing);
        vm.resume().await.unwrap();
        let talk = Talk::with(&*vm).await;
        answers.time(start);
        talk.end().await;
        if answers.1.len() == rounds {
            return vm;
        }
        vm.kill().await.unwrap();
    }
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args().nth(1).map_or(20, |n| n.parse().unwrap());
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    println!("{}", engine.fingerprint());
    let spec = machine(&harness, &engine, None).await;
    let disk = spec.root.clone();
    let vm = engine.boot(spec).await.unwrap();
    ask(&*vm, "sync").await;
    vm.pause().await.unwrap();
    let golden = save(&harness, &*vm, None, None, "of a machine after its boot").await;
    let start = Instant::now();
    let disk = vm.seal_disk(&disk, &harness.shelf().join("layer")).await.unwrap();
    println!("seal a disk {:41.2} ms", start.elapsed().as_secs_f64() * 1e3);
    vm.kill().await.unwrap();

    let vm = clones(&harness, &engine, &golden, &disk, rounds).await;
    {
        let mut pause = Row("pause", Vec::new());
        let mut resume = Row("resume", Vec::new());
        for _ in 0..200 {
            let start = Instant::now();
            vm.pause().await.unwrap();
            pause.time(start);
            let start = Instant::now();
            vm.resume().await.unwrap();
            resume.time(start);
        }
    }
    let base = Some(golden.as_path());
    vm.pause().await.unwrap();
    let first = save(&harness, &*vm, None, base, "of a clone that answered once").await;
    vm.resume().await.unwrap();
    ask(&*vm, "true").await;
    vm.pause().await.unwrap();
    let idle = save(&harness, &*vm, Some(&first), base, "again, after one command").await;
    vm.resume().await.unwrap();
    ask(&*vm, "head -c 100M /dev/urandom > /dev/shm/x").await;
    vm.pause().await.unwrap();
    let full = save(&harness, &*vm, Some(&idle), base, "again, after writing 100 MiB").await;
    save(&harness, &*vm, Some(&full), base, "again, after nothing").await;
    vm.kill().await.unwrap();

    let mut stands = Row("wake with 100 MiB of its own", Vec::new());
    for _ in 0..5 {
        let machine = machine(&harness, &engine, Some(&disk)).await;
        let (snapshot, base) = (full.clone(), Some(golden.clone()));
        let start = Instant::now();
        let vm = engine.restore(RestoreSpec { machine, snapshot, base }).await.unwrap();
        stands.time(start);
        vm.kill().await.unwrap();
    }
}
