//! The engine: everything about starting, finding and sweeping machines.
//!
//! Starting is a chain of steps; each failure undoes what the steps before it made. The chain
//! runs in a task of its own, so a caller that goes away in the middle does not leave half a
//! machine: the task finishes, finds nobody waiting, and ends what it started.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{
    Accel, Below, BootSpec, Capabilities, DiskFormat, Engine, EngineError, EngineInfo, EngineName,
    Private, RestoreSpec, RootDisk, Vm, VmRecord,
};
use bhatti_types::{EngineId, Mib};
use bhatti_vmm::cgroup::Claim;
use bhatti_vmm::fingerprint::{Host, series};
use bhatti_vmm::former::{DEATH_DEADLINE, DEATH_PATIENCE, Machines};
use bhatti_vmm::jail::Jail;
use bhatti_vmm::kvm::Facts;
use bhatti_vmm::machine_dir::MachineDir;
use bhatti_vmm::manifest::Manifest;
use bhatti_vmm::memory::{self, Templates};
use bhatti_vmm::vmm_log::VmmLog;
use bhatti_vmm::{blocking, confine, file_error, start_to_its_end};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::time::timeout;

use crate::api::Api;
use crate::arch::Arch;
use crate::config::{InstanceInfo, InstanceState};
use crate::counters::Counters;
use crate::launch::{Origin, watched};
use crate::limits::Limits;
use crate::probe::{self, Program};
use crate::vm::{FirecrackerVm, Parts};
use crate::{disk, handover, hold};

/// Memory of snapshots that no machine uses just now and the next clone finds loaded, and how much.
const IDLE_TEMPLATES: usize = 2;
const IDLE_TEMPLATE_BYTES: u64 = 1 << 30;
/// How long an adopted VMM may take to say whether its machine runs.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(1);
/// It makes no more.
const MOST_VCPUS: u32 = 32;
/// The name of the filter inside.
pub(crate) const SECCOMP_FILTER: &str = "/seccomp.bpf";

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct FirecrackerConfig {
    /// Path of `firecracker`; `None` looks on `PATH`.
    pub program: Option<Utf8PathBuf>,
    /// A compiled system call filter in place of the one that is built in; a build that has none
    /// needs one.
    pub seccomp_filter: Option<Utf8PathBuf>,
    /// How fast each machine may use disk and network.
    pub limits: Limits,
    /// Name of the control group above all machines of this daemon. Two daemons on one host need
    /// two names: [`Engine::sweep`] ends what it finds in there.
    pub cgroup: String,
}

impl Default for FirecrackerConfig {
    fn default() -> Self {
        let cgroup = "bhatti".to_owned();
        Self { program: None, seccomp_filter: None, limits: Limits::default(), cgroup }
    }
}

/// Firecracker.
#[derive(Clone)]
pub struct FirecrackerEngine {
    inner: Arc<Inner>,
}

/// What all handles share.
pub(crate) struct Inner {
    pub info: EngineInfo,
    pub program: Program,
    pub jail: Jail,
    /// What a machine on huge pages is restored through, if this kernel has it.
    pub userfaultfd: Option<libc::dev_t>,
    pub has_own_filter: bool,
    pub limits: Limits,
    pub machines: Machines,
    /// What snapshots made here depend on, and nothing of it may differ.
    pub host: Arc<Host>,
    /// The same, and the kernel.
    fingerprint: String,
    pub templates: Templates,
}

impl FirecrackerEngine {
    /// Looks at the host once and decides whether there can be machines. Starts none.
    pub async fn start(config: FirecrackerConfig) -> Result<Self, EngineError> {
        blocking(move || Self::start_blocking(&config)).await
    }

    /// Claims the control groups for this process until the value is dropped: two daemons that
    /// swept the same groups would end each other's machines.
    pub fn claim(&self) -> Result<Claim, EngineError> {
        self.inner.machines.cgroups.claim()
    }

