//! Starting a VMM, to boot or to be restored: open files, command line, jail, process, greeting.
//!
//! What fails here undoes what came before it. [`Started`] is the last step: a VMM that answers,
//! which the caller either watches or gives up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{BootSpec, EngineError, EngineName, Private, RootDisk, VmRecord};
use camino::Utf8Path;

use crate::cmdline::{Fds, Machine, Memory, Start};
use crate::control::{self, QMP_SOCKET};
use crate::disk::{self, MAX_LAYERS, TopName};
use crate::engine::Inner;
use crate::qmp::Qmp;
use crate::vm::{AGENT_SOCKET, Parts, QemuVm};
use bhatti_vmm::cgroup::{Group, Joins, Limits};
use bhatti_vmm::confine::{self, Confinement};
use bhatti_vmm::former::DEATH_DEADLINE;
use bhatti_vmm::machine_dir::MachineDir;
use bhatti_vmm::memory::template::InUse;
use bhatti_vmm::process::{Process, collect};
use bhatti_vmm::vmm_log::VmmLog;
use bhatti_vmm::{blocking, check_shared, file_error, hugepages};

/// How long QEMU may take from its start to its greeting; 40 ms on an idle machine.
const GREETING_DEADLINE: Duration = Duration::from_secs(20);

/// What a machine starts from.
pub(crate) enum Origin {
    /// A kernel.
    Kernel,
    /// A device state it is yet to be given, over this memory or none.
    Snapshot(Option<Arc<InUse>>),
}

/// A VMM that has greeted and that nobody watches yet.
pub(crate) struct Started {
    pub dir: MachineDir,
    pub process: Process,
    pub qmp: Qmp,
    pub log: VmmLog,
    pub record: VmRecord,
    owner: Private,
    group: Group,
    origin: Origin,
}

/// The machine's files, open, before anything has been started.
struct Opened {
    base: Option<File>,
    layers: Vec<File>,
    qmp: OwnedFd,
    agent: OwnedFd,
    working_dir: OwnedFd,
    top: TopName,
    disk_bytes: u64,
}

impl Inner {
    /// Starts a VMM. On failure nothing is left behind.
    pub(crate) async fn start(
        self: &Arc<Self>,
        spec: BootSpec,
        origin: Origin,
    ) -> Result<Started, EngineError> {
        let dir = MachineDir::open(&spec.dir).map_err(file_error("open", &spec.dir))?;
        let (id, owner, memory) = (spec.id.clone(), spec.owner, spec.shape.memory);

        let this = Arc::clone(self);
        let (dir, group, log, pid, origin) = blocking(move || {
            if spec.hugepages {
                hugepages::check(memory)?;
            }
            // First, because it claims the id: from here on everything in it is this start's.
            let limits = Limits::of(spec.shape, this.acceleration.accel());
            let (group, joins) = this.machines.cgroups.create(&spec.id, limits)?;
            match this.launch(&spec, &origin, &dir, joins) {
                Ok((log, pid)) => Ok((dir, group, log, pid, origin)),
                Err(error) => Err(undo(&dir, &group, error)),
            }
        })
        .await?;

        match self.until_greeting(&dir, owner, &log, pid).await {
            Ok((process, qmp)) => {
                let record = VmRecord {
                    id,
                    engine: EngineName::Qemu,
                    dir: dir.path().to_owned(),
                    pid,
                    start_ticks: process.start_ticks(),
                    host_boot_id: self.machines.host_boot_id.clone(),
                    cgroups: group.paths(),
                    memory: Some(memory),
                    memory_at: Vec::new(),
                };
                Ok(Started { dir, process, qmp, log, record, owner, group, origin })
            }
            Err(error) => Err(give_up(dir, group, pid, error).await),
        }
    }

