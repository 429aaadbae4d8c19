//! The pretended host: its processes, its latencies and the faults that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bhatti_engine::{DiskFormat, EngineName, Exit, Shape, VmRecord};
use bhatti_types::EngineId;
use tokio::io::DuplexStream;
use tokio::sync::watch;

use crate::fault::{Call, Fault, Faults};
use crate::snapshot::Woken;

/// What a guest does with its end of the link, each time the link is opened. It is called on a
/// tokio runtime and may spawn; it ends when its stream does.
pub type Guest = Arc<dyn Fn(EngineId, DuplexStream) + Send + Sync>;

/// A machine room. Cloning shares it; it lives as long as anybody holds it.
#[derive(Clone)]
pub struct SimHost {
    shared: Arc<Mutex<Room>>,
    guest: Guest,
}

pub(crate) struct Room {
    pub(crate) machines: BTreeMap<EngineId, Machine>,
    pub(crate) disk_format: DiskFormat,
    pub(crate) faults: Faults,
    pub(crate) boot_id: String,
    latency: BTreeMap<Call, Duration>,
    next_pid: i32,
    /// Machines that started and ended, ever.
    started: usize,
    calls: Vec<Call>,
}

/// One pretended process.
pub(crate) struct Machine {
    pub(crate) record: VmRecord,
    pub(crate) exit: watch::Sender<Option<Exit>>,
    pub(crate) console: Vec<u8>,
    pub(crate) shape: Shape,
    /// The file it writes its disk to.
    pub(crate) top: camino::Utf8PathBuf,
    /// All a test knows of what runs inside.
    pub(crate) memory: Vec<u8>,
    /// The name of the snapshot its memory stands on, or empty.
    pub(crate) base: String,
    /// Whether the virtual CPUs are stopped; the link's cable watches it.
    pub(crate) paused: watch::Sender<bool>,
    /// Dropping it ends the link that is open.
    pub(crate) link: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Machine {
    /// Whether it is the process of that record, whoever is said to have started it.
    pub(crate) fn is_of(&self, record: &VmRecord) -> bool {
        VmRecord { engine: self.record.engine, ..record.clone() } == self.record
    }
}

impl SimHost {
    /// A host whose guests do `guest`.
    pub fn new(guest: Guest) -> Self {
        let room = Room {
            machines: BTreeMap::new(),
            disk_format: DiskFormat::default(),
            faults: Faults::default(),
            boot_id: "sim-boot-1".to_owned(),
            latency: BTreeMap::new(),
            next_pid: 1000,
            started: 0,
            calls: Vec::new(),
        };
        Self { shared: Arc::new(Mutex::new(room)), guest }
    }

