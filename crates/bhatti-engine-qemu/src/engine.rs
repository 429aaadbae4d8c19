//! The engine: everything about starting, finding and sweeping machines.
//!
//! Starting is a chain of steps; each failure undoes what the steps before it made. The chain
//! runs in a task of its own, so a caller that goes away in the middle does not leave half a
//! machine: the task finishes, finds nobody waiting, and ends what it started.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{
    Below, BootSpec, Engine, EngineError, EngineInfo, Private, RestoreSpec, RootDisk, Vm, VmRecord,
};
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::time::timeout;

use crate::cgroup::{Cgroups, Claim, Cleared, Group, Limits};
use crate::cmdline::{Acceleration, Fds, Machine, Seccomp};
use crate::confine::{self, Confinement};
use crate::control;
use crate::disk::{self, OVERLAY};
use crate::jail::Jail;
use crate::machine_dir::{AGENT_SOCKET, MachineDir, QMP_SOCKET};
use crate::probe::{self, AccelChoice, Program};
use crate::process::{self, Process};
use crate::qmp::Qmp;
use crate::vm::{Parts, QemuVm};
use crate::vmm_log::VmmLog;

/// How long QEMU may take from its start to its greeting; 40 ms on an idle machine.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);
/// How long an adopted VMM may take to answer before it is taken as it is. Short, because a
/// daemon that starts waits for it, and the other end may be silent on purpose.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(1);
/// How long the kernel may take to end a process that was killed.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// Path of `qemu-system-x86_64`; `None` looks on `PATH`.
    pub program: Option<Utf8PathBuf>,
    /// Path of `qboot.rom`; `None` looks where distributions put it.
    pub firmware: Option<Utf8PathBuf>,
    pub accel: AccelChoice,
    /// Name of the control group above all machines of this daemon. Two daemons on one host need
    /// two names: [`Engine::sweep`] ends what it finds in there.
    pub cgroup: String,
}

impl Default for QemuConfig {
    fn default() -> Self {
        Self {
            program: None,
            firmware: None,
            accel: AccelChoice::Auto,
            cgroup: "bhatti".to_owned(),
        }
    }
}

/// QEMU's microvm machine.
#[derive(Clone)]
pub struct QemuEngine {
    inner: Arc<Inner>,
}

struct Inner {
    info: EngineInfo,
    program: Program,
    jail: Jail,
    acceleration: Acceleration,
    cgroups: Cgroups,
    host_boot_id: String,
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
        self.inner.cgroups.claim()
    }

    fn start_blocking(config: &QemuConfig) -> Result<Self, EngineError> {
        let (chosen, why) = probe::choose(config.accel, probe::Facts::observe());
        let program = probe::find_program(config.program.as_deref(), chosen)?;
        let firmware = probe::find_firmware(config.firmware.as_deref())?;
        let jail = Jail::of(&program.path, &firmware).map_err(|source| EngineError::Confine {
            what: format!("cannot find what {} loads", program.path),
            source,
        })?;
        confine::rehearse(&program.path, &jail)?;
        let acceleration = probe::acceleration(chosen);
        let cgroups = Cgroups::prepare(&config.cgroup)?;
        let mut warnings = cgroups.warnings().to_vec();
        if program.seccomp == Seccomp::NotBuiltIn {
            warnings.push(format!("{} was built without a system call filter", program.path));
        }
        let path = Utf8Path::new("/proc/sys/kernel/random/boot_id");
        let host_boot_id = process::host_boot_id().map_err(file_error("read", path))?;
        let version = program.version.clone();
        let accel = acceleration.accel();
        let info = EngineInfo { name: "qemu", version, accel, why, warnings };
        let inner = Inner { info, program, jail, acceleration, cgroups, host_boot_id };
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
        let (base, dir) = (below.base, dir.to_owned());
        blocking(move || disk::create(&base, &dir, size, owner)).await
    }

    async fn boot(&self, spec: BootSpec) -> Result<Arc<dyn Vm>, EngineError> {
        let inner = Arc::clone(&self.inner);
        let (reply, booted) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            if let Err(Ok(unwanted)) = reply.send(inner.boot(spec).await) {
                let id = unwanted.record().id;
                tracing::info!(%id, "nobody waits for this machine any more, ending it");
                if let Err(error) = unwanted.kill().await {
                    tracing::error!(%id, %error, "cannot end it");
                }
            }
        });
        match booted.await {
            Ok(result) => result.map(|vm| vm as Arc<dyn Vm>),
            Err(_) => Err(EngineError::Gone), // the runtime is going down
        }
    }

    fn fingerprint(&self) -> &str {
        ""
    }

    async fn restore(&self, _spec: RestoreSpec) -> Result<Arc<dyn Vm>, EngineError> {
        Err(EngineError::Unusable { why: "not built yet".to_owned() })
    }

    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<dyn Vm>>, EngineError> {
        let found = self.inner.adopt(record).await?;
        Ok(found.map(|vm| vm as Arc<dyn Vm>))
    }

    async fn end(&self, record: &VmRecord) -> Result<(), EngineError> {
        self.inner.end(record).await
    }

    async fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, EngineError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.to_vec();
        blocking(move || inner.sweep(&keep)).await
    }
}

