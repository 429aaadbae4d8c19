//! The engine: everything about starting, finding and sweeping machines.
//!
//! Starting is a chain of steps; each failure undoes what the steps before it made. The chain
//! runs in a task of its own, so a caller that goes away in the middle does not leave half a
//! machine: the task finishes, finds nobody waiting, and ends what it started.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{BootSpec, Engine, EngineError, EngineInfo, Private, RootDisk, Vm, VmRecord};
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::time::{Instant, sleep, timeout};

use crate::cgroup::{Cgroups, Cleared, Group, Limits};
use crate::cmdline::{Acceleration, Fds, Machine, Seccomp};
use crate::confine::Confinement;
use crate::disk;
use crate::machine_dir::{AGENT_SOCKET, MachineDir, QMP_SOCKET, VMM_LOG};
use crate::probe::{self, AccelChoice, Program};
use crate::process::{self, Process};
use crate::qmp::Qmp;
use crate::vm::{Parts, QemuVm};

/// How long QEMU may take from its start to its greeting; 40 ms on an idle machine.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);

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
    firmware: Utf8PathBuf,
    acceleration: Acceleration,
    cgroups: Cgroups,
    host_boot_id: String,
}

impl QemuEngine {
    /// Looks at the host once and decides. Starts nothing.
    pub async fn start(config: QemuConfig) -> Result<Self, EngineError> {
        blocking(move || Self::start_blocking(&config)).await
    }

    fn start_blocking(config: &QemuConfig) -> Result<Self, EngineError> {
        let (chosen, why) = probe::choose(config.accel, probe::Facts::observe());
        let program = probe::find_program(config.program.as_deref(), chosen)?;
        let firmware = probe::find_firmware(config.firmware.as_deref())?;
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
        let inner = Inner { info, program, firmware, acceleration, cgroups, host_boot_id };
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
        base: &Utf8Path,
        dir: &Utf8Path,
        size: Option<Mib>,
        owner: Private,
    ) -> Result<RootDisk, EngineError> {
        let (base, dir) = (base.to_owned(), dir.to_owned());
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

    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<dyn Vm>>, EngineError> {
        let found = self.inner.adopt(record).await?;
        Ok(found.map(|vm| vm as Arc<dyn Vm>))
    }

    async fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, EngineError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.to_vec();
        blocking(move || inner.sweep(&keep)).await
    }
}

/// The machine's files, open, before anything has been started.
struct Opened {
    kernel: File,
    initramfs: File,
    base: Option<File>,
    qmp: OwnedFd,
    agent: OwnedFd,
    log: File,
    working_dir: OwnedFd,
}

