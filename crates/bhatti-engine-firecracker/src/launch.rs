//! Starting a VMM, to boot or to be restored: files, jail, process, API.
//!
//! What fails here undoes what came before it. [`Started`] is the last step: a VMM that answers,
//! which the caller either watches or gives up.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{Accel, BootSpec, EngineError, EngineName, Nic, Private, Shape, VmRecord};
use bhatti_types::Mib;
use bhatti_vmm::cgroup::{self, Group, Joins};
use bhatti_vmm::confine::{self, Confinement};
use bhatti_vmm::former::DEATH_DEADLINE;
use bhatti_vmm::jail::{DESCRIPTORS, INITRAMFS, KERNEL};
use bhatti_vmm::machine_dir::MachineDir;
use bhatti_vmm::memory::template::InUse;
use bhatti_vmm::memory::{Anonymous, Mapping, MemoryError, Zero, of_process};
use bhatti_vmm::process::{Process, collect};
use bhatti_vmm::vmm_log::VmmLog;
use bhatti_vmm::{blocking, check_shared, file_error, hugepages};
use tokio::time::{Instant, sleep};

use crate::api::Api;
use crate::arch::Arch;
use crate::config::{
    API_SOCKET, Action, ActionType, Balloon, BootSource, Drive, Entropy, GUEST_CID, HugePages,
    INTERFACE, METRICS_PIPE, MachineConfig, NetworkInterface, VSOCK, Vsock,
};
use crate::counters::Counters;
use crate::disk;
use crate::engine::{Inner, SECCOMP_FILTER};
use crate::limits::{self, Limits};
use crate::tap::Tap;
use crate::vm::{FirecrackerVm, Parts};

/// How long Firecracker may take from its start to its API; some ms on an idle machine.
const API_DEADLINE: Duration = Duration::from_secs(20);
/// How long its threads may take from the answer to a start to their filter, and between two looks.
const FILTER_DEADLINE: Duration = Duration::from_secs(10);
const FILTER_STEP: Duration = Duration::from_millis(1);
/// What it prints about itself: only what went wrong.
const LOG_LEVEL: &str = "Error";

/// What a machine starts from.
pub(crate) enum Origin {
    /// A kernel.
    Kernel,
    /// A saved state, over this memory.
    Snapshot { devices: File, memory: Ground },
}

/// What the memory of a restored machine is before anything is put into it.
pub(crate) enum Ground {
    Zero(Zero),
    Template(Arc<InUse>),
    /// Huge pages, which are of no file of ours.
    Huge,
}

impl Ground {
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Zero(zero) => Some(zero.descriptor().as_raw_fd()),
            Self::Template(template) => Some(template.descriptor().as_raw_fd()),
            Self::Huge => None,
        }
    }
}

/// A VMM that answers and that nobody watches yet.
pub(crate) struct Started {
    pub dir: Arc<MachineDir>,
    pub process: Process,
    pub api: Api,
    pub record: VmRecord,
    pub owner: Private,
    pub origin: Origin,
    /// Waits to be opened by the VMM.
    pub tap: Option<Tap>,
    /// What the configuration allows every machine.
    pub limits: Limits,
    mac: Option<String>,
    pub shape: Shape,
    hugepages: bool,
    log: VmmLog,
    console: VmmLog,
    counters: Option<Counters>,
    group: Group,
}

/// A process that was started.
struct Launched {
    pid: i32,
    says: Says,
    tap: Option<Tap>,
}

/// What a VMM says, and where.
struct Says {
    log: VmmLog,
    console: VmmLog,
    /// Where it is to count.
    metrics: Option<File>,
}

