//! Machines that sleep and wake, and their copies: what only this engine promises, or only real
//! machines can show.

use std::sync::Arc;

use bhatti_engine::conformance::{Harness, patience};
use bhatti_engine::{
    Accel, Below, BootSpec, Engine, EngineError, Exit, Private, RestoreSpec, RootDisk, Save, Saved,
    Vm,
};
use bhatti_engine_qemu::{Arch, QemuEngine};
use bhatti_types::Mib;
use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};

use crate::harness::{OWNER, QemuHarness, Talk, accel, arch, ask};

/// A machine that was frozen after its boot, to be cloned.
pub(crate) struct Golden {
    snapshot: Utf8PathBuf,
    pub(crate) disk: RootDisk,
}

impl Golden {
    /// Boots one and freezes it.
    pub(crate) async fn new(harness: &QemuHarness, engine: &QemuEngine) -> Self {
        let (vm, disk) = booted(harness, engine).await;
        // Its guest answers, so it is done booting.
        ask(&*vm, "sync").await;
        let golden = Self::of(harness, &*vm, &disk).await;
        vm.kill().await.unwrap();
        golden
    }

    /// A running machine, as it is now.
    async fn of(harness: &QemuHarness, vm: &dyn Vm, disk: &RootDisk) -> Self {
        vm.pause().await.unwrap();
        let (snapshot, _) = save(harness, vm, None, None).await;
        let disk = vm.seal_disk(disk, &harness.shelf().join("layer")).await.unwrap();
        Self { snapshot, disk }
    }

    /// A machine that has never been, with a disk over the golden one's.
    pub(crate) async fn machine(&self, harness: &QemuHarness, engine: &QemuEngine) -> BootSpec {
        self.machine_of(harness, engine, None).await
    }

    async fn machine_of(
        &self,
        harness: &QemuHarness,
        engine: &QemuEngine,
        size: Option<Mib>,
    ) -> BootSpec {
        let mut spec = harness.spec().await;
        std::fs::remove_file(&spec.root.file).unwrap();
        let base = self.disk.base.clone().unwrap();
        let below = Below { layers: self.disk.layers.clone(), ..Below::image(base) };
        spec.root = engine.create_root(below, &spec.dir, size, OWNER).await.unwrap();
        spec
    }

    fn spec(&self, machine: BootSpec) -> RestoreSpec {
        let snapshot = self.snapshot.clone();
        RestoreSpec { machine, base: Some(snapshot.clone()), snapshot }
    }

    /// A clone that stands.
    pub(crate) async fn restore(&self, engine: &QemuEngine, machine: BootSpec) -> Arc<dyn Vm> {
        engine.restore(self.spec(machine)).await.unwrap()
    }

    /// A clone that runs.
    async fn wake(&self, harness: &QemuHarness, engine: &QemuEngine) -> Arc<dyn Vm> {
        let machine = self.machine(harness, engine).await;
        let vm = self.restore(engine, machine).await;
        harness.booted();
        vm.resume().await.unwrap();
        vm
    }
}

async fn booted(harness: &QemuHarness, engine: &QemuEngine) -> (Arc<dyn Vm>, RootDisk) {
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    (vm, disk)
}

async fn save(
    harness: &QemuHarness,
    vm: &dyn Vm,
    since: Option<&Utf8Path>,
    base: Option<&Utf8Path>,
) -> (Utf8PathBuf, Saved) {
    let into = harness.shelf();
    let (since, base) = (since.map(Utf8Path::to_owned), base.map(Utf8Path::to_owned));
    let saved = vm.save(Save { into: into.clone(), since, base }).await.unwrap();
    (into, saved)
}

