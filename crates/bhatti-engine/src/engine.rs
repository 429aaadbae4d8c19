//! The two traits and the values that cross them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// Makes machines. One per daemon.
#[async_trait]
pub trait Engine: Send + Sync {
    /// What this is and how it was chosen; known at start.
    fn info(&self) -> &EngineInfo;

    /// Makes the root disk of a sandbox in `dir`, on top of what `below` names.
    ///
    /// Under QEMU nothing is copied. `size` of `None` keeps the size of what lies below; a larger
    /// one makes a larger device (the guest grows its file system). The file belongs to `owner`
    /// afterwards.
    ///
    /// Layers of another engine will do: the answer says what the new disk stands on, which may be
    /// less than it was given.
    async fn create_root(
        &self,
        below: Below,
        dir: &Utf8Path,
        size: Option<Mib>,
        owner: Private,
    ) -> Result<RootDisk, EngineError>;

    /// What the disks are that [`Self::create_root`] makes. A machine boots and wakes on such a
    /// disk only.
    fn disk_format(&self) -> DiskFormat;

    /// Starts a machine. On failure nothing is left behind.
    async fn boot(&self, spec: BootSpec) -> Result<Arc<dyn Vm>, EngineError>;

    /// What a snapshot can be restored by: two equal texts mean that either engine can load what
    /// the other has saved. Names the VMM, its version, the CPU and whatever else a saved device
    /// state silently depends on.
    fn fingerprint(&self) -> &str;

    /// Whether a snapshot was saved by an engine like this on a host like this; if not,
    /// [`EngineError::Foreign`]. Reads little: what is damaged may be found by [`Self::restore`]
    /// only. So that nothing is made ready for what cannot be restored.
    async fn recognise(&self, snapshot: &Utf8Path) -> Result<(), EngineError>;

    /// Starts a machine from a snapshot that [`Vm::save`] made. It is paused; nothing of it has
    /// run. On failure nothing is left behind.
    ///
    /// Every byte of memory is checked against what was saved. [`EngineError::Unusable`] means
    /// that this snapshot is of no use anywhere, [`EngineError::Foreign`] that it is, elsewhere;
    /// any other error is about the host, now.
    async fn restore(&self, spec: RestoreSpec) -> Result<Arc<dyn Vm>, EngineError>;

    /// Finds a machine that a former daemon started. `Ok(None)`: it is gone, and its traces
    /// (cgroup, sockets) have been removed.
    ///
    /// The record's process, start time and host boot decide alone. While such a process lives
    /// the answer is never `None`: either a [`Vm`], which may know less than one that was booted
    /// here if the VMM does not co-operate, or an error: [`EngineError::Foreign`] if another
    /// engine started it. After an error the machine may run on:
    /// its id belongs into the `keep` of [`Engine::sweep`], and [`Engine::end`] still ends it.
    async fn adopt(&self, record: &VmRecord) -> Result<Option<Arc<dyn Vm>>, EngineError>;

    /// Ends the machine of a record, if it still runs, and removes its traces. Returns when its
    /// process is gone. Idempotent.
    ///
    /// Needs nothing of the machine: no handle, no control connection, no directory. A handle
    /// that exists sees the end.
    async fn end(&self, record: &VmRecord) -> Result<(), EngineError>;

    /// Ends every machine of ours that is not in `keep` and removes its traces. Returns what it
    /// ended. Used once at start, after adoption.
    async fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, EngineError>;
}

/// One running machine. Cheap to share; dropping it does not end the machine.
#[async_trait]
pub trait Vm: Send + Sync {
    /// What the store must remember so that the next daemon can [`Engine::adopt`] this machine.
    fn record(&self) -> VmRecord;

    /// Opens the carrier of the host–guest link. At most one at a time; opening again closes the
    /// former one.
    async fn open_link(&self) -> Result<Carrier, EngineError>;

    /// Stops the virtual CPUs; memory stays. Everything the guest wrote to its disk is in the
    /// files afterwards. Idempotent.
    async fn pause(&self) -> Result<(), EngineError>;

    /// Lets the virtual CPUs run (again). Idempotent.
    async fn resume(&self) -> Result<(), EngineError>;