impl Inner {
    async fn boot(self: Arc<Self>, spec: BootSpec) -> Result<Arc<QemuVm>, EngineError> {
        let dir = MachineDir::open(&spec.dir).map_err(file_error("open", &spec.dir))?;
        let group = self.cgroups.group(&spec.id);
        let (id, owner) = (spec.id.clone(), spec.owner);

        let (this, undo_group) = (Arc::clone(&self), group.clone());
        let (dir, pid) = blocking(move || {
            // First, because it claims the id: from here on everything in it is this boot's.
            let limits = Limits::of(spec.shape, this.acceleration.accel());
            let joins = undo_group.create(limits)?;
            match this.launch(&spec, &dir, joins) {
                Ok(pid) => Ok((dir, pid)),
                Err(error) => Err(undo(&dir, &undo_group, error)),
            }
        })
        .await?;

        match self.until_greeting(&dir, owner, pid).await {
            Ok((process, qmp)) => {
                let record = VmRecord {
                    id,
                    dir: dir.path().to_owned(),
                    pid,
                    start_ticks: process.start_ticks(),
                    host_boot_id: self.host_boot_id.clone(),
                };
                Ok(QemuVm::watch(Parts { record, owner, dir, process, group, qmp }))
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
    ) -> Result<i32, EngineError> {
        let opened = open_files(spec, dir)?;
        let fds = Fds {
            kernel: opened.kernel.as_raw_fd(),
            initramfs: opened.initramfs.as_raw_fd(),
            qmp: opened.qmp.as_raw_fd(),
            agent: opened.agent.as_raw_fd(),
            base: opened.base.as_ref().map(AsRawFd::as_raw_fd),
            tap: spec.nic.as_ref().map(|nic| nic.tap.as_raw_fd()),
        };
        let machine = Machine {
            accel: self.acceleration,
            firmware: self.firmware.clone(),
            shape: spec.shape,
            fds,
            overlay: spec.root.file.clone(),
            mac: spec.nic.as_ref().map(|nic| nic.mac.clone()),
            seccomp: self.program.seccomp,
        };
        let inherit = [fds.kernel, fds.initramfs, fds.qmp, fds.agent];
        let confinement = Confinement {
            cgroups,
            inherit: inherit.into_iter().chain(fds.base).chain(fds.tap).collect(),
            working_dir: opened.working_dir,
            owner: spec.owner,
        };
        self.spawn(&machine, confinement, opened.log)
    }

    fn spawn(
        &self,
        machine: &Machine,
        confinement: Confinement,
        log: File,
    ) -> Result<i32, EngineError> {
        let error = |source| EngineError::Spawn { program: self.program.path.to_string(), source };
        let mut command = Command::new(&self.program.path);
        command
            .args(machine.arguments())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(error)?)
            .stderr(log);
        // SAFETY: `apply` makes system calls only: it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || confinement.apply()) };
        let child = command.spawn().map_err(error)?;
        // A pid is positive and fits.
        Ok(i32::try_from(child.id()).unwrap_or(i32::MAX))
    }

    /// Waits until QEMU answers on its control socket.
    async fn until_greeting(
        &self,
        dir: &MachineDir,
        owner: Private,
        pid: i32,
    ) -> Result<(Process, Qmp), EngineError> {
        let program = self.program.path.to_string();
        let process =
            Process::child(pid).map_err(|source| EngineError::Spawn { program, source })?;
        let deadline = Instant::now() + GREETING_DEADLINE;
        let greeting = connect_control(dir, owner, deadline);
        let qmp = tokio::select! {
            biased;
            qmp = greeting => qmp,
            _ = process.wait_readable() => Err(EngineError::DiedEarly { log: dir.log_tail() }),
        };
        match qmp {
            Ok(qmp) => Ok((process, qmp)),
            // A dying QEMU closes the socket a moment before it is dead.
            Err(EngineError::Control { .. }) => {
                process.kill();
                Err(EngineError::DiedEarly { log: dir.log_tail() })
            }
            Err(error) => Err(error),
        }
    }

    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<QemuVm>>, EngineError> {
        if let Some(process) = self.recorded(record)? {
            if self.cgroups.holds(&record.id, process.pid()) {
                match self.take_over(record, &process).await {
                    Ok((dir, owner, qmp)) => {
                        let (record, group) = (record.clone(), self.cgroups.group(&record.id));
                        let parts = Parts { record, owner, dir, process, group, qmp };
                        return Ok(Some(QemuVm::watch(parts)));
                    }
                    Err(error) if !is_ending(&process).await => return Err(error),
                    Err(_) => {}
                }
            } else {
                // A process leaves its group a moment before it is dead; if it is our own child,
                // it would stay a zombie. If it is alive and somebody else's, we let it be.
                is_ending(&process).await;
            }
        }
        // Whatever is in that group was started by us, and nobody can have it any more.
        let group = self.cgroups.group(&record.id);
        blocking(move || group.clear().map_err(cannot_clear)).await?;
        if let Ok(dir) = MachineDir::open(&record.dir) {
            dir.remove_sockets();
        }
        Ok(None)
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

    /// Gets in touch with a process that is beyond doubt the recorded machine.
    async fn take_over(
        &self,
        record: &VmRecord,
        process: &Process,
    ) -> Result<(MachineDir, Private, Qmp), EngineError> {
        let dir = MachineDir::open(&record.dir).map_err(file_error("open", &record.dir))?;
        let owner = dir.owner().map_err(file_error("read", &record.dir))?;
        let deadline = Instant::now() + GREETING_DEADLINE;
        let qmp = tokio::select! {
            qmp = connect_control(&dir, owner, deadline) => qmp?,
            _ = process.wait_readable() => return Err(EngineError::Gone),
        };
        Ok((dir, owner, qmp))
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

/// Whether the process ends within a second; if so, and if it was our child, it is collected.
async fn is_ending(process: &Process) -> bool {
    timeout(Duration::from_secs(1), process.ended()).await.is_ok()
}

fn open_files(spec: &BootSpec, dir: &MachineDir) -> Result<Opened, EngineError> {
    let socket = |name| dir.bind(name, spec.owner).map_err(|e| dir.error("make", name, e));
    Ok(Opened {
        kernel: open_shared(&spec.kernel)?,
        initramfs: open_shared(&spec.initramfs)?,
        base: spec.root.base.as_deref().map(open_base).transpose()?,
        qmp: socket(QMP_SOCKET)?,
        agent: socket(AGENT_SOCKET)?,
        log: dir.create_log(VMM_LOG).map_err(|e| dir.error("make", VMM_LOG, e))?,
        working_dir: dir.descriptor().map_err(|e| dir.error("hold", ".", e))?,
    })
}

/// Opens what every machine reads. QEMU opens it again through `/proc/self/fd`, which skips the
/// directories above but not the permission of the file itself.
fn open_shared(path: &Utf8Path) -> Result<File, EngineError> {
    let file = File::open(path).map_err(file_error("open", path))?;
    let metadata = file.metadata().map_err(file_error("read", path))?;
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
    Ok(file)
}

/// Opens an image. QEMU uses this very descriptor, so the file may be private to the daemon.
fn open_base(path: &Utf8Path) -> Result<File, EngineError> {
    let file = File::open(path).map_err(file_error("open", path))?;
    disk::check_image(&file).map_err(file_error("use image", path))?;
    Ok(file)
}

/// Connects to QMP, waiting for QEMU to listen there.
async fn connect_control(
    dir: &MachineDir,
    owner: Private,
    deadline: Instant,
) -> Result<Qmp, EngineError> {
    let mut pause = Duration::from_millis(1);
    loop {
        match dir.connect(QMP_SOCKET, owner).await {
            Ok(stream) => return Qmp::greet(stream, deadline).await,
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
                return Err(dir.error("connect to", QMP_SOCKET, error));
            }
            Err(_) if Instant::now() > deadline => {
                let seconds = GREETING_DEADLINE.as_secs();
                return Err(EngineError::Timeout { action: "greet", seconds });
            }
            // Bound, but not listened on yet: there is nothing to wait for but time.
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(16));
    }
}

/// Removes what a failed start has made; gives its cause back.
fn undo(dir: &MachineDir, group: &Group, cause: EngineError) -> EngineError {
    if let Err(error) = group.clear() {
        tracing::error!(%error, dir = %dir.path(), "cannot remove a control group");
    }
    dir.remove_sockets();
    if let Err(error) = dir.remove(VMM_LOG) {
        tracing::warn!(%error, dir = %dir.path(), "cannot remove a log");
    }
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
