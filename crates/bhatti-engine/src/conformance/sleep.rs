//! The cases about machines that stand, sleep and wake.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::{EngineError, Exit, Harness, Vm, VmRecord, boot, kill, nothing_left, ping, within};
use crate::{Below, BootSpec, Engine, RestoreSpec, RootDisk, Save, Saved};

/// How long a machine that stands is listened to. Too short would only let a broken engine pass.
const SILENCE: Duration = Duration::from_millis(300);

/// What is left of a machine whose memory and disk were kept.
struct Kept {
    snapshot: Utf8PathBuf,
    disk: RootDisk,
}

async fn pause(vm: &dyn Vm) {
    within("pause", vm.pause()).await.expect("pausing works");
}

async fn resume(vm: &dyn Vm) {
    within("resume", vm.resume()).await.expect("resuming works");
}

async fn save(
    harness: &dyn Harness,
    vm: &dyn Vm,
    since: Option<&Utf8Path>,
    base: Option<&Utf8Path>,
) -> (Utf8PathBuf, Saved) {
    let into = harness.shelf();
    let (since, base) = (since.map(Utf8Path::to_owned), base.map(Utf8Path::to_owned));
    let save = Save { into: into.clone(), since, base };
    let saved = within("save", vm.save(save)).await.expect("a paused machine is saved");
    (into, saved)
}

/// Pauses a machine, saves it and seals its disk.
async fn keep(harness: &dyn Harness, vm: &dyn Vm, disk: &RootDisk) -> Kept {
    pause(vm).await;
    let (snapshot, _) = save(harness, vm, None, None).await;
    let disk = seal(harness, vm, disk).await;
    Kept { snapshot, disk }
}

async fn seal(harness: &dyn Harness, vm: &dyn Vm, disk: &RootDisk) -> RootDisk {
    let sealed = harness.shelf().join("layer");
    assert_eq!(top(vm).await, disk.file);
    let sealing = within("seal the disk", vm.seal_disk(disk, &sealed)).await;
    let disk = sealing.expect("a paused machine's disk can be sealed");
    assert_eq!(top(vm).await, disk.file, "it says what it was told to write");
    disk
}

async fn top(vm: &dyn Vm) -> Utf8PathBuf {
    within("say what it writes", vm.disk_top()).await.expect("a machine knows its disk")
}

/// A new machine whose disk lies on what was sealed of another.
async fn heir(harness: &dyn Harness, engine: &dyn Engine, disk: &RootDisk) -> BootSpec {
    let mut spec = harness.spec().await;
    std::fs::remove_file(&spec.root.file).expect("the disk it would have had");
    let base = disk.base.clone().expect("a disk on an image");
    let (layers, format, bytes) = (disk.layers.clone(), disk.format, disk.bytes);
    let below = Below { base, layers, format, bytes };
    let root = engine.create_root(below, &spec.dir, None, spec.owner);
    spec.root = within("make a disk", root).await.expect("a disk can lie on layers");
    spec
}

async fn restore(
    harness: &dyn Harness,
    engine: &dyn Engine,
    kept: &Kept,
    base: Option<&Utf8Path>,
) -> Arc<dyn Vm> {
    let machine = heir(harness, engine, &kept.disk).await;
    let (id, snapshot, base) =
        (machine.id.clone(), kept.snapshot.clone(), base.map(Utf8Path::to_owned));
    let spec = RestoreSpec { machine, snapshot, base };
    let vm = within("restore", engine.restore(spec)).await.expect("a machine wakes");
    assert_eq!(vm.record().id, id, "the record is of the machine that was asked for");
    harness.booted();
    vm
}

/// Nothing of it runs. Afterwards it needs another link.
async fn stands(harness: &dyn Harness, vm: &dyn Vm) {
    let carrier = within("open the link", vm.open_link()).await.expect("the link opens");
    let answer = tokio::time::timeout(SILENCE, harness.ping(carrier)).await;
    assert!(!matches!(answer, Ok(Ok(()))), "a machine that stands has answered");
}