/// The machine's files, open, before anything has been started.
struct Opened {
    base: Option<File>,
    qmp: OwnedFd,
    agent: OwnedFd,
    working_dir: OwnedFd,
    disk_bytes: u64,
}

impl Inner {
    async fn boot(self: Arc<Self>, spec: BootSpec) -> Result<Arc<QemuVm>, EngineError> {
        let dir = MachineDir::open(&spec.dir).map_err(file_error("open", &spec.dir))?;
        let (id, owner, memory) = (spec.id.clone(), spec.owner, spec.shape.memory);

        let this = Arc::clone(&self);
        let (dir, group, log, pid) = blocking(move || {
            // First, because it claims the id: from here on everything in it is this boot's.
            let limits = Limits::of(spec.shape, this.acceleration.accel());
            let (group, joins) = this.cgroups.create(&spec.id, limits)?;
            match this.launch(&spec, &dir, joins) {
                Ok((log, pid)) => Ok((dir, group, log, pid)),
                Err(error) => Err(undo(&dir, &group, error)),
            }
        })
        .await?;

        match self.until_greeting(&dir, owner, &log, pid).await {
            Ok((process, qmp)) => {
                let record = VmRecord {
                    id,
                    dir: dir.path().to_owned(),
                    pid,
                    start_ticks: process.start_ticks(),
                    host_boot_id: self.host_boot_id.clone(),
                    cgroups: group.paths(),
                    memory: Some(memory),
                };
                let (qmp, log) = (Some(qmp), Some(log));
                Ok(QemuVm::watch(Parts { record, owner, dir, process, group, qmp, log }))
            }
            Err(error) => {
                let end = move || {
                    let error = undo(&dir, &group, error);
                    collect(pid);
                    Err(error)
                };
                blocking(end).await
            }
        }
    }

    /// Starts the process in the group it is given. On failure the caller undoes.
    fn launch(
        &self,
        spec: &BootSpec,
        dir: &MachineDir,
        cgroups: Vec<OwnedFd>,
    ) -> Result<(VmmLog, i32), EngineError> {
        let opened = open_files(spec, dir)?;
        let fds = Fds {
            qmp: opened.qmp.as_raw_fd(),
            agent: opened.agent.as_raw_fd(),
            base: opened.base.as_ref().map(AsRawFd::as_raw_fd),
            tap: spec.nic.as_ref().map(|nic| nic.tap.as_raw_fd()),
        };
        let machine = Machine {
            accel: self.acceleration,
            shape: spec.shape,
            fds,
            mac: spec.nic.as_ref().map(|nic| nic.mac.clone()),
            seccomp: self.program.seccomp,
        };
        let accel = self.acceleration.accel();
        let jail = self.jail.for_machine(&spec.kernel, &spec.initramfs, accel, spec.owner);
        let confinement = Confinement {
            cgroups,
            inherit: [fds.qmp, fds.agent].into_iter().chain(fds.base).chain(fds.tap).collect(),
            working_dir: opened.working_dir,
            jail: jail.map_err(file_error("find the kernel", &spec.kernel))?,
            file_size: disk::largest_file(opened.disk_bytes),
            owner: spec.owner,
        };
        let log = VmmLog::create().map_err(|e| dir.error("make a log for", "", e))?;
        let mut command = Command::new(&self.program.path);
        command.args(machine.arguments());
        let child = confine::spawn(command, confinement, &log)?;
        // A pid is positive and fits.
        Ok((log, i32::try_from(child.id()).unwrap_or(i32::MAX)))
    }

