//! Layers are merged under machines that have something to lose.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bhatti_engine::conformance::{Harness, patience};
use bhatti_engine::{Below, BootSpec, Engine, Exit, RestoreSpec, RootDisk, Save, Vm};
use bhatti_engine_qemu::QemuEngine;
use bhatti_types::Mib;
use camino::Utf8Path;
use nix::sys::signal::{Signal, kill};

use crate::harness::{OWNER, QemuHarness, Talk, ask};
use crate::snapshot::SmallDisk;

/// Reads every file from the disk and not from the guest's memory.
const CHECK: &str = "cd ~ && for f in *; do dd if=$f iflag=nocache count=0 status=none; done && \
    md5sum --quiet -c sums && cat sums changing | md5sum";

struct Sleeper<'a> {
    harness: &'a QemuHarness,
    engine: QemuEngine,
    vm: Arc<dyn Vm>,
    disk: RootDisk,
}

impl<'a> Sleeper<'a> {
    async fn new(harness: &'a QemuHarness) -> Self {
        let engine = harness.qemu().await;
        let spec = harness.spec().await;
        let disk = spec.root.clone();
        let vm = engine.boot(spec).await.unwrap();
        harness.booted();
        Self { harness, engine, vm, disk }
    }

    /// Writes that much to a new file, and something else to an old one.
    async fn write(&self, number: usize, mebibytes: u32) {
        let script = format!(
            "cd ~ && head -c {mebibytes}M /dev/urandom > f{number} && md5sum f{number} >> sums && \
             echo {number} > changing && rm -f gone && head -c 1M /dev/zero > gone && sync"
        );
        ask(&*self.vm, &script).await;
    }

    async fn seal(&mut self) {
        let sealed = self.harness.shelf().join("layer");
        self.disk = self.vm.seal_disk(&self.disk, &sealed).await.unwrap();
    }

    async fn pause_and_seal(&mut self) {
        self.vm.pause().await.unwrap();
        self.seal().await;
    }

    /// Freezes the machine and wakes it with another top.
    async fn sleep_and_wake(&mut self) {
        self.vm.pause().await.unwrap();
        let snapshot = self.harness.shelf();
        let save = Save { into: snapshot.clone(), since: None, base: None };
        self.vm.save(save).await.unwrap();
        self.seal().await;
        self.vm.kill().await.unwrap();
        let machine = self.heir(self.harness.spec().await).await;
        self.disk = machine.root.clone();
        let spec = RestoreSpec { machine, snapshot, base: None };
        self.vm = self.engine.restore(spec).await.unwrap();
        self.harness.booted();
        self.vm.resume().await.unwrap();
    }

    /// The same with a new top over the sealed layers.
    async fn heir(&self, mut spec: BootSpec) -> BootSpec {
        std::fs::remove_file(&spec.root.file).unwrap();
        let below = Below {
            layers: self.disk.layers.clone(),
            ..Below::image(self.disk.base.clone().unwrap())
        };
        spec.root = self.engine.create_root(below, &spec.dir, None, OWNER).await.unwrap();
        spec
    }

    /// Merges, and removes what is not needed any more.
    async fn merge(&mut self, keep: usize) {
        let merged = self.vm.merge_disk(&self.disk, keep).await.unwrap();
        assert_eq!(merged.layers, self.disk.layers[..keep]);
        assert_eq!(merged.file, self.disk.file);
        for layer in &self.disk.layers[keep..] {
            std::fs::remove_file(layer).unwrap();
        }
        self.disk = merged;
    }

    /// Another machine that boots from the disk of this one, which has ended or been ended.
    async fn boot_again(&mut self) {
        self.vm.kill().await.unwrap();
        let mut spec = self.harness.spec().await;
        spec.dir = self.disk.file.parent().unwrap().to_owned();
        spec.root = self.disk.clone();
        self.vm = self.engine.boot(spec).await.unwrap();
        self.harness.booted();
    }

    async fn check(&self) -> String {
        ask(&*self.vm, CHECK).await
    }