/// Pausing and resuming are idempotent; between them nothing of the guest runs.
pub async fn a_paused_machine_stands_still(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    ping(harness, &*vm).await;
    resume(&*vm).await;
    pause(&*vm).await;
    pause(&*vm).await;
    stands(harness, &*vm).await;
    resume(&*vm).await;
    resume(&*vm).await;
    ping(harness, &*vm).await;
    kill(&*vm).await;
    assert!(matches!(vm.pause().await, Err(EngineError::Gone)), "the dead do not stand");
    assert!(matches!(vm.resume().await, Err(EngineError::Gone)), "nor do they go on");
    nothing_left(harness, &vm.record()).await;
}

/// A running machine is neither saved nor has its disk sealed, and is not harmed by the attempt.
pub async fn only_a_paused_machine_is_saved(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    let attempt = Save { into: harness.shelf(), since: None, base: None };
    assert!(within("refuse", vm.save(attempt)).await.is_err(), "it runs");
    let sealed = harness.shelf().join("layer");
    assert!(within("refuse", vm.seal_disk(&disk, &sealed)).await.is_err(), "it runs");
    assert!(!sealed.exists(), "a refused sealing leaves nothing");
    ping(harness, &*vm).await;
    // What was refused once works when it may.
    keep(harness, &*vm, &disk).await;
    kill(&*vm).await;
    let attempt = Save { into: harness.shelf(), since: None, base: None };
    assert!(matches!(vm.save(attempt).await, Err(EngineError::Gone)), "it is dead");
}

/// A snapshot holds what was remembered when it was taken, and can be used again and again, also
/// while the machine it is of runs on. A later one writes only what is new.
pub async fn a_snapshot_brings_memory_back(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    harness.remember(&*vm, "one").await;
    let first = keep(harness, &*vm, &disk).await;
    resume(&*vm).await;
    harness.remember(&*vm, "two").await;
    pause(&*vm).await;
    let (snapshot, saved) = save(harness, &*vm, Some(&first.snapshot), None).await;
    assert!(saved.written <= saved.total, "{saved:?}");
    let disk = seal(harness, &*vm, &first.disk).await;
    let second = Kept { snapshot, disk };
    // Saving again, with nothing done in between, is about as cheap as it can be.
    let (_, again) = save(harness, &*vm, Some(&second.snapshot), None).await;
    assert!(again.written <= saved.written, "{again:?} after {saved:?}");

    for (kept, text) in [(&first, "one"), (&second, "two"), (&first, "one")] {
        let woken = restore(harness, &*engine, kept, None).await;
        stands(harness, &*woken).await;
        resume(&*woken).await;
        assert_eq!(harness.recall(&*woken).await, text);
        kill(&*woken).await;
        nothing_left(harness, &woken.record()).await;
    }
    resume(&*vm).await;
    assert_eq!(harness.recall(&*vm).await, "two");
    kill(&*vm).await;
}

/// Clones of one snapshot know what it knew and nothing of each other; each can be saved over it
/// and wakes over it, and over nothing else.
pub async fn clones_share_a_past_and_no_present(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    harness.remember(&*vm, "golden").await;
    let golden = keep(harness, &*vm, &disk).await;
    kill(&*vm).await;
    let base = Some(golden.snapshot.as_path());

    let one = restore(harness, &*engine, &golden, base).await;
    let two = restore(harness, &*engine, &golden, base).await;
    for vm in [&one, &two] {
        resume(&**vm).await;
        assert_eq!(harness.recall(&**vm).await, "golden");
    }
    harness.remember(&*one, "one").await;
    assert_eq!(harness.recall(&*two).await, "golden");
    pause(&*one).await;
    let (snapshot, saved) = save(harness, &*one, None, base).await;
    kill(&*one).await;
    kill(&*two).await;
    assert!(saved.written > 0, "{saved:?}");

    let kept = Kept { snapshot, disk: golden.disk.clone() };
    let woken = restore(harness, &*engine, &kept, base).await;
    resume(&*woken).await;
    assert_eq!(harness.recall(&*woken).await, "one");
    // A life later it is still a machine on that base.
    pause(&*woken).await;
    save(harness, &*woken, Some(&kept.snapshot), base).await;
    kill(&*woken).await;
    unusable(harness, &*engine, &kept, None, |_| {}).await;
}