    /// Starts the process in the group it is given. On failure the caller undoes.
    fn launch(
        &self,
        spec: &BootSpec,
        origin: &Origin,
        dir: &MachineDir,
        cgroups: Joins,
    ) -> Result<(VmmLog, i32), EngineError> {
        let opened = open_files(spec, dir)?;
        let accel = self.acceleration.accel();
        let jail = self.jail.for_machine(accel, spec.owner);
        let template = match origin {
            Origin::Kernel | Origin::Snapshot(None) => None,
            Origin::Snapshot(Some(template)) => Some(template.descriptor().as_raw_fd()),
        };
        let (start, jail) = match origin {
            Origin::Kernel => {
                check_shared(&spec.kernel)?;
                check_shared(&spec.initramfs)?;
                let jail = jail.with_kernel(&spec.kernel, &spec.initramfs);
                (Start::Boot, jail.map_err(file_error("find the kernel", &spec.kernel))?)
            }
            Origin::Snapshot(None) => (Start::Restore, jail),
            Origin::Snapshot(Some(_)) => (Start::Restore, jail.with_descriptors()),
        };
        let machine = Machine {
            arch: self.arch,
            accel: self.acceleration,
            shape: spec.shape,
            start,
            memory: match template {
                _ if spec.hugepages => Memory::Hugepages,
                Some(fd) => Memory::Template(fd),
                None => Memory::Zero,
            },
            top: opened.top.clone(),
            fds: opened.fds(spec),
            mac: spec.nic.as_ref().map(|nic| nic.mac.clone()),
            seccomp: self.program.seccomp,
        };
        // A file of huge pages is a file as well, though one in memory.
        let memory_file = if spec.hugepages { spec.shape.memory.bytes() } else { 0 };
        let confinement = Confinement {
            cgroups,
            inherit: machine.fds.iter().chain(template).collect(),
            working_dir: opened.working_dir,
            network: None,
            output: None,
            jail,
            file_size: disk::largest_file(opened.disk_bytes).max(memory_file),
            owner: spec.owner,
        };
        let log = VmmLog::create().map_err(|e| dir.error("make a log for", "", e))?;
        let mut command = Command::new(&self.program.path);
        command.args(machine.arguments());
        let pid = confine::spawn(&command, confinement, &log)?;
        Ok((log, pid))
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
}

impl Started {
    /// Watches it from now on.
    pub(crate) fn watch(self, inner: &Inner) -> Arc<QemuVm> {
        let template = self.template();
        let Self { dir, process, qmp, log, record, owner, group, origin: _ } = self;
        let host = inner.host.clone();
        let (qmp, log) = (Some(qmp), Some(log));
        QemuVm::watch(Parts { record, owner, dir, process, group, qmp, log, host, template })
    }

    /// The template its memory stands on.
    pub(crate) fn template(&self) -> Option<Arc<InUse>> {
        match &self.origin {
            Origin::Kernel => None,
            Origin::Snapshot(template) => template.clone(),
        }
    }

    /// Ends it and removes its traces; gives the cause back.
    pub(crate) async fn give_up(self, cause: EngineError) -> EngineError {
        give_up(self.dir, self.group, self.record.pid, cause).await
    }
}

async fn give_up(dir: MachineDir, group: Group, pid: i32, cause: EngineError) -> EngineError {
    let end = move || {
        let cause = undo(&dir, &group, cause);
        collect(pid, DEATH_DEADLINE);
        Ok(cause)
    };
    blocking(end).await.unwrap_or(EngineError::Gone)
}

impl Opened {
    fn fds(&self, spec: &BootSpec) -> Fds {
        Fds {
            qmp: self.qmp.as_raw_fd(),
            agent: self.agent.as_raw_fd(),
            base: self.base.as_ref().map(AsRawFd::as_raw_fd),
            layers: self.layers.iter().map(AsRawFd::as_raw_fd).collect(),
            tap: spec.nic.as_ref().map(|nic| nic.tap.as_fd().as_raw_fd()),
        }
    }
}

fn open_files(spec: &BootSpec, dir: &MachineDir) -> Result<Opened, EngineError> {
    let disk = &spec.root;
    let top = own_disk(disk, dir)?;
    let overlay = dir.open_file(&top.file()).map_err(file_error("open", &disk.file))?;
    let disk_bytes =
        disk::check_overlay(&overlay, disk.bytes).map_err(file_error("use", &disk.file))?;
    let socket = |name| dir.bind(name, spec.owner).map_err(|e| dir.error("make", name, e));
    Ok(Opened {
        base: disk.base.as_deref().map(open_base).transpose()?,
        layers: open_layers(disk, disk_bytes)?,
        top,
        disk_bytes,
        qmp: socket(QMP_SOCKET)?,
        agent: socket(AGENT_SOCKET)?,
        working_dir: dir.descriptor().map_err(|e| dir.error("hold", ".", e))?,
    })
}

/// The name of a disk's top layer, which must be the machine's own: the VMM is told a name in its
/// own directory and sees no other.
pub(crate) fn own_disk(disk: &RootDisk, dir: &MachineDir) -> Result<TopName, EngineError> {
    let inside = disk.file.parent() == Some(dir.path());
    TopName::of(&disk.file).filter(|_| inside).ok_or_else(|| {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "not the machine's own disk");
        file_error("use", &disk.file)(why)
    })
}

/// Opens the sealed layers. QEMU uses these very descriptors, so the files may be private.
fn open_layers(disk: &RootDisk, top_bytes: u64) -> Result<Vec<File>, EngineError> {
    let refuse = |path: &Utf8Path, why: &str| {
        let why = io::Error::new(io::ErrorKind::InvalidData, why);
        file_error("use disk layer", path)(why)
    };
    if disk.layers.len() > MAX_LAYERS {
        return Err(refuse(&disk.file, "it lies on too many layers"));
    }
    let mut files = Vec::with_capacity(disk.layers.len());
    let mut below = 0;
    for path in &disk.layers {
        let (file, bytes) = disk::open_layer(path)?;
        if bytes < below || bytes > top_bytes {
            return Err(refuse(path, "its header says another size than fits where it lies"));
        }
        below = bytes;
        files.push(file);
    }
    Ok(files)
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
    dir.remove_traces();
    cause
}