/// One line of `/proc/<pid>/smaps_rollup`, in KiB.
fn memory_kib(vm: &dyn Vm, field: &str) -> u64 {
    let rollup = format!("/proc/{}/smaps_rollup", vm.record().pid);
    let text = std::fs::read_to_string(rollup).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Three clones at once, all with the past of the golden machine and none with another's present;
/// what they did not change is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_share_memory() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let (vm, disk) = booted(&harness, &engine).await;
    harness.remember(&*vm, "golden").await;
    let own = memory_kib(&*vm, "Private_Dirty:");
    let golden = Golden::of(&harness, &*vm, &disk).await;
    vm.kill().await.unwrap();

    let wake = || golden.wake(&harness, &engine);
    let (one, two, three) = tokio::join!(wake(), wake(), wake());
    let clones = [one, two, three];
    for (number, vm) in clones.iter().enumerate() {
        assert_eq!(harness.recall(&**vm).await, "golden");
        harness.remember(&**vm, &format!("clone {number}")).await;
    }
    for (number, vm) in clones.iter().enumerate() {
        assert_eq!(harness.recall(&**vm).await, format!("clone {number}"));
        let (mine, part) = (memory_kib(&**vm, "Private_Dirty:"), memory_kib(&**vm, "Pss:"));
        let resident = memory_kib(&**vm, "Rss:");
        assert!(mine < own * 2 / 3, "{mine} KiB of its own, the golden machine had {own}");
        assert!(part < resident, "{part} of {resident} KiB: nothing is shared");
    }
    for vm in clones {
        vm.kill().await.unwrap();
    }
}

/// Three generations of a clone: each writes what changed, and brings back what was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_save_writes_what_changed() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let golden = Golden::new(&harness, &engine).await;
    let base = Some(golden.snapshot.as_path());
    let vm = golden.wake(&harness, &engine).await;
    let mebibytes = |count: u32| format!("head -c {count}M /dev/urandom > /dev/shm/{count}");
    let sum = "cat /dev/shm/* | md5sum";

    ask(&*vm, &mebibytes(20)).await;
    let then = ask(&*vm, sum).await;
    vm.pause().await.unwrap();
    let (first, saved) = save(&harness, &*vm, None, base).await;
    // Its own pages and what the guest touched beside them, not the 80 MiB the golden one has.
    assert!((20 << 20..60 << 20).contains(&saved.written), "{saved:?}");
    let (_, idle) = save(&harness, &*vm, Some(&first), base).await;
    assert!(idle.written < 1 << 20, "nothing ran: {idle:?}");

    vm.resume().await.unwrap();
    ask(&*vm, &mebibytes(5)).await;
    let now = ask(&*vm, sum).await;
    vm.pause().await.unwrap();
    let (second, more) = save(&harness, &*vm, Some(&first), base).await;
    assert!((5 << 20..25 << 20).contains(&more.written), "{more:?}");
    assert!(more.total > saved.total, "{more:?} after {saved:?}");
    vm.kill().await.unwrap();

    // The first is needed by nobody but who wants it.
    for (snapshot, expected) in [(&first, &then), (&second, &now)] {
        let machine = golden.machine(&harness, &engine).await;
        let spec = RestoreSpec {
            machine,
            snapshot: snapshot.clone(),
            base: Some(golden.snapshot.clone()),
        };
        let vm = engine.restore(spec).await.unwrap();
        harness.booted();
        vm.resume().await.unwrap();
        assert_eq!(ask(&*vm, sum).await, *expected);
        vm.kill().await.unwrap();
        std::fs::remove_dir_all(snapshot).unwrap();
    }
}

/// While a machine stands its clock does, and afterwards the agent's is set by the next hello.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_stands_still_while_paused() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let (vm, _) = booted(&harness, &engine).await;
    let uptime = async || -> f64 {
        let text = ask(&*vm, "cut -d' ' -f1 /proc/uptime").await;
        text.parse().unwrap()
    };
    let before = uptime().await;
    vm.pause().await.unwrap();
    let start = std::time::Instant::now();
    // Time has to pass here; a save is something useful to do meanwhile.
    while start.elapsed() < std::time::Duration::from_secs(2) {
        save(&harness, &*vm, None, None).await;
    }
    let stood = start.elapsed().as_secs_f64();
    vm.resume().await.unwrap();
    let start = std::time::Instant::now();
    let after = uptime().await;
    let ran = start.elapsed().as_secs_f64() + 0.5;
    assert!(after - before < stood.min(ran.max(1.0)), "{before} to {after}, stood {stood} s");
    let clock: i64 = ask(&*vm, "date +%s").await.parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(clock.abs_diff(now.as_secs() as i64) <= 2, "{clock} is not now");
    vm.kill().await.unwrap();
}

