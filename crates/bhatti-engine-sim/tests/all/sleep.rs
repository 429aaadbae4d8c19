//! Pausing, saving, restoring and sealing, as a lifecycle test sees them.

use std::time::Duration;

use bhatti_engine::{BootSpec, Engine, EngineError, Exit, RestoreSpec, Save, Saved, Vm};
use bhatti_engine::{Carrier, conformance::Harness};
use bhatti_engine_sim::{Call, Fault, SimEngine};
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{SimHarness, boot};

impl SimHarness {
    /// An empty directory for a snapshot.
    fn directory(&self, name: &str) -> Utf8PathBuf {
        let path = Utf8Path::from_path(self.scratch.path()).expect("plain text").join(name);
        std::fs::create_dir(&path).expect("a directory");
        path
    }

    /// A paused machine with this memory.
    async fn paused(&self, memory: &[u8]) -> std::sync::Arc<dyn Vm> {
        let vm = boot(self).await.expect("boots");
        assert!(self.host.set_memory(&vm.record().id, memory.to_vec()));
        vm.pause().await.expect("pauses");
        vm
    }

    async fn spec_of(&self, snapshot: &Utf8Path, base: Option<&Utf8Path>) -> RestoreSpec {
        let machine = self.spec().await;
        RestoreSpec { machine, snapshot: snapshot.to_owned(), base: base.map(Utf8Path::to_owned) }
    }

    async fn restore(
        &self,
        snapshot: &Utf8Path,
        base: Option<&Utf8Path>,
    ) -> Result<EngineId, EngineError> {
        let spec = self.spec_of(snapshot, base).await;
        let vm = self.engine().await.restore(spec).await?;
        Ok(vm.record().id)
    }
}

fn whole(into: &Utf8Path) -> Save {
    Save { into: into.to_owned(), since: None, base: None }
}

#[tokio::test]
async fn memory_comes_back_into_a_paused_machine() {
    let harness = SimHarness::new();
    let vm = harness.paused(b"work").await;
    let saved = harness.directory("saved");
    vm.save(whole(&saved)).await.expect("saves");
    assert_eq!(harness.host.paused(&vm.record().id), Some(true), "it stays paused");
    // What happens after the save is not in it.
    harness.host.set_memory(&vm.record().id, b"more".to_vec());
    vm.kill().await.expect("ends");

    for _ in 0..2 {
        let id = harness.restore(&saved, None).await.expect("restores");
        assert_eq!(harness.host.memory(&id).as_deref(), Some(&b"work"[..]));
        assert_eq!(harness.host.paused(&id), Some(true));
    }
    assert_eq!(harness.host.memory(&vm.record().id), None, "the first one has ended");
}

#[tokio::test]
async fn only_what_changed_is_written_again() {
    let harness = SimHarness::new();
    let vm = harness.paused(&[7; 5000]).await;
    let (one, two, three) =
        (harness.directory("1"), harness.directory("2"), harness.directory("3"));
    let first = vm.save(whole(&one)).await.expect("saves");
    assert!(first.written > 5000 && first.written == first.total, "{first:?}");
    let since =
        |since: &Utf8Path, into: &Utf8Path| Save { since: Some(since.to_owned()), ..whole(into) };
    let second = vm.save(since(&one, &two)).await.expect("saves");
    assert_eq!(second, Saved { written: second.total - 5000, total: first.total });
    harness.host.set_memory(&vm.record().id, vec![8; 5000]);
    let third = vm.save(since(&two, &three)).await.expect("saves");
    assert_eq!(third.written, third.total);
    // The linked one needs nothing of the one it was linked from.
    std::fs::remove_dir_all(&one).expect("removes");
    let id = harness.restore(&two, None).await.expect("restores");
    assert_eq!(harness.host.memory(&id), Some(vec![7; 5000]));
}

