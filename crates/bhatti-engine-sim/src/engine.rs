//! The engine over a pretended host.

use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use bhatti_engine::{
    Accel, Below, BootSpec, Capabilities, DiskFormat, Engine, EngineError, EngineInfo, EngineName,
    Exit, Private, RestoreSpec, RootDisk, Vm, VmRecord,
};
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::watch;

use crate::fault::{Call, Fault, failure};
use crate::host::{Origin, SimHost};
use crate::vm::{SimVm, give_way};
use crate::{file_error, snapshot};

/// What a root disk made here begins with.
const DISK_MAGIC: &[u8] = b"sim disk\n";

/// What every simulator's snapshots are restored by, unless a test says otherwise.
const FINGERPRINT: &str = "sim";

/// One daemon's engine over a [`SimHost`].
#[derive(Clone)]
pub struct SimEngine {
    host: SimHost,
    info: EngineInfo,
    fingerprint: String,
}

impl SimEngine {
    /// An engine over `host`; making another one is what a daemon restart does.
    pub fn new(host: SimHost) -> Self {
        let info = EngineInfo {
            name: EngineName::Sim,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            accel: Accel::None,
            why: "a test asks for it".to_owned(),
            warnings: Vec::new(),
            capabilities: Capabilities {
                hugepages: true,
                most_memory: None,
                most_vcpus: None,
                counts_limits: false,
            },
        };
        Self { host, info, fingerprint: FINGERPRINT.to_owned() }
    }

    /// The same engine on a host whose snapshots are of another kind: it can use none that was
    /// saved under another text.
    #[must_use]
    pub fn with_fingerprint(self, fingerprint: &str) -> Self {
        Self { fingerprint: fingerprint.to_owned(), ..self }
    }

    /// Starts the process of `spec`; `call` is what the caller was asked to do, `fault` what is
    /// to happen to it.
    fn start(
        &self,
        call: Call,
        spec: BootSpec,
        origin: Origin,
        fault: Option<Fault>,
    ) -> Result<Arc<dyn Vm>, EngineError> {
        for file in spec.root.base.iter().chain(&spec.root.layers) {
            std::fs::File::open(file).map_err(file_error("open", file))?;
        }
        let disk = std::fs::read(&spec.root.file).map_err(file_error("open", &spec.root.file))?;
        if !disk.starts_with(DISK_MAGIC) || spec.root.format != self.disk_format() {
            return Err(EngineError::DiedEarly { log: "the root disk is not one".to_owned() });
        }
        let id = spec.id.clone();
        let started = self.host.room().start(spec.id, spec.dir, spec.shape, spec.root.file, origin);
        let (record, exit) =
            started.ok_or_else(|| failure(call, format!("machine {id} is running already")))?;
        if let Some(Fault::Die(detail)) = fault {
            self.host.crash(&id, &detail);
        }
        Ok(self.handle(record, exit))
    }

    fn handle(&self, record: VmRecord, exit: watch::Receiver<Option<Exit>>) -> Arc<dyn Vm> {
        Arc::new(SimVm::new(self.host.clone(), record, exit, self.fingerprint.clone()))
    }

    async fn enter(&self, call: Call) -> Result<(), EngineError> {
        match self.host.enter(call).await {
            Some(
                Fault::Fail(message)
                | Fault::Unheard(message)
                | Fault::Refuse(message)
                | Fault::Die(message),
            ) => Err(failure(call, message)),
            Some(Fault::Slow(_) | Fault::Hang) | None => Ok(()),
        }
    }
}