    /// The disk as it is, whatever becomes of its layers.
    fn copy(&self) -> RootDisk {
        let shelf = self.harness.shelf();
        let mut copy = RootDisk { file: shelf.join("top"), ..self.disk.clone() };
        std::fs::copy(&self.disk.file, &copy.file).unwrap();
        for (number, layer) in copy.layers.iter_mut().enumerate() {
            let name = shelf.join(number.to_string());
            std::fs::hard_link(&layer, &name).unwrap();
            *layer = name;
        }
        copy
    }

    /// What `qemu-img check` says of the top; nobody may be using it.
    fn judge_top(&self) -> serde_json::Value {
        let output = Command::new("qemu-img")
            .args(["check", "--output=json", "-f", "qcow2", self.disk.file.as_str()])
            .output()
            .expect("qemu-img is installed (Debian: qemu-utils)");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Bytes of a file on the medium.
fn on_medium(path: &Utf8Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Waits until a file is larger by a MiB: a copy into it has begun.
async fn growing(path: &Utf8Path, from: u64) {
    let deadline = Instant::now() + patience();
    while on_medium(path) < from + (1 << 20) {
        assert!(Instant::now() < deadline, "nothing is copied");
        tokio::task::yield_now().await;
    }
}

/// Whether a process has a file open, under whatever name.
fn has_open(pid: i32, file: (u64, u64)) -> bool {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut open = entries.filter_map(|entry| std::fs::metadata(entry.ok()?.path()).ok());
    open.any(|open| (open.dev(), open.ino()) == file)
}

fn identity(path: &Utf8Path) -> (u64, u64) {
    let metadata = std::fs::metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

/// Compares two disks, every byte, as QEMU reads them.
fn assert_equal(one: &RootDisk, two: &RootDisk) {
    let image = |disk: &RootDisk| {
        let file = |path| serde_json::json!({ "driver": "file", "filename": path });
        let base = disk.base.as_ref().unwrap();
        let mut image = serde_json::json!({ "driver": "raw", "file": file(base) });
        for layer in disk.layers.iter().chain([&disk.file]) {
            let over =
                serde_json::json!({ "driver": "qcow2", "file": file(layer), "backing": image });
            image = over;
        }
        format!("json:{image}")
    };
    let output = Command::new("qemu-img").args(["compare", &image(one), &image(two)]).output();
    let output = output.expect("qemu-img is installed (Debian: qemu-utils)");
    let (said, why) = (output.stdout.as_slice(), output.stderr.as_slice());
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(said), text(why));
}

fn nothing_wrong(check: &serde_json::Value) {
    assert_eq!(check["check-errors"], 0, "{check}");
    assert!(check.get("corruptions").is_none(), "{check}");
}

/// Six lives, each with files of its own and a change to a former one's; all is there after all
/// layers but one were merged and removed, in this life and in the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merged_chain_keeps_every_byte() {
    let harness = QemuHarness::new();
    let mut sleeper = Sleeper::new(&harness).await;
    for life in 0..6 {
        sleeper.write(life, 3).await;
        // Layers come from former lives and from this one.
        if life < 4 {
            sleeper.sleep_and_wake().await
        } else {
            sleeper.pause_and_seal().await
        }
        sleeper.vm.resume().await.unwrap();
    }
    let expected = sleeper.check().await;
    assert_eq!(sleeper.disk.layers.len(), 6);
    let merged: Vec<_> = sleeper.disk.layers[1..].iter().map(|path| identity(path)).collect();
    let pid = sleeper.vm.record().pid;
    assert!(merged.iter().all(|file| has_open(pid, *file)));

    sleeper.vm.pause().await.unwrap();
    sleeper.merge(1).await;
    sleeper.vm.resume().await.unwrap();
    assert_eq!(sleeper.check().await, expected);
    let open: Vec<_> = merged.iter().filter(|file| has_open(pid, **file)).collect();
    assert!(open.is_empty(), "the VMM holds on to {open:?}");

    sleeper.write(6, 3).await;
    let expected = sleeper.check().await;
    sleeper.sleep_and_wake().await;
    assert_eq!(sleeper.check().await, expected);
    assert_eq!(sleeper.disk.layers.len(), 2);
    // All of it, down to the image.
    sleeper.vm.pause().await.unwrap();
    let before = sleeper.copy();
    sleeper.merge(0).await;
    // As a freeze does it: nothing but what is in the files lives on.
    sleeper.vm.kill().await.unwrap();
    assert_equal(&before, &sleeper.disk);
    let check = sleeper.judge_top();
    nothing_wrong(&check);
    assert!(check.get("leaks").is_none(), "{check}");
    sleeper.boot_again().await;
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.kill().await.unwrap();
}

/// Layers come and go under a guest that writes, reads and syncs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merging_under_load_keeps_every_byte() {
    let harness = QemuHarness::new();
    let mut sleeper = Sleeper::new(&harness).await;
    let vm = Arc::clone(&sleeper.vm);
    let writer = Talk::with(&*vm).await;
    let load = "cd ~ && for i in $(seq 1 40); do head -c 1M /dev/urandom > f$i; md5sum f$i >> sums; \
        sync; done && echo done > changing; md5sum --quiet -c sums && echo all";
    let writes = writer.run(load);
    let merges = async {
        for keep in [0, 1, 0, 1, 1, 0] {
            for _ in 0..2 {
                sleeper.pause_and_seal().await;
                sleeper.vm.resume().await.unwrap();
            }
            sleeper.vm.pause().await.unwrap();
            sleeper.merge(keep).await;
            sleeper.vm.resume().await.unwrap();
        }
    };
    let (said, ()) = tokio::join!(writes, merges);
    assert_eq!(said, "all");
    writer.end().await;
    let expected = sleeper.check().await;
    ask(&*vm, "sync").await;
    vm.pause().await.unwrap();
    vm.kill().await.unwrap();
    nothing_wrong(&sleeper.judge_top());
    sleeper.boot_again().await;
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.kill().await.unwrap();
}

/// A VMM that dies in the middle of a copy, by its own or at our word, which it does at once:
/// the disk is what it was, through all its layers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_the_middle_loses_nothing() {
    let harness = QemuHarness::new();
    let mut sleeper = Sleeper::new(&harness).await;
    for number in 0..2 {
        sleeper.write(number, 50).await;
        sleeper.pause_and_seal().await;
        sleeper.vm.resume().await.unwrap();
    }
    let expected = sleeper.check().await;
    for ours in [false, true] {
        ask(&*sleeper.vm, "sync").await;
        sleeper.vm.pause().await.unwrap();
        let before = on_medium(&sleeper.disk.file);
        let merging = sleeper.vm.merge_disk(&sleeper.disk, 0);
        let death = async {
            growing(&sleeper.disk.file, before).await;
            if ours {
                let asked = Instant::now();
                sleeper.vm.kill().await.unwrap();
                assert!(asked.elapsed() < Duration::from_secs(5), "a kill has waited");
            } else {
                let pid = nix::unistd::Pid::from_raw(sleeper.vm.record().pid);
                kill(pid, Signal::SIGKILL).unwrap();
            }
        };
        let (merged, ()) = tokio::join!(merging, death);
        merged.expect_err("half a disk was merged");
        let exit = sleeper.vm.exited().await;
        assert!(matches!((ours, &exit), (true, Exit::Killed) | (false, Exit::Died { .. })));
        assert!(harness.traces(&sleeper.vm.record()).await.is_empty());
        nothing_wrong(&sleeper.judge_top());
        sleeper.boot_again().await;
        assert_eq!(sleeper.check().await, expected);
    }
    // What is in the top by now is not copied again, and nothing that was is wrong.
    ask(&*sleeper.vm, "sync").await;
    sleeper.vm.pause().await.unwrap();
    sleeper.merge(0).await;
    sleeper.boot_again().await;
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.kill().await.unwrap();
}

