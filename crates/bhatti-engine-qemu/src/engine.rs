//! The engine: everything about starting, finding and sweeping machines.
//!
//! Starting is a chain of steps; each failure undoes what the steps before it made. The chain
//! runs in a task of its own, so a caller that goes away in the middle does not leave half a
//! machine: the task finishes, finds nobody waiting, and ends what it started.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{
    Below, BootSpec, Capabilities, DiskFormat, Engine, EngineError, EngineInfo, EngineName,
    Private, RestoreSpec, RootDisk, Vm, VmRecord,
};
use bhatti_types::{EngineId, Mib};
use bhatti_vmm::{blocking, file_error, start_to_its_end};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::time::timeout;

use crate::arch::Arch;
use crate::cmdline::{Acceleration, Seccomp};
use crate::control;
use crate::disk;
use crate::launch::Origin;
use crate::probe::{self, AccelChoice, Program};
use crate::qmp::Qmp;
use crate::vm::{Parts, QemuVm};
use bhatti_vmm::cgroup::Claim;
use bhatti_vmm::confine;
use bhatti_vmm::fingerprint::{self, Host};
use bhatti_vmm::former::{DEATH_DEADLINE, DEATH_PATIENCE, Machines};
use bhatti_vmm::jail::{FIRMWARE, Jail};
use bhatti_vmm::kvm::Facts;
use bhatti_vmm::machine_dir::MachineDir;
use bhatti_vmm::manifest::Manifest;
use bhatti_vmm::memory::{self, Templates};
use bhatti_vmm::process::Process;
use bhatti_vmm::vmm_log::VmmLog;

/// How long an adopted VMM may take to answer before it is taken as it is. Short, because a
/// daemon that starts waits for it, and the other end may be silent on purpose.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(1);
/// Memory of snapshots that no machine uses just now and the next clone finds loaded.
const IDLE_TEMPLATES: usize = 2;
/// How much memory these may take. A golden one takes some 100 MiB, a named snapshot whatever its
/// machine had.
const IDLE_TEMPLATE_BYTES: u64 = 1 << 30;
/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// What the guests are made for. Another than the host's is emulated, for tests.
    pub arch: Arch,
    /// Path of QEMU's system emulator for that; `None` looks on `PATH`.
    pub program: Option<Utf8PathBuf>,
    /// Path of `qboot.rom`, where machines have it; `None` looks where distributions put it.
    pub firmware: Option<Utf8PathBuf>,
    pub accel: AccelChoice,
    /// Name of the control group above all machines of this daemon. Two daemons on one host need
    /// two names: [`Engine::sweep`] ends what it finds in there.
    pub cgroup: String,
}

impl Default for QemuConfig {
    fn default() -> Self {
        Self {
            arch: Arch::HOST,
            program: None,
            firmware: None,
            accel: AccelChoice::Auto,
            cgroup: "bhatti".to_owned(),
        }
    }
}

/// QEMU's smallest machine of an architecture.
#[derive(Clone)]
pub struct QemuEngine {
    inner: Arc<Inner>,
}

/// What all handles share.
pub(crate) struct Inner {
    info: EngineInfo,
    pub program: Program,
    pub jail: Jail,
    pub arch: Arch,
    pub acceleration: Acceleration,
    pub machines: Machines,
    /// What snapshots made here depend on.
    pub host: Arc<Host>,
    pub templates: Templates,
}

impl QemuEngine {
    /// Looks at the host once and decides. Starts nothing.
    pub async fn start(config: QemuConfig) -> Result<Self, EngineError> {
        blocking(move || Self::start_blocking(&config)).await
    }

    /// Claims the control groups for this process until the value is dropped: two daemons that
    /// swept the same groups would end each other's machines. The daemon calls it before
    /// [`Engine::sweep`]; it holds across namespaces and containers, as the groups do.
    pub fn claim(&self) -> Result<Claim, EngineError> {
        self.inner.machines.cgroups.claim()
    }

    fn start_blocking(config: &QemuConfig) -> Result<Self, EngineError> {
        memory::check_host()?;
        let arch = config.arch;
        arch.runs_here().map_err(|why| EngineError::Host { why: why.to_owned() })?;
        let (chosen, why) = probe::choose(config.accel, arch, Arch::HOST, Facts::observe());
        let program = probe::find_program(config.program.as_deref(), arch, chosen)?;
        let firmware = if arch.has_firmware() {
            Some(probe::find_firmware(config.firmware.as_deref())?)
        } else {
            None
        };
        let shared: Vec<_> = firmware.iter().map(|file| (file.as_path(), FIRMWARE)).collect();
        let jail = Jail::of(&program.path, &shared).map_err(|source| EngineError::Confine {
            what: format!("cannot find what {} loads", program.path),
            source,
        })?;
        confine::rehearse(&program.path, &jail)?;
        let acceleration = probe::acceleration(arch, chosen);
        let machines = Machines::prepare(&config.cgroup, &program.path)?;
        let mut warnings = machines.cgroups.warnings().to_vec();
        if program.seccomp == Seccomp::NotBuiltIn {
            warnings.push(format!("{} was built without a system call filter", program.path));
        }
        let version = program.version.clone();
        let accel = acceleration.accel();
        let name = format!("qemu {} {}", fingerprint::series(&version), arch.machine_type());
        let host = Arc::new(Host::observe(&name, accel, acceleration.tsc_khz()));
        let capabilities = Capabilities {
            hugepages: true,
            most_memory: None,
            most_vcpus: None,
            counts_limits: false,
        };
        let name = EngineName::Qemu;
        let info = EngineInfo { name, version, accel, why, warnings, capabilities };
        let templates = Templates::new(IDLE_TEMPLATES, IDLE_TEMPLATE_BYTES);
        let inner = Inner { info, program, jail, arch, acceleration, machines, host, templates };
        Ok(Self { inner: Arc::new(inner) })
    }
}