    /// Writes memory and device state into a directory. The machine is paused, and stays so.
    ///
    /// Writes what changed since [`Save::since`], links the rest. Nothing is synced to the medium:
    /// that is the caller's, who may want to let the machine go on first. On failure the directory
    /// holds rubbish and the machine is as it was.
    async fn save(&self, save: Save) -> Result<Saved, EngineError>;

    /// Gives the paused machine a new, empty top layer on its disk. The former top is moved to
    /// `sealed`, on the same file system, and nobody writes it any more. `disk` is the present
    /// state, the answer the new one.
    async fn seal_disk(&self, disk: &RootDisk, sealed: &Utf8Path) -> Result<RootDisk, EngineError>;

    /// Copies into the top of the paused machine's disk what the sealed layers above the first
    /// `keep` hold and the top does not. Afterwards the disk stands on `disk.layers[..keep]`
    /// alone, and the machine has let go of the others. `disk` is the present state, the answer
    /// the new one; the top keeps its name. With nothing to merge nothing is done.
    ///
    /// No sealed layer is written. On failure, or if nobody lives to hear the answer, whoever
    /// reads the disk through all layers of `disk` reads what he read before, and the call can be
    /// repeated. What was copied need not be on the medium: before a layer is removed, the top is
    /// to be synced.
    async fn merge_disk(&self, disk: &RootDisk, keep: usize) -> Result<RootDisk, EngineError>;

    /// The file the machine writes its disk to now: what [`Self::seal_disk`] named last, whether
    /// or not its caller lived to hear it.
    async fn disk_top(&self) -> Result<Utf8PathBuf, EngineError>;

    /// Ends the machine now. Returns when its process is gone, or with an error if the kernel does not
    /// end it within a time. Idempotent.
    async fn kill(&self) -> Result<(), EngineError>;

    /// Resolves when the machine has ended, however that happened. Cancel-safe.
    async fn exited(&self) -> Exit;

    /// How often the limits of its disk and its network have held the machine back, since it was
    /// started or, of one that was adopted, since some moment before that. `None`: nobody counts. Wakes
    /// nothing, takes a second at most and may be a minute old if the VMM is busy.
    async fn held_back(&self) -> Option<HeldBack> {
        None
    }

    /// The last bytes of the guest's console, at most 64 KiB. Bounded however much was printed.
    /// After the machine has ended: what was there at its end, if it could be saved.
    async fn console(&self) -> Vec<u8>;
}

/// What carries the link between host and guest.
pub enum Carrier {
    /// One byte stream for everything; the link multiplexes over it (virtio-serial).
    Single(Box<dyn Duplex>),
}

/// A byte stream in both directions.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}

/// How an engine came to be chosen and what it can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineInfo {
    pub name: EngineName,
    /// Version of the VMM program.
    pub version: String,
    pub accel: Accel,
    /// One sentence: why this accelerator, e.g. `no vmx or svm in /proc/cpuinfo`.
    pub why: String,
    /// Promised isolation this host cannot give, one sentence each; empty on a good host.
    pub warnings: Vec<String>,
    pub capabilities: Capabilities,
}

/// What not every engine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Machines with memory in pages of 2 MiB ([`BootSpec::hugepages`]).
    pub hugepages: bool,
    /// The most memory a machine can have, if that is less than the host has.
    pub most_memory: Option<Mib>,
    /// The most virtual CPUs a machine can have, if that is known.
    pub most_vcpus: Option<u32>,
    /// Whether machines have limits here that are counted ([`Vm::held_back`]).
    pub counts_limits: bool,
}

impl EngineInfo {
    /// Whether there can be such a machine; [`EngineError::Unsupported`] if not.
    pub fn supports(&self, shape: Shape, hugepages: bool) -> Result<(), EngineError> {
        let Self { name, capabilities, .. } = self;
        let Capabilities { hugepages: huge, most_memory, most_vcpus, .. } = *capabilities;
        let (Mib(memory), vcpus) = (shape.memory, shape.vcpus());
        let none_with = match (most_memory, most_vcpus) {
            (Some(Mib(most)), _) if memory > most => format!("with more than {most} MB of memory"),
            (_, Some(most)) if vcpus > most => format!("with more than {most} CPUs"),
            _ if hugepages && !huge => "on huge pages: create without --hugepages".to_owned(),
            _ if hugepages && !memory.is_multiple_of(2) => {
                format!("on huge pages of 2 MB with {memory} MB of memory: take an even number")
            }
            _ => return Ok(()),
        };
        let what = format!("the {name} engine of this host makes no machines {none_with}");
        Err(EngineError::Unsupported { what })
    }
}