impl Inner {
    /// Starts a VMM that waits for requests. On failure nothing is left behind.
    pub(crate) async fn start(
        self: &Arc<Self>,
        mut spec: BootSpec,
        origin: Origin,
    ) -> Result<Started, EngineError> {
        self.info.supports(spec.shape, spec.hugepages)?;
        let dir = Arc::new(MachineDir::open(&spec.dir).map_err(file_error("open", &spec.dir))?);
        let (id, owner, shape, hugepages) =
            (spec.id.clone(), spec.owner, spec.shape, spec.hugepages);
        let nic = spec.nic.take();
        let mac = nic.as_ref().map(|nic| nic.mac.clone());

        let (this, place) = (Arc::clone(self), Arc::clone(&dir));
        let (group, launched, origin) = blocking(move || {
            if spec.hugepages {
                hugepages::check(spec.shape.memory)?;
            }
            // First, because it claims the id: from here on everything in it is this start's.
            let limits = cgroup::Limits::of(spec.shape, Accel::Kvm);
            let (group, joins) = this.machines.cgroups.create(&spec.id, limits)?;
            match this.launch(&spec, nic, &origin, &place, joins) {
                Ok(launched) => Ok((group, launched, origin)),
                Err(error) => Err(undo(&place, &group, None, error)),
            }
        })
        .await?;

        let Launched { pid, says: Says { log, console, metrics }, tap } = launched;
        let api = Api::new(Arc::clone(&dir), owner);
        let served = self.until_served(&api, &log, pid).await;
        let counters = metrics.map(Counters::of).transpose();
        let counters = counters.map_err(|error| dir.error("listen to", METRICS_PIPE, error));
        match served.and_then(|process| Ok((process, counters?))) {
            Ok((process, counters)) => {
                let record = VmRecord {
                    id,
                    engine: EngineName::Firecracker,
                    dir: dir.path().to_owned(),
                    pid,
                    start_ticks: process.start_ticks(),
                    host_boot_id: self.machines.host_boot_id.clone(),
                    cgroups: group.paths(),
                    memory: Some(shape.memory),
                    // Known once it is there.
                    memory_at: Vec::new(),
                };
                Ok(Started {
                    dir,
                    process,
                    api,
                    record,
                    owner,
                    origin,
                    tap,
                    limits: self.limits,
                    mac,
                    shape,
                    hugepages,
                    log,
                    console,
                    counters,
                    group,
                })
            }
            Err(error) => Err(give_up(dir, group, pid, tap, error).await),
        }
    }