/// A disk is sealed again and again under a guest that writes, reads and syncs; no byte is lost,
/// neither for it nor for who starts from the layers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealing_under_load_keeps_every_byte() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let (vm, mut disk) = booted(&harness, &engine).await;
    let writer = Talk::with(&*vm).await;
    let load = "cd ~ && for i in $(seq 1 40); do head -c 1M /dev/urandom > f$i; md5sum f$i >> sums; \
        sync; done && md5sum --quiet -c sums && echo all";
    let writes = writer.run(load);
    let seals = async {
        for _ in 0..5 {
            vm.pause().await.unwrap();
            let sealed = harness.shelf().join("layer");
            disk = vm.seal_disk(&disk, &sealed).await.unwrap();
            let metadata = std::fs::metadata(&sealed).unwrap();
            use std::os::unix::fs::MetadataExt;
            assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o400));
            assert_eq!(metadata.nlink(), 1, "it has lost its old name");
            assert!(!may_write(vm.record().pid, &sealed), "the VMM lets go of what is sealed");
            vm.resume().await.unwrap();
        }
    };
    let (said, ()) = tokio::join!(writes, seals);
    assert_eq!(said, "all");
    let before = writer.run("cat ~/sums | md5sum; sync").await;
    writer.end().await;
    vm.pause().await.unwrap();
    disk = vm.seal_disk(&disk, &harness.shelf().join("layer")).await.unwrap();

    // A machine that boots from the layers alone, while the first one still has them.
    let golden = Golden { snapshot: harness.shelf(), disk };
    let other = engine.boot(golden.machine(&harness, &engine).await).await.unwrap();
    harness.booted();
    let check = "cd ~ && md5sum --quiet -c sums && cat sums | md5sum";
    assert_eq!(ask(&*other, check).await, before);
    other.kill().await.unwrap();
    vm.kill().await.unwrap();
}

/// A daemon that ended before it heard that a disk was sealed asks again, and is told the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealing_may_be_asked_for_again() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let (vm, disk) = booted(&harness, &engine).await;
    ask(&*vm, "echo kept > ~/kept; sync").await;
    vm.pause().await.unwrap();
    let sealed = harness.shelf().join("layer");
    let done = vm.seal_disk(&disk, &sealed).await.unwrap();
    let record = vm.record();
    drop(vm);
    let vm = harness.qemu().await.adopt(&record).await.unwrap().expect("it lives");
    assert_eq!(vm.seal_disk(&disk, &sealed).await.unwrap(), done);
    // As if it had been interrupted before it removed the first name.
    std::fs::hard_link(&sealed, &disk.file).unwrap();
    assert_eq!(vm.seal_disk(&disk, &sealed).await.unwrap(), done);
    assert!(!disk.file.exists());
    vm.seal_disk(&disk, &harness.shelf().join("elsewhere")).await.unwrap_err();
    vm.resume().await.unwrap();
    assert_eq!(ask(&*vm, "cat ~/kept").await, "kept");
    vm.kill().await.unwrap();
}

/// A disk whose layer cannot be where it shall stays as it is, and in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sealing_changes_nothing() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let (vm, disk) = booted(&harness, &engine).await;
    ask(&*vm, "sync").await;
    vm.pause().await.unwrap();
    let taken = harness.shelf().join("taken");
    std::fs::write(&taken, "somebody else's").unwrap();
    for place in [taken.clone(), "/dev/shm/bhatti-test-layer".into(), harness.path().join("no/x")] {
        let error = vm.seal_disk(&disk, &place).await.unwrap_err();
        assert!(error.to_string().contains(place.as_str()), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "somebody else's");
    // A leftover in the new layer's place is no obstacle.
    std::fs::write(vm.record().dir.join("root-1.qcow2"), "rubbish").unwrap();
    vm.resume().await.unwrap();
    ask(&*vm, "echo still here > ~/x; sync; cat ~/x").await;
    vm.pause().await.unwrap();
    vm.seal_disk(&disk, &harness.shelf().join("layer")).await.unwrap();
    vm.resume().await.unwrap();
    assert_eq!(ask(&*vm, "cat ~/x").await, "still here");
    vm.kill().await.unwrap();
}