    fn start_blocking(config: &FirecrackerConfig) -> Result<Self, EngineError> {
        memory::check_host()?;
        let why = probe::hardware(Facts::observe())?;
        let program = probe::find_program(config.program.as_deref())?;
        let filter = config.seccomp_filter.as_deref();
        let shared: Vec<_> = filter.iter().map(|path| (*path, SECCOMP_FILTER)).collect();
        let jail = Jail::of(&program.path, &shared).map_err(|source| EngineError::Confine {
            what: format!("cannot find what {} loads", program.path),
            source,
        })?;
        confine::rehearse(&program.path, &jail)?;
        hold::rehearse(&program.path)?;
        let machines = Machines::prepare(&config.cgroup, &program.path)?;
        let mut warnings = machines.cgroups.warnings().to_vec();
        warnings.extend(program.warning.clone());
        let version = program.version.clone();
        let name = format!("firecracker {}", series(&version));
        let host = Arc::new(Host::observe(&name, Accel::Kvm, None));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let fingerprint = format!("{} Linux {}", host.fingerprint, kernel.trim());
        let (most_memory, most_vcpus) = (Some(Arch::HOST.most_memory()), Some(MOST_VCPUS));
        let userfaultfd = handover::device();
        let hugepages = userfaultfd.is_some();
        let counts_limits = config.limits.any();
        let capabilities = Capabilities { hugepages, most_memory, most_vcpus, counts_limits };
        let (name, accel) = (EngineName::Firecracker, Accel::Kvm);
        let info = EngineInfo { name, version, accel, why, warnings, capabilities };
        let templates = Templates::new(IDLE_TEMPLATES, IDLE_TEMPLATE_BYTES);
        let has_own_filter = filter.is_some();
        let limits = config.limits;
        let inner = Inner {
            info,
            program,
            jail,
            userfaultfd,
            has_own_filter,
            limits,
            machines,
            host,
            fingerprint,
            templates,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

#[async_trait]
impl Engine for FirecrackerEngine {
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
            let mut started = inner.start(spec, Origin::Kernel).await?;
            match started.boot().await {
                Ok(()) => Ok(watched(started, &inner)),
                Err(cause) => Err(started.give_up(cause).await),
            }
        })
        .await
    }

    fn disk_format(&self) -> DiskFormat {
        DiskFormat::Raw
    }

    /// With the kernel, for Firecracker promises nothing across kernels: what can be made anew is.
    /// What cannot, a sandbox's own memory, is tried all the same ([`Self::recognise`]).
    fn fingerprint(&self) -> &str {
        &self.inner.fingerprint
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
    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<FirecrackerVm>>, EngineError> {
        let Some(process) = self.machines.recorded(record)? else {
            self.machines.remove_traces(record).await?;
            return Ok(None);
        };
        // It lives, and could not be spoken to.
        record.is_of(self.info.name)?;
        let dir = MachineDir::open(&record.dir).map_err(file_error("open", &record.dir));
        let api = dir.and_then(|dir| {
            let owner = dir.owner().map_err(file_error("read", &record.dir))?;
            let dir = Arc::new(dir);
            Ok((Api::new(Arc::clone(&dir), owner), dir, owner))
        });
        let state = match &api {
            Ok((api, ..)) => state_soon(api).await,
            Err(_) => None,
        };
        // Who was killed closes his socket a moment before he is dead. If he was our child, somebody
        // has to collect him.
        if state.is_none() && process.ends_within(DEATH_PATIENCE, DEATH_DEADLINE).await {
            self.machines.remove_traces(record).await?;
            return Ok(None);
        }
        // It lives, so it is the machine, however it behaves.
        let (api, dir, owner) = api?;
        let (record, group) = (record.clone(), self.machines.cgroups.recorded(record));
        let log = VmmLog::of_descriptor(record.pid, libc::STDERR_FILENO).ok();
        let console = VmmLog::of_descriptor(record.pid, libc::STDOUT_FILENO).ok();
        // Its template, if it stands on one, is kept by its own mapping of it.
        let ground = None;
        let counters = Counters::found(&dir);
        // One that does not answer is taken for running: then whoever wants to reach it tries.
        let runs = state != Some(InstanceState::Paused);
        let parts =
            Parts { record, owner, dir, process, group, api, log, console, counters, ground, runs };
        Ok(Some(FirecrackerVm::watch(parts, Arc::clone(&self.host))))
    }
}

/// What an adopted VMM says of its machine, if it says anything.
async fn state_soon(api: &Api) -> Option<InstanceState> {
    let asked = timeout(ADOPTION_PATIENCE, api.get::<InstanceInfo>("/")).await;
    asked.ok()?.ok().map(|info| info.state)
}