/// What was sealed is below the new disk and is not written any more.
pub async fn a_sealed_disk_is_below(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    ping(harness, &*vm).await;
    pause(&*vm).await;
    let mut last = disk;
    for layers in 1..=2 {
        let sealed = seal(harness, &*vm, &last).await;
        assert!(sealed.file.exists() && sealed.layers.iter().all(|l| l.exists()), "{sealed:?}");
        assert_eq!((sealed.layers.len(), &sealed.base), (layers, &last.base));
        assert_eq!(sealed.layers[..layers - 1], last.layers);
        assert_eq!(sealed.bytes, last.bytes);
        last = sealed;
    }
    resume(&*vm).await;
    ping(harness, &*vm).await;
    let heir = heir(harness, &*engine, &last).await;
    let heir = within("boot", engine.boot(heir)).await.expect("a machine boots on layers");
    harness.booted();
    ping(harness, &*heir).await;
    kill(&*heir).await;
    kill(&*vm).await;
}

/// Layers whose content was copied up can be removed, under the machine and for whoever starts
/// from its disk. What is kept, and what was merged while it is still there, is not written.
pub async fn merged_layers_are_not_needed(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let mut disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    ping(harness, &*vm).await;
    for _ in 0..4 {
        pause(&*vm).await;
        disk = seal(harness, &*vm, &disk).await;
        resume(&*vm).await;
        ping(harness, &*vm).await;
    }
    assert!(within("refuse", vm.merge_disk(&disk, 1)).await.is_err(), "it runs");
    pause(&*vm).await;
    let before: Vec<_> = disk.layers.iter().map(|layer| stamp(layer)).collect();
    let all = within("merge nothing", vm.merge_disk(&disk, 4)).await.expect("nothing to do");
    assert_eq!(all, disk);
    let merged = within("merge", vm.merge_disk(&disk, 1)).await.expect("layers can be merged");
    assert_eq!(merged, RootDisk { layers: disk.layers[..1].to_vec(), ..disk.clone() });
    let after: Vec<_> = disk.layers.iter().map(|layer| stamp(layer)).collect();
    assert!(before == after, "a sealed layer was written");
    // Somebody died before he heard of it, and asks again.
    let again = within("merge again", vm.merge_disk(&disk, 1)).await.expect("it is done");
    assert_eq!(again, merged);
    for layer in &disk.layers[1..] {
        std::fs::remove_file(layer).expect("a layer");
    }
    resume(&*vm).await;
    ping(harness, &*vm).await;
    pause(&*vm).await;
    // With the top sealed above it the disk is one like any other.
    let kept = keep(harness, &*vm, &merged).await;
    assert_eq!(kept.disk.layers.len(), 2);
    kill(&*vm).await;
    assert!(matches!(vm.merge_disk(&kept.disk, 0).await, Err(EngineError::Gone)), "it is dead");
    let woken = restore(harness, &*engine, &kept, None).await;
    resume(&*woken).await;
    ping(harness, &*woken).await;
    kill(&*woken).await;
}