/// A full disk of the host stops a machine by itself. That is no pause: it cannot be saved, and
/// goes on when there is room. But a machine that was paused stays so, disk full or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_no_pause() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let mut spec = harness.spec().await;
    // All of what is written is memory of the VMM's control group, which has 128 MiB besides the
    // guest's where there is KVM.
    let small = SmallDisk::over(&spec.dir, Mib(80));
    let base = spec.root.base.clone().unwrap();
    let below = Below::image(base);
    spec.root = engine.create_root(below, &spec.dir, None, OWNER).await.unwrap();
    let vm = engine.boot(spec).await.unwrap();
    harness.booted();
    let talk = Talk::with(&*vm).await;
    let write = talk.run("head -c 100M /dev/zero | tr '\\0' x > ~/big; sync; echo done");
    let paused = async {
        let deadline = tokio::time::Instant::now() + patience();
        let refused = loop {
            assert!(tokio::time::Instant::now() < deadline, "the disk does not fill up");
            match vm.pause().await {
                Ok(()) if small.is_full() => break None,
                Ok(()) => vm.resume().await.unwrap(),
                Err(error) => break Some(error),
            }
            // Paused again at once, it would get to nothing on a busy host.
            let free = small.free();
            let idle = || small.free() == free && !small.is_full();
            while idle() && tokio::time::Instant::now() < deadline {
                tokio::task::yield_now().await;
            }
        };
        if let Some(error) = refused {
            assert!(error.to_string().contains("disk is full"), "{error}");
            let attempt = Save { into: harness.shelf(), since: None, base: None };
            vm.save(attempt).await.unwrap_err();
        }
        small.grow();
        // Whichever of the two it was.
        vm.resume().await.unwrap();
    };
    let (said, ()) = tokio::join!(write, paused);
    assert_eq!(said, "done");
    talk.end().await;
    vm.kill().await.unwrap();
}

/// A little file system of its own for a machine's directory.
pub(crate) struct SmallDisk(Utf8PathBuf);

impl SmallDisk {
    pub(crate) fn over(dir: &Utf8Path, Mib(size): Mib) -> Self {
        let Private { uid, gid } = OWNER;
        let options = format!("size={size}m,mode=700,uid={uid},gid={gid}");
        mount(&["-t", "tmpfs", "-o", &options, "bhatti-test", dir.as_str()]);
        Self(dir.to_owned())
    }

    fn is_full(&self) -> bool {
        self.free() < 16
    }

    /// In its blocks.
    fn free(&self) -> u64 {
        nix::sys::statvfs::statvfs(self.0.as_std_path()).unwrap().blocks_available()
    }

