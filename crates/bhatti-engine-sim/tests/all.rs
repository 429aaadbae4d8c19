//! The simulator passes the suite every engine passes, and its faults do what they say.

#[path = "all/sleep.rs"]
mod sleep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::conformance::Harness;
use bhatti_engine::{
    Below, BootSpec, Carrier, Engine, EngineError, Exit, Private, Shape, Vm, VmRecord,
};
use bhatti_engine_sim::{Call, Fault, SimEngine, SimHost};
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NOBODY: Private = Private { uid: 64123, gid: 64123 };

struct SimHarness {
    host: SimHost,
    scratch: tempfile::TempDir,
}

impl SimHarness {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        for file in ["vmlinux", "initramfs", "base"] {
            std::fs::write(scratch.path().join(file), [0; 512]).expect("a file");
        }
        Self { host: SimHost::echoing(), scratch }
    }
}

#[async_trait]
impl Harness for SimHarness {
    async fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(SimEngine::new(self.host.clone()))
    }

    async fn spec(&self) -> BootSpec {
        let scratch = Utf8Path::from_path(self.scratch.path()).expect("plain text");
        let id = EngineId::random();
        let dir = scratch.join(id.as_str());
        std::fs::create_dir(&dir).expect("a directory");
        let engine = SimEngine::new(self.host.clone());
        let below = Below::image(scratch.join("base"));
        let root = engine.create_root(below, &dir, None, NOBODY).await;
        BootSpec {
            id,
            dir,
            shape: Shape { milli_cpus: 1000, memory: Mib(256) },
            kernel: scratch.join("vmlinux"),
            initramfs: scratch.join("initramfs"),
            root: root.expect("a root disk"),
            nic: None,
            owner: NOBODY,
            hugepages: false,
        }
    }

    async fn ping(&self, carrier: Carrier) -> Result<(), String> {
        let Carrier::Single(mut stream) = carrier;
        let mut answer = [0; 4];
        stream.write_all(b"ping").await.map_err(|error| error.to_string())?;
        stream.read_exact(&mut answer).await.map_err(|error| error.to_string())?;
        if &answer == b"ping" { Ok(()) } else { Err(format!("{answer:?}")) }
    }

    async fn murder(&self, record: &VmRecord) {
        assert!(self.host.crash(&record.id, "it was ended by SIGKILL"));
    }

    async fn traces(&self, machine: &VmRecord) -> Vec<String> {
        let running = self.host.running();
        running.iter().filter(|id| **id == machine.id).map(ToString::to_string).collect()
    }

    async fn remember(&self, vm: &dyn Vm, text: &str) {
        assert!(self.host.set_memory(&vm.record().id, text.as_bytes().to_vec()));
    }

    async fn recall(&self, vm: &dyn Vm) -> String {
        let memory = self.host.memory(&vm.record().id).expect("it runs");
        String::from_utf8(memory).expect("plain text")
    }

    fn shelf(&self) -> Utf8PathBuf {
        let scratch = Utf8Path::from_path(self.scratch.path()).expect("plain text");
        let shelf = scratch.join(format!("shelf-{}", EngineId::random()));
        std::fs::create_dir(&shelf).expect("a directory");
        shelf
    }

    fn booted(&self) {} // nothing real was booted
}

bhatti_engine::conformance_tests!(SimHarness::new());

async fn boot(harness: &SimHarness) -> Result<Arc<dyn bhatti_engine::Vm>, EngineError> {
    let spec = harness.spec().await;
    harness.engine().await.boot(spec).await
}

#[tokio::test]
async fn a_fault_is_met_once_by_its_call_only() {
    let harness = SimHarness::new();
    harness.host.inject(Call::Boot, Fault::Fail("no luck".to_owned()));
    harness.host.inject(Call::Kill, Fault::Fail("stuck".to_owned()));
    assert!(boot(&harness).await.err().expect("told to fail").to_string().contains("no luck"));
    assert!(harness.host.running().is_empty());
    let vm = boot(&harness).await.expect("the fault is spent");
    vm.kill().await.expect_err("told to fail");
    assert_eq!(harness.host.running().len(), 1, "a failed kill has no effect");
    vm.kill().await.expect("the fault is spent");
    assert_eq!((harness.host.faults_left(), harness.host.started()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn latency_and_slowness_pass_on_the_paused_clock() {
    let harness = SimHarness::new();
    harness.host.set_latency(Call::Boot, Duration::from_secs(2));
    harness.host.inject(Call::Boot, Fault::Slow(Duration::from_secs(3600)));
    let before = tokio::time::Instant::now();
    boot(&harness).await.expect("slow, not broken");
    assert_eq!(before.elapsed(), Duration::from_secs(3602));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_can_be_given_up_and_did_nothing() {
    let harness = SimHarness::new();
    harness.host.inject(Call::Boot, Fault::Hang);
    let spec = harness.spec().await;
    let engine = harness.engine().await;
    let given_up = tokio::time::timeout(Duration::from_secs(60), engine.boot(spec)).await;
    assert!(given_up.is_err());
    assert!(harness.host.running().is_empty());
}

#[tokio::test]
async fn dying_on_demand_is_seen() {
    let harness = SimHarness::new();
    harness.host.inject(Call::Boot, Fault::Die("crashed at start".to_owned()));
    let vm = boot(&harness).await.expect("it dies after it has started");
    assert_eq!(vm.exited().await, Exit::Died { detail: "crashed at start".to_owned() });

    let vm = boot(&harness).await.expect("boots");
    harness.host.inject(Call::OpenLink, Fault::Die("oom".to_owned()));
    assert!(matches!(vm.open_link().await, Err(EngineError::Gone)));

    let vm = boot(&harness).await.expect("boots");
    assert!(harness.host.power_off(&vm.record().id));
    assert_eq!(vm.exited().await, Exit::Guest);
}

#[tokio::test]
async fn a_host_reboot_takes_everything() {
    let harness = SimHarness::new();
    let vm = boot(&harness).await.expect("boots");
    harness.host.reboot();
    assert!(matches!(vm.exited().await, Exit::Died { .. }));
    let adopted = harness.engine().await.adopt(&vm.record()).await.expect("asking works");
    assert!(adopted.is_none());
}