/// When a layer was last written, and how long it is. It can be as large as the disk, so nobody
/// reads all of it twice.
fn stamp(layer: &Utf8Path) -> Option<(u64, i64, i64)> {
    let metadata = layer.metadata().ok()?;
    Some((metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

/// A snapshot that was damaged anywhere, or is none, is said to be so and starts nothing.
pub async fn a_damaged_snapshot_is_unusable(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    harness.remember(&*vm, "what is to be damaged").await;
    let kept = keep(harness, &*vm, &disk).await;
    kill(&*vm).await;

    for file in files(&kept.snapshot) {
        for damage in [flip, cut, remove] {
            let whole = std::fs::read(&file).expect("a file of the snapshot");
            damage(&file);
            unusable(harness, &*engine, &kept, None, |_| {}).await;
            unusable(harness, &*engine, &kept, Some(&kept.snapshot), |_| {}).await;
            // As it was, in a file of its own.
            std::fs::remove_file(&file).ok();
            std::fs::write(&file, whole).expect("the file can be put back");
        }
    }
    let woken = restore(harness, &*engine, &kept, None).await;
    resume(&*woken).await;
    assert_eq!(harness.recall(&*woken).await, "what is to be damaged");
    kill(&*woken).await;

    let nothing = Kept { snapshot: harness.shelf(), disk: kept.disk };
    unusable(harness, &*engine, &nothing, None, |_| {}).await;
}

fn files(dir: &Utf8Path) -> Vec<Utf8PathBuf> {
    let entries = dir.read_dir_utf8().expect("the directory is there");
    entries.map(|entry| entry.expect("an entry").path().to_owned()).collect()
}

fn flip(path: &Utf8Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).expect("it opens");
    let middle = file.metadata().expect("it has a length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("it is not empty");
    file.write_all_at(&[byte[0] ^ 1], middle).expect("it can be written");
}

fn cut(path: &Utf8Path) {
    let file = std::fs::File::options().write(true).open(path).expect("it opens");
    let length = file.metadata().expect("it has a length").len();
    file.set_len(length - 1).expect("it can be cut");
}

fn remove(path: &Utf8Path) {
    std::fs::remove_file(path).expect("it can be removed");
}

/// A snapshot is of a machine of one size.
pub async fn a_machine_of_another_size_is_unusable(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    let kept = keep(harness, &*vm, &disk).await;
    kill(&*vm).await;
    unusable(harness, &*engine, &kept, None, |spec| spec.shape.milli_cpus += 1000).await;
    unusable(harness, &*engine, &kept, None, |spec| spec.shape.memory.0 *= 2).await;
}

async fn unusable(
    harness: &dyn Harness,
    engine: &dyn Engine,
    kept: &Kept,
    base: Option<&Utf8Path>,
    change: impl Fn(&mut BootSpec),
) {
    let mut machine = heir(harness, engine, &kept.disk).await;
    change(&mut machine);
    let record = VmRecord {
        id: machine.id.clone(),
        engine: engine.info().name,
        dir: machine.dir.clone(),
        pid: 0,
        start_ticks: 0,
        host_boot_id: String::new(),
        cgroups: Vec::new(),
        memory: None,
        memory_at: Vec::new(),
    };
    let before = files(&machine.dir);
    let (snapshot, base) = (kept.snapshot.clone(), base.map(Utf8Path::to_owned));
    let result = engine.restore(RestoreSpec { machine, snapshot, base });
    match within("refuse", result).await {
        // Damage may look like another host's mark.
        Err(EngineError::Unusable { why } | EngineError::Foreign { why }) => {
            assert!(!why.is_empty() && why.len() < 4096, "{why}");
        }
        Err(other) => panic!("not unusable, but {other:?}"),
        Ok(_) => panic!("it was restored"),
    }
    nothing_left(harness, &record).await;
    assert_eq!(files(&record.dir), before, "the directory is as it was");
}

/// A new engine finds a paused machine paused: it can be saved as it is, and goes on.
pub async fn a_paused_machine_is_adopted_as_it_is(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let spec = harness.spec().await;
    let disk = spec.root.clone();
    let vm = within("boot", engine.boot(spec)).await.expect("a machine boots");
    harness.booted();
    harness.remember(&*vm, "before").await;
    pause(&*vm).await;
    let record = vm.record();
    drop((vm, engine));

    let engine = harness.engine().await;
    let adopted = within("adopt", engine.adopt(&record)).await.expect("adoption works");
    let vm = adopted.expect("the machine is still there");
    let (snapshot, _) = save(harness, &*vm, None, None).await;
    let disk = seal(harness, &*vm, &disk).await;
    resume(&*vm).await;
    assert_eq!(harness.recall(&*vm).await, "before");
    kill(&*vm).await;
    let woken = restore(harness, &*engine, &Kept { snapshot, disk }, None).await;
    // And so is one that was woken and has not run.
    let record = woken.record();
    drop((woken, engine));
    let engine = harness.engine().await;
    let adopted = within("adopt", engine.adopt(&record)).await.expect("adoption works");
    let vm = adopted.expect("the machine is still there");
    stands(harness, &*vm).await;
    resume(&*vm).await;
    assert_eq!(harness.recall(&*vm).await, "before");
    kill(&*vm).await;
}

/// A machine that stands ends like any other, by us and by others.
pub async fn the_paused_can_be_killed(harness: &dyn Harness) {
    let engine = harness.engine().await;
    let vm = boot(harness, &*engine).await;
    pause(&*vm).await;
    kill(&*vm).await;
    assert_eq!(within("exit", vm.exited()).await, Exit::Killed);
    nothing_left(harness, &vm.record()).await;

    let vm = boot(harness, &*engine).await;
    pause(&*vm).await;
    harness.murder(&vm.record()).await;
    assert!(matches!(within("notice", vm.exited()).await, Exit::Died { .. }));
    nothing_left(harness, &vm.record()).await;
}