/// A daemon that dies while the VMM copies changes nothing: the next one finds the disk as it
/// was, gives the copy up, and can merge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_of_a_former_daemon_is_given_up() {
    let harness = QemuHarness::new();
    let mut sleeper = Sleeper::new(&harness).await;
    let record = sleeper.vm.record();
    sleeper.write(0, 1).await;
    sleeper.pause_and_seal().await;
    // The copy is on its way; or it is complete, and waits for a word that nobody will give.
    for (number, complete) in [(1, false), (2, true)] {
        sleeper.vm.resume().await.unwrap();
        sleeper.write(number, 60).await;
        sleeper.pause_and_seal().await;
        let Sleeper { harness, engine, vm, disk } = sleeper;
        let merging = {
            let disk = disk.clone();
            tokio::spawn(async move { vm.merge_disk(&disk, 1).await })
        };
        growing(&disk.file, 0).await;
        // With the last handle the machine's watcher goes.
        merging.abort();
        assert!(merging.await.unwrap_err().is_cancelled(), "it was merged in no time");
        if complete {
            let dir = record.dir.clone();
            tokio::task::spawn_blocking(move || until_pending(&dir)).await.unwrap();
        }
        let vm = harness.qemu().await.adopt(&record).await.unwrap().expect("it lives");
        assert_eq!(vm.disk_top().await.unwrap(), disk.file);
        let mut layers = disk.layers.iter();
        assert!(layers.all(|layer| has_open(record.pid, identity(layer))), "it was merged");
        sleeper = Sleeper { harness, engine, vm, disk };
    }
    sleeper.vm.resume().await.unwrap();
    let expected = sleeper.check().await;
    sleeper.vm.pause().await.unwrap();
    sleeper.merge(1).await;
    sleeper.vm.resume().await.unwrap();
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.kill().await.unwrap();
}