#[tokio::test]
async fn any_damaged_byte_and_any_missing_file_is_unusable() {
    let harness = SimHarness::new();
    let saved = harness.directory("saved");
    harness.paused(b"work").await.save(whole(&saved)).await.expect("saves");
    for entry in std::fs::read_dir(&saved).expect("lists").flatten() {
        let good = std::fs::read(entry.path()).expect("reads");
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x20;
            std::fs::write(entry.path(), bad).expect("writes");
            let outcome = harness.restore(&saved, None).await;
            assert!(matches!(outcome, Err(EngineError::Unusable { .. })), "{entry:?} {place}");
        }
        std::fs::remove_file(entry.path()).expect("removes");
        let outcome = harness.restore(&saved, None).await;
        assert!(matches!(outcome, Err(EngineError::Unusable { .. })), "{entry:?} {outcome:?}");
        std::fs::write(entry.path(), good).expect("writes");
    }
    assert_eq!(harness.host.running().len(), 1, "nothing was started");
    harness.restore(&saved, None).await.expect("whole again");
}

#[tokio::test]
async fn what_is_foreign_is_known_and_another_size_unusable() {
    let harness = SimHarness::new();
    let saved = harness.directory("saved");
    harness.paused(b"work").await.save(whole(&saved)).await.expect("saves");
    let other = SimEngine::new(harness.host.clone()).with_fingerprint("another CPU");
    assert_eq!(other.fingerprint(), "another CPU");
    let outcome = other.restore(harness.spec_of(&saved, None).await).await;
    assert!(matches!(outcome, Err(EngineError::Foreign { .. })));
    assert!(matches!(other.recognise(&saved).await, Err(EngineError::Foreign { .. })));
    harness.engine().await.recognise(&saved).await.expect("its own");
    let mut larger = harness.spec_of(&saved, None).await;
    larger.machine.shape.memory = Mib(512);
    let outcome = harness.engine().await.restore(larger).await;
    assert!(matches!(outcome, Err(EngineError::Unusable { .. })));
}

#[tokio::test]
async fn a_clone_stands_on_its_golden_snapshot() {
    let harness = SimHarness::new();
    let (golden, other) = (harness.directory("golden"), harness.directory("other"));
    harness.paused(b"fresh").await.save(whole(&golden)).await.expect("saves");
    harness.paused(b"fresh").await.save(whole(&other)).await.expect("saves");

    let spec = harness.spec_of(&golden, Some(&golden)).await;
    let clone = harness.engine().await.restore(spec).await.expect("restores");
    let into = harness.directory("clone");
    clone.save(whole(&into)).await.expect_err("its base is not named");
    let save = Save { base: Some(golden.clone()), ..whole(&into) };
    clone.save(save).await.expect("saves");

    // A base may be moved.
    let moved = golden.with_file_name("moved");
    std::fs::rename(&golden, &moved).expect("renames");
    harness.restore(&into, Some(&moved)).await.expect("restores");
    for base in [Some(&*other), None, Some(&*golden)] {
        let outcome = harness.restore(&into, base).await;
        assert!(matches!(outcome, Err(EngineError::Unusable { .. })), "{base:?} {outcome:?}");
    }
}

#[tokio::test]
async fn a_running_machine_is_neither_saved_nor_sealed() {
    let harness = SimHarness::new();
    let spec = harness.spec().await;
    let root = spec.root.clone();
    let vm = harness.engine().await.boot(spec).await.expect("boots");
    let into = harness.directory("saved");
    vm.save(whole(&into)).await.expect_err("it runs");
    vm.seal_disk(&root, &into.join("layer")).await.expect_err("it runs");
    vm.kill().await.expect("ends");
    assert!(matches!(vm.pause().await, Err(EngineError::Gone)));
    assert!(matches!(vm.resume().await, Err(EngineError::Gone)));
    assert!(matches!(vm.save(whole(&into)).await, Err(EngineError::Gone)));
}