#[async_trait]
impl Engine for SimEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    async fn create_root(
        &self,
        below: Below,
        dir: &Utf8Path,
        size: Option<Mib>,
        _owner: Private,
    ) -> Result<RootDisk, EngineError> {
        self.enter(Call::CreateRoot).await?;
        let base = below.base.as_path();
        let metadata = std::fs::metadata(base).map_err(file_error("use image", base))?;
        let image = Mib::holding(metadata.len());
        if let Some(asked) = size.filter(|asked| *asked < image) {
            let (asked_mib, image_mib) = (u64::from(asked.0), u64::from(image.0));
            return Err(EngineError::DiskTooSmall { asked_mib, image_mib });
        }
        let file = dir.join("root.sim");
        create_disk(&file)?;
        let format = self.disk_format();
        let Below { base, layers, .. } = match (below.format, format) {
            (DiskFormat::Qcow2, DiskFormat::Raw) => {
                // An image is none of our disks, unless it was one.
                let was_disk = std::fs::read(base).is_ok_and(|image| image.starts_with(DISK_MAGIC));
                let taken_over = was_disk.then(|| below.base.clone());
                let all: Vec<_> = taken_over.into_iter().chain(below.layers).collect();
                merge_disks(&file, &all)?;
                Below::image(below.base)
            }
            // As in earnest: it takes the place of the image.
            (DiskFormat::Raw, DiskFormat::Qcow2) => {
                Below::image(below.layers.last().unwrap_or(&below.base).clone())
            }
            // Whole: the topmost is all there is to copy.
            (DiskFormat::Raw, DiskFormat::Raw) => {
                let layers: Vec<_> = below.layers.last().cloned().into_iter().collect();
                merge_disks(&file, &layers)?;
                Below { layers, ..below }
            }
            (DiskFormat::Qcow2, DiskFormat::Qcow2) => below,
        };
        give_way().await;
        let bytes = Some(size.map_or(metadata.len(), Mib::bytes));
        Ok(RootDisk { file, base: Some(base), layers, bytes, format })
    }

    fn disk_format(&self) -> DiskFormat {
        self.host.room().disk_format
    }

    async fn recognise(&self, snapshot: &Utf8Path) -> Result<(), EngineError> {
        snapshot::recognise(snapshot, &self.fingerprint)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    async fn boot(&self, spec: BootSpec) -> Result<Arc<dyn Vm>, EngineError> {
        let fault = self.host.enter(Call::Boot).await;
        if let Some(Fault::Fail(message) | Fault::Unheard(message) | Fault::Refuse(message)) = fault
        {
            return Err(failure(Call::Boot, message));
        }
        for file in [&spec.kernel, &spec.initramfs] {
            std::fs::File::open(file).map_err(file_error("open", file))?;
        }
        let vm = self.start(Call::Boot, spec, Origin::Boot, fault)?;
        give_way().await;
        Ok(vm)
    }

    async fn restore(&self, spec: RestoreSpec) -> Result<Arc<dyn Vm>, EngineError> {
        let fault = self.host.enter(Call::Restore).await;
        if let Some(Fault::Refuse(why)) = fault {
            return Err(EngineError::Foreign { why });
        }
        if let Some(Fault::Fail(message) | Fault::Unheard(message)) = fault {
            return Err(failure(Call::Restore, message));
        }
        let RestoreSpec { machine, snapshot, base } = spec;
        let woken = snapshot::read(&snapshot, base.as_deref(), &self.fingerprint, machine.shape)?;
        let vm = self.start(Call::Restore, machine, Origin::Snapshot(woken), fault)?;
        give_way().await;
        Ok(vm)
    }

    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<dyn Vm>>, EngineError> {
        self.enter(Call::Adopt).await?;
        let found = {
            let room = self.host.room();
            let machine = room.machines.get(&record.id);
            machine.filter(|m| m.is_of(record)).map(|m| m.exit.subscribe())
        };
        if found.is_some() {
            record.is_of(self.info.name)?;
        } else {
            // The record is wrong, so nobody can have what runs under its id.
            self.host.end(&record.id, Exit::Killed);
        }
        Ok(found.map(|exit| self.handle(record.clone(), exit)))
    }

    async fn end(&self, record: &VmRecord) -> Result<(), EngineError> {
        self.enter(Call::End).await?;
        let recorded = {
            let room = self.host.room();
            room.machines.get(&record.id).is_some_and(|m| m.is_of(record))
        };
        if recorded {
            self.host.end(&record.id, Exit::Killed);
            give_way().await;
        }
        Ok(())
    }

    async fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, EngineError> {
        self.enter(Call::Sweep).await?;
        let strays: Vec<EngineId> =
            self.host.running().into_iter().filter(|id| !keep.contains(id)).collect();
        for id in &strays {
            self.host.end(id, Exit::Killed);
        }
        Ok(strays)
    }
}

/// Makes a disk that nobody has written to.
pub(crate) fn create_disk(file: &Utf8Path) -> Result<(), EngineError> {
    let mut disk = std::fs::File::create_new(file).map_err(file_error("create", file))?;
    disk.write_all(DISK_MAGIC).map_err(file_error("write", file))
}

/// Puts what `layers` hold below what `top` does, in one step. Done twice it is done once.
pub(crate) fn merge_disks(top: &Utf8Path, layers: &[Utf8PathBuf]) -> Result<(), EngineError> {
    let content = |file: &Utf8Path| {
        let disk = std::fs::read(file).map_err(file_error("open", file))?;
        // What does not begin so was written by a test.
        Ok::<_, EngineError>(disk.strip_prefix(DISK_MAGIC).unwrap_or(&disk).to_vec())
    };
    let below = layers.iter().map(|layer| content(layer)).collect::<Result<Vec<_>, _>>()?.concat();
    let own = content(top)?;
    if own.starts_with(&below) {
        return Ok(());
    }
    let fresh = top.with_extension("new");
    std::fs::write(&fresh, [DISK_MAGIC, &below, &own].concat())
        .and_then(|()| std::fs::rename(&fresh, top))
        .map_err(file_error("write", top))
}