    /// A host whose guests send back what they are sent.
    pub fn echoing() -> Self {
        Self::new(Arc::new(|_, stream| {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                // It ends when either side does; there is nobody to tell.
                tokio::io::copy(&mut reader, &mut writer).await.ok();
            });
        }))
    }

    /// The next `call` meets `fault`. Several for one call are met in turn.
    pub fn inject(&self, call: Call, fault: Fault) {
        self.room().faults.push(call, fault);
    }

    /// Injected faults that no call has met; a test that expects them all met asserts zero.
    pub fn faults_left(&self) -> usize {
        self.room().faults.left()
    }

    /// From now on every `call` takes this long.
    pub fn set_latency(&self, call: Call, latency: Duration) {
        self.room().latency.insert(call, latency);
    }

    /// Ends a machine as a crash would. False if it is not running.
    pub fn crash(&self, id: &EngineId, detail: &str) -> bool {
        self.end(id, Exit::Died { detail: detail.to_owned() })
    }

    /// Ends a machine as its guest's power-off would. False if it is not running.
    pub fn power_off(&self, id: &EngineId) -> bool {
        self.end(id, Exit::Guest)
    }

    /// Restarts the host: every machine is gone, and nobody was told.
    pub fn reboot(&self) {
        let mut room = self.room();
        room.machines.clear();
        room.boot_id.push('\'');
    }

    /// From now on engines here make disks of that kind, and take no other, as if another engine had
    /// been installed.
    pub fn set_disk_format(&self, format: DiskFormat) {
        self.room().disk_format = format;
    }

    /// The machines that run now.
    pub fn running(&self) -> BTreeSet<EngineId> {
        self.room().machines.keys().cloned().collect()
    }

    /// Changes a machine's memory, as its guest would by running. False if it is not running.
    pub fn set_memory(&self, id: &EngineId, memory: Vec<u8>) -> bool {
        match self.room().machines.get_mut(id) {
            Some(machine) => {
                machine.memory = memory;
                true
            }
            None => false,
        }
    }

    /// A machine's memory; empty after a boot. `None` if there is no such machine.
    pub fn memory(&self, id: &EngineId) -> Option<Vec<u8>> {
        self.room().machines.get(id).map(|machine| machine.memory.clone())
    }

    /// Whether a machine's virtual CPUs are stopped. `None` if there is no such machine.
    pub fn paused(&self, id: &EngineId) -> Option<bool> {
        self.room().machines.get(id).map(|machine| *machine.paused.borrow())
    }

    /// How many machines have ever been started.
    pub fn started(&self) -> usize {
        self.room().started
    }

    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.room().calls.clone()
    }

    pub(crate) fn room(&self) -> MutexGuard<'_, Room> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Notes the call, waits its latency and takes the fault that waits for it. Gives way once,
    /// so that who polls a daemon's tasks can stop just before the call has its effect.
    pub(crate) async fn enter(&self, call: Call) -> Option<Fault> {
        tokio::task::yield_now().await;
        let (latency, fault) = {
            let mut room = self.room();
            room.calls.push(call);
            (room.latency.get(&call).copied(), room.faults.take(call))
        };
        if let Some(latency) = latency {
            tokio::time::sleep(latency).await;
        }
        match fault {
            Some(Fault::Slow(more)) => {
                tokio::time::sleep(more).await;
                None
            }
            Some(Fault::Hang) => std::future::pending().await,
            other => other,
        }
    }

    /// Takes the machine out and tells everybody who waits.
    pub(crate) fn end(&self, id: &EngineId, exit: Exit) -> bool {
        match self.room().machines.remove(id) {
            Some(machine) => {
                machine.exit.send_replace(Some(exit));
                true
            }
            None => false,
        }
    }
}

/// What a process starts with.
pub(crate) enum Origin {
    Boot,
    /// With what was read, and stopped.
    Snapshot(Woken),
}

impl Room {
    /// Starts a process; `None` if one of that id runs.
    pub(crate) fn start(
        &mut self,
        id: EngineId,
        dir: camino::Utf8PathBuf,
        shape: Shape,
        top: camino::Utf8PathBuf,
        origin: Origin,
    ) -> Option<(VmRecord, watch::Receiver<Option<Exit>>)> {
        if self.machines.contains_key(&id) {
            return None;
        }
        self.next_pid += 1;
        self.started += 1;
        let record = VmRecord {
            id: id.clone(),
            engine: EngineName::Sim,
            dir,
            pid: self.next_pid,
            start_ticks: u64::from(self.next_pid.unsigned_abs()) * 100,
            host_boot_id: self.boot_id.clone(),
            cgroups: Vec::new(),
            memory: Some(shape.memory),
            memory_at: Vec::new(),
        };
        let (exit, watcher) = watch::channel(None);
        let (console, paused, Woken { memory, base }) = match origin {
            Origin::Boot => ("sim: booted\n", false, Woken::default()),
            Origin::Snapshot(woken) => ("sim: restored\n", true, woken),
        };
        let machine = Machine {
            record: record.clone(),
            exit,
            console: console.into(),
            shape,
            top,
            memory,
            base,
            paused: watch::Sender::new(paused),
            link: None,
        };
        self.machines.insert(id, machine);
        Some((record, watcher))
    }
}