#[tokio::test]
async fn a_sealed_layer_is_kept_and_replaces_nothing() {
    let harness = SimHarness::new();
    let spec: BootSpec = harness.spec().await;
    let (root, layers) = (spec.root.clone(), harness.directory("layers"));
    let vm = harness.engine().await.boot(spec).await.expect("boots");
    vm.pause().await.expect("pauses");
    let written = std::fs::read(&root.file).expect("reads");
    let first = vm.seal_disk(&root, &layers.join("1")).await.expect("seals");
    vm.seal_disk(&first, &layers.join("1")).await.expect_err("that layer exists");
    let second = vm.seal_disk(&first, &layers.join("2")).await.expect("seals");
    assert_eq!(second.layers, [layers.join("1"), layers.join("2")]);
    assert_eq!((&second.base, second.bytes), (&root.base, root.bytes));
    assert_eq!(std::fs::read(layers.join("1")).expect("reads"), written);
    assert!(second.file.exists());
}

#[tokio::test]
async fn each_step_of_a_sleep_fails_on_demand() {
    let harness = SimHarness::new();
    let vm = boot(&harness).await.expect("boots");
    let id = vm.record().id;
    let fail = |call| harness.host.inject(call, Fault::Fail("no luck".to_owned()));
    fail(Call::Pause);
    vm.pause().await.expect_err("told to fail");
    assert_eq!(harness.host.paused(&id), Some(false));
    vm.pause().await.expect("the fault is spent");
    fail(Call::Resume);
    vm.resume().await.expect_err("told to fail");
    assert_eq!(harness.host.paused(&id), Some(true));

    let saved = harness.directory("saved");
    fail(Call::Save);
    vm.save(whole(&saved)).await.expect_err("told to fail");
    let outcome = harness.restore(&saved, None).await;
    assert!(matches!(outcome, Err(EngineError::Unusable { .. })), "rubbish is no snapshot");
    let saved = harness.directory("again");
    vm.save(whole(&saved)).await.expect("the fault is spent");
    fail(Call::Restore);
    let outcome = harness.restore(&saved, None).await;
    assert!(matches!(outcome, Err(EngineError::Control { .. })), "a host's fault, not its own");

    harness.host.inject(Call::Restore, Fault::Die("crashed at wake".to_owned()));
    let spec = harness.spec_of(&saved, None).await;
    let woken = harness.engine().await.restore(spec).await.expect("it dies after it has started");
    assert_eq!(woken.exited().await, Exit::Died { detail: "crashed at wake".to_owned() });
    assert_eq!(harness.host.faults_left(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_passes_the_link_of_a_paused_machine() {
    let harness = SimHarness::new();
    let vm = boot(&harness).await.expect("boots");
    let Carrier::Single(mut link) = vm.open_link().await.expect("a link");
    vm.pause().await.expect("pauses");
    link.write_all(b"ping").await.expect("the cable takes it");
    let mut answer = [0; 4];
    let patience = Duration::from_secs(60);
    assert!(tokio::time::timeout(patience, link.read_exact(&mut answer)).await.is_err());
    vm.resume().await.expect("resumes");
    link.read_exact(&mut answer).await.expect("it was only late");
    assert_eq!(&answer, b"ping");
    vm.pause().await.expect("pauses");
    vm.kill().await.expect("ends");
    assert_eq!(link.read(&mut answer).await.expect("an end"), 0, "a paused machine can end");
}

#[tokio::test]
async fn the_next_daemon_finds_a_machine_still_paused() {
    let harness = SimHarness::new();
    let vm = harness.paused(b"work").await;
    let adopted = harness.engine().await.adopt(&vm.record()).await.expect("asks");
    let adopted = adopted.expect("it lives");
    let saved = harness.directory("saved");
    adopted.save(whole(&saved)).await.expect("saves what it did not boot");
    adopted.resume().await.expect("resumes");
    assert_eq!(harness.host.paused(&vm.record().id), Some(false));
}