#[async_trait]
impl Engine for QemuEngine {
    fn info(&self) -> &EngineInfo {
        &self.inner.info
    }

    async fn create_root(
        &self,
        below: Below,
        dir: &Utf8Path,
        size: Option<Mib>,
        owner: Private,
    ) -> Result<RootDisk, EngineError> {
        let dir = dir.to_owned();
        blocking(move || disk::create(below, &dir, size, owner)).await
    }

    async fn boot(&self, spec: BootSpec) -> Result<Arc<dyn Vm>, EngineError> {
        let inner = Arc::clone(&self.inner);
        start_to_its_end(async move {
            let started = inner.start(spec, Origin::Kernel).await?;
            Ok(started.watch(&inner))
        })
        .await
    }

    fn disk_format(&self) -> DiskFormat {
        DiskFormat::Qcow2
    }

    fn fingerprint(&self) -> &str {
        &self.inner.host.fingerprint
    }

    async fn recognise(&self, snapshot: &Utf8Path) -> Result<(), EngineError> {
        let (host, snapshot) = (Arc::clone(&self.inner.host), snapshot.to_owned());
        blocking(move || Manifest::read(&snapshot)?.is_of(&host)).await
    }

    async fn restore(&self, spec: RestoreSpec) -> Result<Arc<dyn Vm>, EngineError> {
        start_to_its_end(Arc::clone(&self.inner).restore(spec)).await
    }

    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<dyn Vm>>, EngineError> {
        let found = self.inner.adopt(record).await?;
        Ok(found.map(|vm| vm as Arc<dyn Vm>))
    }

    async fn end(&self, record: &VmRecord) -> Result<(), EngineError> {
        self.inner.machines.end(record).await
    }

    async fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, EngineError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.to_vec();
        blocking(move || inner.machines.sweep(&keep)).await
    }
}

impl Inner {
    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<QemuVm>>, EngineError> {
        let Some(process) = self.machines.recorded(record)? else {
            self.machines.remove_traces(record).await?;
            return Ok(None);
        };
        // It lives, and could not be spoken to.
        record.is_of(self.info.name)?;
        let dir = MachineDir::open(&record.dir);
        let qmp = match &dir {
            Ok(dir) => greeted_soon(dir, &process).await,
            Err(error) => Err(file_error("open", &record.dir)(io::Error::from(error.kind()))),
        };
        // A process closes its socket a moment before it is dead. If it was our child, somebody
        // has to collect it.
        if qmp.is_err() && process.ends_within(DEATH_PATIENCE, DEATH_DEADLINE).await {
            self.machines.remove_traces(record).await?;
            return Ok(None);
        }
        // It lives, so it is the machine, however it behaves.
        let dir = dir.map_err(file_error("open", &record.dir))?;
        let owner = dir.owner().map_err(file_error("read", &record.dir))?;
        let (record, group) = (record.clone(), self.machines.cgroups.recorded(record));
        let log = VmmLog::of_process(record.pid).ok();
        let qmp = qmp.map_err(|error| {
            tracing::warn!(id = %record.id, %error, "adopted a VMM that does not answer");
        });
        let qmp = qmp.ok();
        // Its template, if it stands on one, is kept by its own mapping of it.
        let (host, template) = (Arc::clone(&self.host), None);
        let parts = Parts { record, owner, dir, process, group, qmp, log, host, template };
        Ok(Some(QemuVm::watch(parts)))
    }
}

/// Gets in touch with a process that is beyond doubt the recorded machine.
async fn greeted_soon(dir: &MachineDir, process: &Process) -> Result<Qmp, EngineError> {
    let owner = dir.owner().map_err(file_error("read", dir.path()))?;
    let connect = control::connect(dir, owner, ADOPTION_PATIENCE);
    let seconds = ADOPTION_PATIENCE.as_secs();
    tokio::select! {
        qmp = timeout(ADOPTION_PATIENCE, connect) => {
            qmp.unwrap_or(Err(EngineError::Timeout { action: "greet", seconds }))
        }
        _ = process.wait_readable() => Err(EngineError::Gone),
    }
}
