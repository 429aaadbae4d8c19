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
    /// What this is and how it was chosen; known at start, shown by `admin status`.
    fn info(&self) -> &EngineInfo;

    /// Makes the root disk of a new sandbox in `dir`, on top of the read-only `base` image.
    ///
    /// Under QEMU nothing is copied. `size` of `None` keeps the image's size; a larger one makes
    /// a larger device (the guest grows its file system). The file belongs to `owner` afterwards.
    async fn create_root(
        &self,
        base: &Utf8Path,
        dir: &Utf8Path,
        size: Option<Mib>,
        owner: Private,
    ) -> Result<RootDisk, EngineError>;

    /// Starts a machine. On failure nothing is left behind.
    async fn boot(&self, spec: BootSpec) -> Result<Arc<dyn Vm>, EngineError>;

    /// Finds a machine that a former daemon started. `Ok(None)`: it is gone, and its traces
    /// (cgroup, sockets) have been removed.
    ///
    /// The record's process, start time and host boot decide alone. While such a process lives
    /// the answer is never `None`: either a [`Vm`], which may know less than one that was booted
    /// here if the VMM does not co-operate, or an error. After an error the machine may run on:
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

    /// Ends the machine now. Returns when its process is gone. Idempotent.
    async fn kill(&self) -> Result<(), EngineError>;

    /// Resolves when the machine has ended, however that happened. Cancel-safe.
    async fn exited(&self) -> Exit;

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
    /// `qemu`, `firecracker`, `sim`.
    pub name: &'static str,
    /// Version of the VMM program.
    pub version: String,
    pub accel: Accel,
    /// One sentence: why this accelerator, e.g. `no vmx or svm in /proc/cpuinfo`.
    pub why: String,
    /// Promised isolation this host cannot give, one sentence each; empty on a good host.
    pub warnings: Vec<String>,
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
    /// Size of the device in bytes; `None` in a record from before it was kept.
    #[serde(default)]
    pub bytes: Option<u64>,
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

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::None => "none",
        })
    }
}