/// The engines there are, by the words of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// What started every machine whose record does not say.
    #[default]
    Qemu,
    Firecracker,
    Sim,
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation.
    Tcg,
    /// No machine at all: the simulator.
    None,
}

/// Everything needed to start a machine.
#[derive(Debug)]
pub struct BootSpec {
    pub id: EngineId,
    /// The machine's own directory. It exists, is empty but for the root disk, and belongs to
    /// `owner`; the engine may put sockets and logs there.
    pub dir: Utf8PathBuf,
    pub shape: Shape,
    /// Uncompressed kernel (`vmlinux`).
    pub kernel: Utf8PathBuf,
    pub initramfs: Utf8PathBuf,
    pub root: RootDisk,
    pub nic: Option<Nic>,
    pub owner: Private,
    /// Memory in pages of 2 MiB, of which the host must have reserved enough. Such memory is
    /// shared with nobody, and every save writes all of it.
    pub hugepages: bool,
}

/// A machine, and what it wakes as.
#[derive(Debug)]
pub struct RestoreSpec {
    /// As at boot. The shape must give the same number of virtual CPUs and the same memory as
    /// what was saved; kernel and initramfs are not looked at.
    pub machine: BootSpec,
    /// The directory [`Vm::save`] filled.
    pub snapshot: Utf8PathBuf,
    /// The snapshot whose memory this machine shares with all others that stand on it, page by
    /// page until it writes. Either `snapshot` itself, to make a clone of it, or the base that
    /// was named when `snapshot` was saved. `None`: the machine has its memory alone.
    pub base: Option<Utf8PathBuf>,
}

/// Where a snapshot goes, and what need not be written again.
#[derive(Clone, Debug)]
pub struct Save {
    /// An empty directory that nobody but us can enter.
    pub into: Utf8PathBuf,
    /// A former snapshot of this machine or of what it was restored from: memory that is equal
    /// there is linked. With the same base.
    pub since: Option<Utf8PathBuf>,
    /// As it was at [`Engine::restore`]; `None` for a machine that was booted.
    pub base: Option<Utf8PathBuf>,
}

/// How often a machine had to wait because it had used what its limits allow, since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldBack {
    /// Reading or writing its disk.
    pub disk: u64,
    /// Sending to its network.
    pub sent: u64,
    /// Receiving from it.
    pub received: u64,
}

/// What a save came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Bytes written now.
    pub written: u64,
    /// Bytes of all files of the snapshot, the linked ones included.
    pub total: u64,
}

/// What lies below a sandbox's own disk layer: read by many, written by nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below {
    /// The raw image.
    pub base: Utf8PathBuf,
    /// Sealed layers over it, the lowest first.
    pub layers: Vec<Utf8PathBuf>,
    /// Of the layers. The base is raw.
    pub format: DiskFormat,
    /// How large the device is, if that is recorded: what the layers say of themselves is their
    /// writer's word.
    pub bytes: Option<u64>,
}

impl Below {
    /// An image and nothing else.
    pub fn image(base: Utf8PathBuf) -> Self {
        Self { base, layers: Vec::new(), format: DiskFormat::default(), bytes: None }
    }
}

/// How a disk lies in files. It is recorded and never guessed from what is in them, which the guest
/// has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Each layer holds what differs from those below it. All disks whose record does not say.
    #[default]
    Qcow2,
    /// Each file is the whole disk, byte for byte, and needs nothing below it.
    Raw,
}

/// The unprivileged identity a VMM runs as; one per sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    pub uid: u32,
    pub gid: u32,
}

/// How big a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// What was bought, in thousandths of a CPU; the cgroup's quota.
    pub milli_cpus: u32,
    pub memory: Mib,
}

impl Shape {
    /// Virtual CPUs the guest sees: the quota rounded up, at least one.
    pub fn vcpus(&self) -> u32 {
        self.milli_cpus.div_ceil(1000).max(1)
    }
}