    pub(crate) fn grow(&self) {
        mount(&["-o", "remount,size=500m", self.0.as_str()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").args(["-l", self.0.as_str()]).status().ok();
    }
}

fn mount(arguments: &[&str]) {
    let status = std::process::Command::new("mount").args(arguments).status().unwrap();
    assert!(status.success(), "{arguments:?}");
}

/// Whether a process holds a file open for writing.
fn may_write(pid: i32, path: &Utf8Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &std::path::Path| {
        std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    };
    let wanted = identity(path.as_std_path()).unwrap();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut held = false;
    let writable = open.map(Result::unwrap).any(|entry| {
        if identity(&entry.path()) != Some(wanted) {
            return false;
        }
        held = true;
        let number = entry.file_name().into_string().unwrap();
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_ACCMODE != libc::O_RDONLY
    });
    assert!(held || writable, "the VMM does not even read it");
    writable
}

/// A machine that wakes on a larger disk than it fell asleep on sees the larger one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_may_have_grown_meanwhile() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let golden = Golden::new(&harness, &engine).await;
    let before = golden.disk.bytes.unwrap();
    let larger = Mib::holding(before).0 + 512;
    let machine = golden.machine_of(&harness, &engine, Some(Mib(larger))).await;
    let vm = golden.restore(&engine, machine).await;
    harness.booted();
    vm.resume().await.unwrap();
    let talk = Talk::with(&*vm).await;
    let deadline = tokio::time::Instant::now() + patience();
    let sectors = Mib(larger).bytes() / 512;
    // The guest's kernel looks when it is told, which is soon, not at once.
    while talk.run("cat /sys/block/vda/size").await != sectors.to_string() {
        assert!(tokio::time::Instant::now() < deadline, "it still sees the old size");
    }
    talk.end().await;
    vm.kill().await.unwrap();
}

/// A snapshot of another CPU or VMM is refused by its text, one of another clock by its number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_host_saved_is_foreign() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let golden = Golden::new(&harness, &engine).await;
    let manifest = golden.snapshot.join("manifest.json");
    let whole = std::fs::read_to_string(&manifest).unwrap();
    assert!(whole.contains(engine.fingerprint()), "{whole}");
    let khz = whole.split("\"tsc_khz\": ").nth(1).unwrap().split_whitespace().next().unwrap();
    let mut hosts =
        vec![(engine.fingerprint(), "qemu 1.0 microvm tcg Sinclair/80/1/1", "Sinclair")];
    // Only an emulated x86-64 guest counts with a counter of the host's that had to be measured.
    assert_eq!(khz == "null", (arch(), accel().0) != (Arch::X86_64, Accel::Tcg));
    if khz != "null" {
        hosts.push((khz, "3500", "time stamp counter"));
    }
    for (here, there, word) in hosts {
        std::fs::write(&manifest, whole.replace(here, there)).unwrap();
        let machine = golden.machine(&harness, &engine).await;
        match engine.restore(golden.spec(machine)).await.err() {
            Some(EngineError::Foreign { why }) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
        match engine.recognise(&golden.snapshot).await {
            Err(EngineError::Foreign { why }) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    std::fs::write(&manifest, whole).unwrap();
    engine.recognise(&golden.snapshot).await.unwrap();
}

/// A device state that is whole but none of this machine: QEMU itself refuses it, and is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_vmm_refuses_is_unusable() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let golden = Golden::new(&harness, &engine).await;
    let (state, manifest) = (golden.snapshot.join("state"), golden.snapshot.join("manifest.json"));
    let hash = |content: &[u8]| format!("{:032x}", xxhash_rust::xxh3::xxh3_128(content));
    let former = std::fs::read(&state).unwrap();
    // Some device by another name, as another version may call it.
    let place = former.windows(5).position(|name| name == b"timer").unwrap();
    let mut other = former.clone();
    other[place..place + 5].copy_from_slice(b"reimt");
    std::fs::write(&state, &other).unwrap();
    let text = std::fs::read_to_string(&manifest).unwrap();
    assert!(text.contains(&hash(&former)), "{text}");
    std::fs::write(&manifest, text.replace(&hash(&former), &hash(&other))).unwrap();

    let machine = golden.machine(&harness, &engine).await;
    let (id, dir) = (machine.id.clone(), machine.dir.clone());
    match engine.restore(golden.spec(machine)).await.err() {
        Some(EngineError::Unusable { why }) => {
            assert!(why.contains("the VMM refuses it") && why.contains("reimt"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert!(harness.groups(id.as_str()).is_empty());
    assert!(!dir.join("qmp.sock").exists());
}

/// A VMM that dies in the middle of a save is seen, and so is that nothing was saved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_during_a_save_is_an_error() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let (vm, disk) = booted(&harness, &engine).await;
    ask(&*vm, "head -c 60M /dev/urandom > /dev/shm/x").await;
    vm.pause().await.unwrap();
    let into = harness.shelf();
    let saving = vm.save(Save { into: into.clone(), since: None, base: None });
    let murder = async {
        let deadline = tokio::time::Instant::now() + patience();
        // The devices have been written, or even the first pages.
        while into.read_dir_utf8().unwrap().count() == 0 {
            assert!(tokio::time::Instant::now() < deadline, "the save does not begin");
            tokio::task::yield_now().await;
        }
        kill(nix::unistd::Pid::from_raw(vm.record().pid), Signal::SIGKILL).unwrap();
    };
    let (saved, ()) = tokio::join!(saving, murder);
    let error = saved.expect_err("half a machine was saved");
    assert!(!into.join("manifest.json").exists(), "{error}");
    assert!(matches!(vm.exited().await, Exit::Died { .. }));
    assert!(harness.traces(&vm.record()).await.is_empty());

    let golden = Golden { snapshot: into, disk };
    let machine = golden.machine(&harness, &engine).await;
    let error = engine.restore(golden.spec(machine)).await.err().unwrap();
    assert!(matches!(error, EngineError::Unusable { .. }), "{error}");
}

/// Whoever asked for a save may go away: the machine waits for its end before it goes on, and
/// is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_nobody_waits_for_harms_nobody() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let (vm, disk) = booted(&harness, &engine).await;
    harness.remember(&*vm, "whole").await;
    vm.pause().await.unwrap();
    let into = harness.shelf();
    let impatient = vm.save(Save { into: into.clone(), since: None, base: None });
    tokio::time::timeout(std::time::Duration::from_millis(5), impatient).await.unwrap_err();
    vm.resume().await.unwrap();
    // It was not let go on before the save was done, so the snapshot is one of a machine that
    // stood.
    assert!(into.join("manifest.json").exists());
    assert_eq!(harness.recall(&*vm).await, "whole");
    let kept = Golden { snapshot: into, disk: Golden::of(&harness, &*vm, &disk).await.disk };
    vm.kill().await.unwrap();
    let woken = kept.wake(&harness, &engine).await;
    assert_eq!(harness.recall(&*woken).await, "whole");
    woken.kill().await.unwrap();
}

/// Huge pages that the host does not have are asked for before anything starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_hugepages_are_named() {
    let harness = QemuHarness::new();
    let mut spec = harness.spec().await;
    // More than any host has reserved.
    spec.shape.memory = Mib(16 << 20);
    spec.hugepages = true;
    let id = spec.id.clone();
    match harness.qemu().await.boot(spec).await.err() {
        Some(EngineError::NoHugepages { needed, free }) => {
            assert_eq!(needed, 8 << 20);
            assert!(free < needed);
        }
        other => panic!("{other:?}"),
    }
    assert!(harness.groups(id.as_str()).is_empty());
}

/// A layer that is missing, or is another one, is named before anything starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_layer_is_named() {
    let harness = QemuHarness::new();
    let engine = harness.qemu().await;
    let golden = Golden::new(&harness, &engine).await;
    let layer = golden.disk.layers[0].clone();
    let mut machine = golden.machine(&harness, &engine).await;
    let other = harness.shelf().join("other");
    std::fs::copy(&layer, &other).unwrap();
    // Byte 24 is the most significant one of the size, byte 19 the least of a backing name's length.
    for (at, word) in [(24, "another size"), (19, "backing file")] {
        let file = std::fs::File::options().read(true).write(true).open(&other).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], at).unwrap();
        machine.root.layers = vec![other.clone()];
        let error = engine.restore(golden.spec(again(&machine))).await.err().unwrap();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains(other.as_str()) && cause.contains(word), "{cause}");
        std::fs::copy(&layer, &other).unwrap();
    }
    std::fs::remove_file(&other).unwrap();
    let error = engine.restore(golden.spec(again(&machine))).await.err().unwrap();
    assert!(error.to_string().contains(other.as_str()), "{error}");
    assert!(harness.groups(machine.id.as_str()).is_empty());
}

/// The same machine once more; a spec is used up.
fn again(spec: &BootSpec) -> BootSpec {
    BootSpec {
        id: spec.id.clone(),
        dir: spec.dir.clone(),
        shape: spec.shape,
        kernel: spec.kernel.clone(),
        initramfs: spec.initramfs.clone(),
        root: spec.root.clone(),
        nic: None,
        owner: spec.owner,
        hugepages: spec.hugepages,
    }
}