    /// Starts the process in the group it is given. On failure the caller undoes.
    fn launch(
        &self,
        spec: &BootSpec,
        nic: Option<Nic>,
        origin: &Origin,
        dir: &MachineDir,
        cgroups: Joins,
    ) -> Result<Launched, EngineError> {
        let (_, disk_bytes) = disk::open_own(&spec.root, dir)?;
        // A former VMM may have left them, and this one makes its own.
        for name in [API_SOCKET, VSOCK, METRICS_PIPE] {
            dir.remove(name).map_err(|error| dir.error("remove", name, error))?;
        }
        let jail = self.jail.for_machine(Accel::Kvm, spec.owner);
        let (mut jail, inherit) = match origin {
            Origin::Kernel => {
                check_shared(&spec.kernel)?;
                check_shared(&spec.initramfs)?;
                let jail = jail.with_kernel(&spec.kernel, &spec.initramfs);
                (jail.map_err(file_error("find the kernel", &spec.kernel))?, Vec::new())
            }
            Origin::Snapshot { devices, memory } => {
                let jail = match (memory, self.userfaultfd) {
                    (Ground::Huge, Some(number)) => jail.with_userfaultfd(number, spec.owner),
                    _ => jail,
                };
                let own = std::iter::once(devices.as_raw_fd()).chain(memory.descriptor());
                (jail.with_descriptors(), own.collect())
            }
        };
        let tap = match nic {
            None => None,
            Some(nic) => {
                jail = jail.with_tun(spec.owner);
                let tap = Tap::prepare(nic.tap, spec.owner);
                Some(tap.map_err(|source| confined("cannot hand over its TAP", source))?)
            }
        };
        let result = self.spawn(spec, dir, cgroups, jail, inherit, disk_bytes, tap.as_ref());
        match result {
            Ok((pid, says)) => Ok(Launched { pid, says, tap }),
            Err(error) => {
                if let Some(tap) = tap {
                    tap.abandon();
                }
                Err(error)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is one thing a process is made of")]
    fn spawn(
        &self,
        spec: &BootSpec,
        dir: &MachineDir,
        cgroups: Joins,
        jail: bhatti_vmm::jail::Jail,
        inherit: Vec<RawFd>,
        disk_bytes: u64,
        tap: Option<&Tap>,
    ) -> Result<(i32, Says), EngineError> {
        let make = || VmmLog::create().map_err(|e| dir.error("make a log for", "", e));
        let (log, console) = (make()?, make()?);
        let metrics = self.limits.any().then(|| dir.make_pipe(METRICS_PIPE, spec.owner));
        let metrics = metrics.transpose().map_err(|e| dir.error("make", METRICS_PIPE, e))?;
        let network = tap.map(Tap::network).transpose();
        let confinement = Confinement {
            cgroups,
            inherit,
            working_dir: dir.descriptor().map_err(|e| dir.error("hold", ".", e))?,
            network: network.map_err(|source| confined("cannot hold a network", source))?,
            output: Some(console.for_child().map_err(|e| dir.error("make a log for", "", e))?),
            jail,
            file_size: disk_bytes,
            owner: spec.owner,
        };
        let mut command = Command::new(&self.program.path);
        command.args(["--api-sock", API_SOCKET, "--id", spec.id.as_str(), "--level", LOG_LEVEL]);
        // A libc that gives each thread a heap of its own asks for it in the very way guest memory is
        // asked for, and the kernel shows neighbours of a kind as one mapping: then nobody could tell
        // where the guest's ends (`Anonymous::Counts`). Releases are built with one that does not.
        command.env("MALLOC_ARENA_MAX", "1");
        if self.has_own_filter {
            command.args(["--seccomp-filter", SECCOMP_FILTER]);
        }
        if metrics.is_some() {
            command.args(["--metrics-path", METRICS_PIPE]);
        }
        let pid = confine::spawn(&command, confinement, &log)?;
        Ok((pid, Says { log, console, metrics }))
    }

    /// Waits until Firecracker answers on its socket.
    async fn until_served(
        &self,
        api: &Api,
        log: &VmmLog,
        pid: i32,
    ) -> Result<Process, EngineError> {
        let program = self.program.path.to_string();
        let process =
            Process::child(pid).map_err(|source| EngineError::Spawn { program, source })?;
        tokio::select! {
            biased;
            served = api.until_served(API_DEADLINE) => served?,
            _ = process.wait_readable() => {
                return Err(EngineError::DiedEarly { log: log.tail() });
            }
        }
        Ok(process)
    }
}

impl Started {
    /// Describes the machine to the VMM and starts it.
    pub(crate) async fn boot(&mut self) -> Result<(), EngineError> {
        let api = &self.api;
        let Shape { memory: Mib(mem_size_mib), .. } = self.shape;
        let huge_pages = self.hugepages.then_some(HugePages::TwoMib);
        let machine = MachineConfig { vcpu_count: self.shape.vcpus(), mem_size_mib, huge_pages };
        api.put("/machine-config", &machine).await?;
        let source = BootSource {
            kernel_image_path: KERNEL,
            initrd_path: INITRAMFS,
            boot_args: Arch::HOST.kernel_line(),
        };
        api.put("/boot-source", &source).await?;
        api.put("/drives/root", &Drive::root(self.limits.disk())).await?;
        api.put("/vsock", &Vsock { guest_cid: GUEST_CID, uds_path: VSOCK }).await?;
        api.put("/entropy", &Entropy { rate_limiter: limits::entropy() }).await?;
        // A huge page that is given back may be another machine's when the guest wants it again.
        if !self.hugepages {
            api.put("/balloon", &Balloon::REPORTING).await?;
        }
        if let (Some(tap), Some(mac)) = (&self.tap, &self.mac) {
            let interface = NetworkInterface {
                iface_id: INTERFACE,
                guest_mac: mac.clone(),
                host_dev_name: tap.name().to_owned(),
                rx_rate_limiter: self.limits.network(),
                tx_rate_limiter: self.limits.network(),
            };
            api.put("/network-interfaces/eth0", &interface).await?;
        }
        api.put("/actions", &Action { action_type: ActionType::InstanceStart }).await?;
        self.can_be_saved().await?;
        self.settle().await
    }

    /// Finds the memory of a machine that was just booted, for whoever will save it: what could not be
    /// frozen is no machine. On huge pages it is also given all that it was promised.
    async fn can_be_saved(&mut self) -> Result<(), EngineError> {
        let memory = self.shape.memory;
        let mapping = self.find_memory(Arch::HOST.booted_memory(memory))?;
        if self.hugepages { self.populate(mapping).await } else { Ok(()) }
    }

    /// Finds the memory of a machine of which nothing has been given back yet. Where it is, it stays,
    /// so from now on nobody has to look.
    pub(crate) fn find_memory(&mut self, anonymous: Anonymous<'_>) -> Result<Mapping, EngineError> {
        let (pid, bytes) = (self.record.pid, self.shape.memory.bytes());
        let mapping = of_process(&self.process, pid, bytes, anonymous)?;
        self.record.memory_at = mapping.pieces().to_vec();
        Ok(mapping)
    }

    /// Has the kernel give a machine all of its huge pages now, and not when the guest would be
    /// killed for want of one.
    pub(crate) async fn populate(&self, mapping: Mapping) -> Result<(), EngineError> {
        let memory = self.shape.memory;
        blocking(move || {
            let populated = mapping.populate(hugepages::BYTES);
            populated.map_err(|error| short_of_pages(memory, error))
        })
        .await
    }

    /// Once its devices are made: what must be true of a VMM from now on.
    pub(crate) async fn settle(&self) -> Result<(), EngineError> {
        let pid = self.record.pid;
        if let Some(tap) = &self.tap {
            tap.leave_to(pid).map_err(|e| confined("cannot leave its TAP to the VMM", e))?;
        }
        until_filtered(pid).await
    }

    /// Watches it from now on.
    pub(crate) fn watch(self) -> Parts {
        let Self {
            dir, process, api, record, owner, origin, log, console, counters, group, ..
        } = self;
        let ground = match origin {
            Origin::Kernel => None,
            Origin::Snapshot { memory, .. } => Some(memory),
        };
        let runs = ground.is_none();
        let (log, console) = (Some(log), Some(console));
        Parts { record, owner, dir, process, group, api, log, console, counters, ground, runs }
    }

    /// Ends it and removes its traces; gives the cause back, or why it ended by itself.
    pub(crate) async fn give_up(self, cause: EngineError) -> EngineError {
        let ended = self.process.is_ending();
        let cause = match cause {
            // What it was asked last says more than what it printed, which is mostly nothing.
            EngineError::Control { command, message } if ended => {
                let log = format!("at {command}: {message}; {}", self.log.tail());
                EngineError::DiedEarly { log }
            }
            EngineError::File { .. } | EngineError::Confine { .. } if ended => {
                EngineError::DiedEarly { log: self.log.tail() }
            }
            other => other,
        };
        give_up(self.dir, self.group, self.record.pid, self.tap, cause).await
    }
}

/// Turns what was started into a machine.
pub(crate) fn watched(started: Started, inner: &Inner) -> Arc<FirecrackerVm> {
    FirecrackerVm::watch(started.watch(), Arc::clone(&inner.host))
}

async fn give_up(
    dir: Arc<MachineDir>,
    group: Group,
    pid: i32,
    tap: Option<Tap>,
    cause: EngineError,
) -> EngineError {
    let end = move || {
        let cause = undo(&dir, &group, tap, cause);
        collect(pid, DEATH_DEADLINE);
        Ok(cause)
    };
    blocking(end).await.unwrap_or(EngineError::Gone)
}

/// Removes what a failed start has made; gives its cause back.
fn undo(dir: &MachineDir, group: &Group, tap: Option<Tap>, cause: EngineError) -> EngineError {
    if let Err(error) = group.clear() {
        tracing::error!(%error, dir = %dir.path(), "cannot remove a control group");
    }
    if let Some(tap) = tap {
        tap.abandon();
    }
    dir.remove_traces();
    cause
}

/// Why memory on huge pages could not be filled. Where the VMM's own could not be had, others were
/// quicker, mostly.
pub(crate) fn short_of_pages(memory: Mib, error: MemoryError) -> EngineError {
    let taken = match &error {
        MemoryError::File { path, .. } if path.starts_with("/proc") => hugepages::check(memory),
        _ => Ok(()),
    };
    taken.err().unwrap_or_else(|| error.into())
}

/// Waits until every thread of a VMM that runs a guest is under a system call filter. Each of its
/// virtual CPUs puts on its own, before it runs anything of the guest's and maybe after the VMM has
/// answered. A build without one starts all the same, and nobody would notice.
async fn until_filtered(pid: i32) -> Result<(), EngineError> {
    let end = Instant::now() + FILTER_DEADLINE;
    loop {
        match unfiltered(pid) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) if Instant::now() < end => sleep(FILTER_STEP).await,
            Ok(Some(thread)) => {
                let seconds = FILTER_DEADLINE.as_secs();
                let what = format!(
                    "no system call filter is on its {thread} after {seconds} s; a Firecracker that \
                     was built without one needs firecracker_seccomp_filter"
                );
                return Err(confined(&what, io::ErrorKind::TimedOut.into()));
            }
            Err(source) => {
                return Err(confined("cannot see whether Firecracker has its filter on", source));
            }
        }
    }
}

/// A thread of the VMM that has no filter on, and where it is.
fn unfiltered(pid: i32) -> io::Result<Option<String>> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let status = std::fs::read_to_string(task.join("status"))?;
        let of =
            |field: &str| status.lines().find_map(|line| line.strip_prefix(field)).map(str::trim);
        if of("Seccomp:") != Some("2") {
            let (name, state) = (of("Name:").unwrap_or("?"), of("State:").unwrap_or("?"));
            let place = std::fs::read_to_string(task.join("wchan")).unwrap_or_default();
            return Ok(Some(format!("thread {name:?} ({state}, in {place:?})")));
        }
    }
    Ok(None)
}

fn confined(what: &str, source: io::Error) -> EngineError {
    EngineError::Confine { what: what.to_owned(), source }
}

/// The path of an inherited descriptor, for the VMM.
pub(crate) fn inherited(descriptor: RawFd) -> String {
    format!("{DESCRIPTORS}/{descriptor}")
}