/// A root disk as [`Engine::create_root`] made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDisk {
    /// The sandbox's own file.
    pub file: Utf8PathBuf,
    /// The shared read-only image below it; `None` if `file` is complete by itself.
    pub base: Option<Utf8PathBuf>,
    /// Sealed layers between the two, the lowest first.
    #[serde(default)]
    pub layers: Vec<Utf8PathBuf>,
    /// Size of the device in bytes; `None` in a record from before it was kept.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Of the file and the layers. The base is raw.
    #[serde(default)]
    pub format: DiskFormat,
}

/// The one network device.
#[derive(Debug)]
pub struct Nic {
    /// Locally administered, `02:…`.
    pub mac: String,
    /// An open TAP (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR). It lives in the user's namespace and
    /// vanishes when the last descriptor closes.
    pub tap: OwnedFd,
}

/// Enough to find a machine again and to prove that it is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    pub id: EngineId,
    /// Who started it.
    #[serde(default)]
    pub engine: EngineName,
    pub dir: Utf8PathBuf,
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot: with the pid, an identity.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id` of the host it was started in.
    pub host_boot_id: String,
    /// The control groups made for it, as absolute paths, so that a daemon configured otherwise
    /// still finds them. Empty if the engine makes none, and in older records.
    #[serde(default)]
    pub cgroups: Vec<Utf8PathBuf>,
    /// How much memory it has, to find it in the process; `None` in a record from before
    /// machines could be saved.
    #[serde(default)]
    pub memory: Option<Mib>,
    /// Where in the process that memory is, in the guest's order; empty where it is found by its
    /// name, and in older records.
    #[serde(default)]
    pub memory_at: Vec<Piece>,
}

/// Guest memory that lies in one range of its process's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Where it begins.
    pub start: u64,
    /// In bytes.
    pub bytes: u64,
}

impl Piece {
    /// The address behind it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

impl VmRecord {
    /// Whether that engine started it; [`EngineError::Foreign`] if not.
    pub fn is_of(&self, here: EngineName) -> Result<(), EngineError> {
        let Self { engine, .. } = self;
        if *engine == here {
            return Ok(());
        }
        let why = format!(
            "its machine runs under the {engine} engine, and this daemon runs {here}: start the \
             daemon with \"engine: {engine}\" to use it, or destroy it"
        );
        Err(EngineError::Foreign { why })
    }
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off or rebooted by itself.
    Guest,
    /// We ended it.
    Killed,
    /// The VMM process died: crash, OOM, somebody's kill.
    Died { detail: String },
}

impl std::fmt::Display for EngineName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::Sim => "sim",
        })
    }
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::None => "none",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_cannot_do_is_refused_with_its_name() {
        let info = |hugepages, most_memory, most_vcpus| EngineInfo {
            name: EngineName::Firecracker,
            version: String::new(),
            accel: Accel::Kvm,
            why: String::new(),
            warnings: Vec::new(),
            capabilities: Capabilities { hugepages, most_memory, most_vcpus, counts_limits: false },
        };
        let all = info(true, None, None);
        let little = info(false, Some(Mib(3072)), Some(32));
        let shape = |milli_cpus, memory| Shape { milli_cpus, memory: Mib(memory) };
        for (milli_cpus, memory) in [(500, 256), (32_000, 3072)] {
            assert!(little.supports(shape(milli_cpus, memory), false).is_ok());
            assert!(all.supports(shape(milli_cpus << 3, memory << 8), true).is_ok());
        }
        let refused = |shape, hugepages| match little.supports(shape, hugepages) {
            Err(EngineError::Unsupported { what }) => what,
            other => panic!("{other:?}"),
        };
        let what = refused(shape(500, 3073), false);
        assert!(what.contains("firecracker") && what.contains("more than 3072 MB"), "{what}");
        assert!(refused(shape(32_001, 256), false).contains("more than 32 CPUs"));
        assert!(refused(shape(500, 256), true).contains("without --hugepages"));
        assert!(all.supports(shape(500, 256), true).is_ok());
        assert!(all.supports(shape(500, 255), false).is_ok());
        let odd = all.supports(shape(500, 255), true).unwrap_err().to_string();
        assert!(odd.contains("255 MB of memory: take an even number"), "{odd}");
    }
}