/// Waits, in the place of a daemon, until a VMM has copied all.
fn until_pending(dir: &Utf8Path) {
    let mut stream = UnixStream::connect(dir.join("qmp.sock")).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let deadline = Instant::now() + patience();
    stream.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
    loop {
        assert!(Instant::now() < deadline, "it does not come to the end");
        stream.write_all(b"{\"execute\": \"query-jobs\"}\n").unwrap();
        let line = lines.next().unwrap().unwrap();
        if line.contains("\"return\"") && line.contains("\"pending\"") {
            return;
        }
    }
}

/// A merge for which the host has no room fails; the disk is what it was, and when there is room
/// it works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_without_room_changes_nothing() {
    let harness = QemuHarness::new();
    let mut sleeper = Sleeper::new(&harness).await;
    for number in 0..2 {
        sleeper.write(number, 55).await;
        sleeper.pause_and_seal().await;
        sleeper.vm.resume().await.unwrap();
    }
    let expected = sleeper.check().await;
    sleeper.vm.kill().await.unwrap();
    let mut spec = harness.spec().await;
    let small = SmallDisk::over(&spec.dir, Mib(100));
    std::fs::write(spec.dir.join("root.qcow2"), "").unwrap();
    spec = sleeper.heir(spec).await;
    sleeper.disk = spec.root.clone();
    sleeper.vm = sleeper.engine.boot(spec).await.unwrap();
    harness.booted();
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.pause().await.unwrap();
    let error = sleeper.vm.merge_disk(&sleeper.disk, 0).await.unwrap_err();
    assert!(error.to_string().contains("No space"), "{error}");
    small.grow();
    sleeper.vm.resume().await.unwrap();
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.pause().await.unwrap();
    sleeper.merge(0).await;
    sleeper.vm.resume().await.unwrap();
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.kill().await.unwrap();
}

/// A merge that was done while its daemon died is not done by halves when it is asked for again,
/// also after another layer has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unheard_merge_harms_nobody() {
    let harness = QemuHarness::new();
    let mut sleeper = Sleeper::new(&harness).await;
    for number in 0..3 {
        sleeper.write(number, 2).await;
        sleeper.pause_and_seal().await;
        sleeper.vm.resume().await.unwrap();
    }
    let expected = sleeper.check().await;
    sleeper.vm.pause().await.unwrap();
    let unheard = sleeper.vm.merge_disk(&sleeper.disk, 1).await.unwrap();
    assert_eq!(unheard.layers.len(), 1);
    sleeper.seal().await;
    assert_eq!(sleeper.disk.layers.len(), 4, "the record says nothing of the merge");
    // The layer that holds what was merged is to be merged itself.
    sleeper.merge(2).await;
    sleeper.vm.resume().await.unwrap();
    assert_eq!(sleeper.check().await, expected);
    ask(&*sleeper.vm, "sync").await;
    sleeper.vm.pause().await.unwrap();
    sleeper.boot_again().await;
    assert_eq!(sleeper.check().await, expected);
    sleeper.vm.kill().await.unwrap();
}
