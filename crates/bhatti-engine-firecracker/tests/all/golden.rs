//! A machine that was frozen after its boot, to be cloned.

use std::sync::Arc;

use bhatti_engine::conformance::Harness;
use bhatti_engine::{Below, BootSpec, Engine, RestoreSpec, RootDisk, Save, Vm};
use bhatti_engine_firecracker::FirecrackerEngine;
use camino::Utf8PathBuf;

use crate::harness::{FirecrackerHarness, OWNER, ask};

#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Golden {
    pub(crate) snapshot: Utf8PathBuf,
    disk: RootDisk,
}

impl Golden {
    /// Boots one and freezes it.
    pub(crate) async fn new(harness: &FirecrackerHarness, engine: &FirecrackerEngine) -> Self {
        Self::of(harness, engine, harness.spec().await).await
    }

    /// Boots this one and freezes it.
    pub(crate) async fn of(
        harness: &FirecrackerHarness,
        engine: &FirecrackerEngine,
        spec: BootSpec,
    ) -> Self {
        let disk = spec.root.clone();
        let vm = engine.boot(spec).await.unwrap();
        harness.booted();
        Self::freeze(harness, vm, disk).await
    }

    /// Freezes this one, with its disk, and ends it.
    pub(crate) async fn freeze(
        harness: &FirecrackerHarness,
        vm: Arc<dyn Vm>,
        disk: RootDisk,
    ) -> Self {
        // Its guest answers, so it is done booting.
        ask(&*vm, "sync").await;
        vm.pause().await.unwrap();
        let snapshot = harness.shelf();
        vm.save(Save { into: snapshot.clone(), since: None, base: None }).await.unwrap();
        let disk = vm.seal_disk(&disk, &harness.shelf().join("layer")).await.unwrap();
        vm.kill().await.unwrap();
        Self { snapshot, disk }
    }

    /// A machine that has never been, with the golden one's disk.
    pub(crate) async fn machine(
        &self,
        harness: &FirecrackerHarness,
        engine: &FirecrackerEngine,
    ) -> BootSpec {
        let mut spec = harness.spec().await;
        std::fs::remove_file(&spec.root.file).unwrap();
        let RootDisk { base, layers, format, .. } = self.disk.clone();
        let below = Below { layers, format, ..Below::image(base.unwrap()) };
        spec.root = engine.create_root(below, &spec.dir, None, OWNER).await.unwrap();
        spec
    }

    /// How a clone comes to be: on the golden one's memory, which it shares.
    pub(crate) fn clone_of(&self, machine: BootSpec) -> RestoreSpec {
        let snapshot = self.snapshot.clone();
        RestoreSpec { machine, base: Some(snapshot.clone()), snapshot }
    }

    /// How the golden one itself would come back: with memory of its own, put in page by page.
    pub(crate) fn wake_of(&self, machine: BootSpec) -> RestoreSpec {
        RestoreSpec { machine, base: None, snapshot: self.snapshot.clone() }
    }

    /// A clone that stands.
    pub(crate) async fn restore(
        &self,
        harness: &FirecrackerHarness,
        engine: &FirecrackerEngine,
        machine: BootSpec,
    ) -> Arc<dyn Vm> {
        let clone = engine.restore(self.clone_of(machine)).await.unwrap();
        harness.booted();
        clone
    }
}