    /// Waits until QEMU answers on its control socket.
    async fn until_greeting(
        &self,
        dir: &MachineDir,
        owner: Private,
        log: &VmmLog,
        pid: i32,
    ) -> Result<(Process, Qmp), EngineError> {
        let program = self.program.path.to_string();
        let process =
            Process::child(pid).map_err(|source| EngineError::Spawn { program, source })?;
        let qmp = tokio::select! {
            biased;
            qmp = control::connect(dir, owner, GREETING_DEADLINE) => qmp,
            _ = process.wait_readable() => Err(EngineError::DiedEarly { log: log.tail() }),
        };
        match qmp {
            Ok(qmp) => Ok((process, qmp)),
            // A dying QEMU closes the socket a moment before it is dead.
            Err(EngineError::Control { .. }) => {
                process.kill();
                Err(EngineError::DiedEarly { log: log.tail() })
            }
            Err(error) => Err(error),
        }
    }

    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<QemuVm>>, EngineError> {
        let Some(process) = self.recorded(record)? else {
            self.remove_traces(record).await?;
            return Ok(None);
        };
        let dir = MachineDir::open(&record.dir);
        let qmp = match &dir {
            Ok(dir) => greeted_soon(dir, &process).await,
            Err(error) => Err(file_error("open", &record.dir)(io::Error::from(error.kind()))),
        };
        // A process closes its socket a moment before it is dead. If it was our child, somebody
        // has to collect it.
        if qmp.is_err() && has_ended_within(&process, Duration::from_secs(1)).await {
            self.remove_traces(record).await?;
            return Ok(None);
        }
        // It lives, so it is the machine, however it behaves.
        let dir = dir.map_err(file_error("open", &record.dir))?;
        let owner = dir.owner().map_err(file_error("read", &record.dir))?;
        let (record, group) = (record.clone(), self.cgroups.recorded(record));
        let log = VmmLog::of_process(record.pid).ok();
        let qmp = qmp.map_err(|error| {
            tracing::warn!(id = %record.id, %error, "adopted a VMM that does not answer");
        });
        let qmp = qmp.ok();
        Ok(Some(QemuVm::watch(Parts { record, owner, dir, process, group, qmp, log })))
    }

    async fn end(&self, record: &VmRecord) -> Result<(), EngineError> {
        if let Some(process) = self.recorded(record)? {
            process.kill();
            if !has_ended_within(&process, DEATH_DEADLINE).await {
                let seconds = DEATH_DEADLINE.as_secs();
                return Err(EngineError::Timeout { action: "end when killed", seconds });
            }
        }
        self.remove_traces(record).await
    }

    /// Removes what is left of a machine whose process is gone.
    async fn remove_traces(&self, record: &VmRecord) -> Result<(), EngineError> {
        // Whatever is in that group was started by us, and nobody can have it any more.
        let group = self.cgroups.recorded(record);
        blocking(move || group.clear().map(drop).map_err(cannot_clear)).await?;
        if let Ok(dir) = MachineDir::open(&record.dir) {
            dir.remove_sockets();
        }
        Ok(())
    }

    /// The process of a record, if one with that identity is alive in this boot of the host.
    fn recorded(&self, record: &VmRecord) -> Result<Option<Process>, EngineError> {
        if record.host_boot_id != self.host_boot_id {
            return Ok(None);
        }
        let program = self.program.path.to_string();
        Process::find(record.pid, record.start_ticks)
            .map_err(|source| EngineError::Spawn { program, source })
    }

    fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, EngineError> {
        let machines = self.cgroups.machines().map_err(|source| EngineError::Confine {
            what: "cannot list the control groups".to_owned(),
            source,
        })?;
        let mut ended = Vec::new();
        for id in machines.into_iter().filter(|id| !keep.contains(id)) {
            if self.cgroups.group(&id).clear().map_err(cannot_clear)? == Cleared::Killed {
                ended.push(id);
            }
        }
        Ok(ended)
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

/// Whether the process ends in that time; if so, and if it was our child, it is collected.
async fn has_ended_within(process: &Process, patience: Duration) -> bool {
    timeout(patience, process.ended()).await.is_ok()
}

fn open_files(spec: &BootSpec, dir: &MachineDir) -> Result<Opened, EngineError> {
    check_shared(&spec.kernel)?;
    check_shared(&spec.initramfs)?;
    let disk = &spec.root.file;
    // The VMM is told a name in its own directory and sees no other.
    if disk.parent() != Some(spec.dir.as_path()) || disk.file_name() != Some(OVERLAY) {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "not the machine's own disk");
        return Err(file_error("use", disk)(why));
    }
    let overlay = dir.open_file(OVERLAY).map_err(file_error("open", disk))?;
    let socket = |name| dir.bind(name, spec.owner).map_err(|e| dir.error("make", name, e));
    Ok(Opened {
        base: spec.root.base.as_deref().map(open_base).transpose()?,
        disk_bytes: disk::check_overlay(&overlay, spec.root.bytes)
            .map_err(file_error("use", disk))?,
        qmp: socket(QMP_SOCKET)?,
        agent: socket(AGENT_SOCKET)?,
        working_dir: dir.descriptor().map_err(|e| dir.error("hold", ".", e))?,
    })
}

/// Whether this is a file every machine may read. It is shown to the VMM under a name of its own
/// ([`crate::jail`]), which skips the directories above but not the permission of the file.
fn check_shared(path: &Utf8Path) -> Result<(), EngineError> {
    let metadata = std::fs::metadata(path).map_err(file_error("open", path))?;
    if !metadata.is_file() {
        return Err(file_error("use", path)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    if metadata.mode() & 0o004 == 0 {
        let why = "it is not readable by everyone, so not by the VMM's user";
        return Err(file_error("use", path)(io::Error::new(io::ErrorKind::PermissionDenied, why)));
    }
    Ok(())
}

/// Opens an image. QEMU uses this very descriptor, so the file may be private to the daemon.
fn open_base(path: &Utf8Path) -> Result<File, EngineError> {
    let file = File::open(path).map_err(file_error("open", path))?;
    disk::check_image(&file).map_err(file_error("use image", path))?;
    Ok(file)
}

/// Removes what a failed start has made; gives its cause back.
fn undo(dir: &MachineDir, group: &Group, cause: EngineError) -> EngineError {
    if let Err(error) = group.clear() {
        tracing::error!(%error, dir = %dir.path(), "cannot remove a control group");
    }
    dir.remove_sockets();
    cause
}

/// Collects a child that has been killed, so that no zombie stays.
fn collect(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    // ECHILD: it was collected already.
    nix::sys::wait::waitpid(pid, None).ok();
}

fn cannot_clear(source: io::Error) -> EngineError {
    EngineError::Confine { what: "cannot empty a control group".to_owned(), source }
}

fn file_error(action: &'static str, path: &Utf8Path) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::File { action, path: path.to_owned(), source }
}

/// Runs what blocks for longer than a moment away from the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(EngineError::Gone), // the runtime is going down
        },
    }
}
