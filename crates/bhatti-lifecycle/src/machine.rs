//! One machine: booting it, reaching its guest, and taking every trace of it away.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{
    BootSpec, Engine, EngineError, Nic, Private, RestoreSpec, RootDisk, Shape, Vm, VmRecord,
};
use bhatti_guest_client::{Guest, GuestError, Mode};
use bhatti_storage::Layout;
use bhatti_store::{Db, SandboxRow, UserRow};
use bhatti_types::EngineId;
use camino::Utf8PathBuf;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::golden::{GoldenLimits, Goldens};
use crate::guest::{self, Reach};
use crate::idle::Thermal;
use crate::{Events, Tasks, WakeError};

/// What the daemon was configured with, as far as sandboxes care.
#[derive(Clone, Debug)]
pub struct Settings {
    pub kernel: Utf8PathBuf,
    pub initramfs: Utf8PathBuf,
    /// The image of a create that names none.
    pub default_image: String,
    /// Uids for VMMs: the first, and how many.
    pub uids: (u32, u32),
    /// How long a machine may take from start to its agent's first answer.
    pub boot_timeout: Duration,
    /// Told to every guest.
    pub version: String,
    /// When sandboxes fall asleep.
    pub thermal: Thermal,
    /// How many golden snapshots may be kept.
    pub goldens: GoldenLimits,
}

/// Gives machines their network device. Implemented by [`bhatti_net::Networks`]; tests of the
/// logic need no network.
#[async_trait]
pub trait Taps: Send + Sync {
    /// A TAP in the network of the user with that subnet index. `None`: no network at all.
    async fn open_tap(
        &self,
        subnet: u32,
        id: &EngineId,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>>;

    /// A TAP that leads nowhere, for a machine that belongs to nobody.
    async fn open_detached(
        &self,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>>;

    /// What is recorded of the user's sandboxes has changed, and is to hold now.
    async fn apply(&self, subnet: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// How often the guest at that address was denied something.
    async fn denied(
        &self,
        subnet: u32,
        address: Ipv4Addr,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>>;

    /// Connects to a TCP port of machine `id`, which has that address. `None`: there is no network.
    /// The caller brings the deadline.
    async fn dial(
        &self,
        _subnet: u32,
        _id: &EngineId,
        _address: Ipv4Addr,
        _port: u16,
    ) -> Result<Option<TcpStream>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(None)
    }

    /// The user has no sandbox left: their network may go.
    async fn release(&self, subnet: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

#[async_trait]
impl Taps for bhatti_net::Networks {
    async fn open_tap(
        &self,
        subnet: u32,
        id: &EngineId,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Some(bhatti_net::Networks::open_tap(self, subnet, id).await?))
    }

    async fn open_detached(
        &self,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Some(self.open_detached_tap().await?))
    }

    async fn apply(&self, subnet: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(bhatti_net::Networks::apply(self, subnet).await?)
    }

    async fn denied(
        &self,
        subnet: u32,
        address: Ipv4Addr,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        Ok(bhatti_net::Networks::denied(self, subnet, address).await?)
    }

    async fn dial(
        &self,
        subnet: u32,
        id: &EngineId,
        address: Ipv4Addr,
        port: u16,
    ) -> Result<Option<TcpStream>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Some(bhatti_net::Networks::dial(self, subnet, id, address, port).await?))
    }

    async fn release(&self, subnet: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self.release_user(subnet).await? {
            bhatti_net::Released::Removed => {}
            bhatti_net::Released::InUse(machines) => {
                tracing::warn!(subnet, machines, "a network without sandboxes is still in use");
            }
        }
        Ok(())
    }
}

/// Everything a machine needs from around it.
pub(crate) struct World {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) taps: Arc<dyn Taps>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) db: Db,
    pub(crate) settings: Settings,
    pub(crate) tasks: Tasks,
    pub(crate) events: Events,
    pub(crate) goldens: Goldens,
    /// Opening a TAP reads, removing a user's network writes: so a network never goes while a
    /// new sandbox of the same user is about to use it.
    pub(crate) networks: tokio::sync::RwLock<()>,
    /// Linking what is in a named snapshot reads, removing one writes.
    pub(crate) snapshots: tokio::sync::RwLock<()>,
}

/// A machine, and its guest while the link stands.
pub(crate) struct Machine {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) guest: Option<Guest>,
    /// It was told to stand, and has not gone on since: its guest will not answer.
    pub(crate) stands: bool,
}

impl Machine {
    /// The guest, if there is a link to it.
    pub(crate) fn link(&self) -> Option<Guest> {
        self.guest.clone().filter(|guest| !guest.is_gone())
    }

    /// A guest that answers: over the standing link or a new one, and with the right time. A
    /// machine that stands goes on.
    pub(crate) async fn guest(&mut self, world: &World) -> Result<Guest, WakeError> {
        if let Some(guest) = self.guest.as_ref().filter(|guest| !guest.is_gone()) {
            let answers = if self.stands {
                // Both at once: what is said to a machine that stands waits in front of it.
                let resume = async { self.vm.resume().await.map_err(WakeError::Engine) };
                let set_clock = async { Ok(guest.set_clock().await.is_ok()) };
                tokio::try_join!(resume, set_clock)?.1
            } else {
                true
            };
            self.stands = false;
            if answers {
                return Ok(guest.clone());
            }
        }
        self.guest = None;
        // The greeting of a new link sets the clock too.
        let reach = Reach {
            mode: Mode::Reconnect,
            patience: RECONNECT_TIMEOUT,
            resume: self.stands,
            identity: None,
        };
        let guest = guest::reach(world, &self.vm, reach).await?;
        self.stands = false;
        Ok(self.guest.insert(guest).clone())
    }

    /// Stops the virtual CPUs. If that fails they may stand all the same.
    pub(crate) async fn pause(&mut self) -> Result<(), WakeError> {
        self.stands = true;
        self.vm.pause().await.map_err(WakeError::Engine)
    }

    /// [`Self::pause`] for a save: before that, everything in the guest is held, so that whoever
    /// goes on from here, also as a clone, does so only after the next greeting. For a machine
    /// that runs and has a link, which [`Self::guest`] sees to. One that cannot do that stands all
    /// the same.
    pub(crate) async fn hold_and_pause(&mut self) -> Result<(), WakeError> {
        let runs = !self.stands;
        if let Some(guest) = self.guest.as_ref().filter(|guest| runs && !guest.is_gone()) {
            match guest.hold(HOLD).await {
                Ok(()) => {}
                Err(GuestError::Unsupported(_)) => {
                    tracing::debug!("an agent that cannot hold what runs in its guest");
                }
                Err(error) => {
                    let error = crate::chain(&error);
                    tracing::warn!(error, "paused without holding what runs in the guest");
                }
            }
        }
        self.pause().await
    }

    /// The record of its process, as the store keeps it.
    pub(crate) fn to_json(&self) -> Result<serde_json::Value, WakeError> {
        to_json("vm", &self.vm.record())
    }
}

/// How long a guest may take to hold everything that runs in it: some milliseconds, if nothing is
/// wrong.
const HOLD: Duration = Duration::from_secs(1);

/// How long a guest may take to answer a new link. It is running already, so this is only
/// about a busy host.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The identity a sandbox's VMM runs as.
pub(crate) fn owner_of(row: &SandboxRow) -> Private {
    Private { uid: row.vmm_uid, gid: row.vmm_uid }
}

fn record<T: serde::de::DeserializeOwned>(
    what: &str,
    value: &serde_json::Value,
) -> Result<T, WakeError> {
    serde_json::from_value(value.clone())
        .map_err(|error| WakeError::Record(format!("{what}: {error}")))
}

/// A value as the store keeps it.
pub(crate) fn to_json<T: serde::Serialize>(
    what: &str,
    value: &T,
) -> Result<serde_json::Value, WakeError> {
    serde_json::to_value(value).map_err(|error| WakeError::Record(format!("{what}: {error}")))
}

/// The machine the row says was running, if it says so.
pub(crate) fn vm_record(row: &SandboxRow) -> Result<Option<VmRecord>, WakeError> {
    row.vm.as_ref().map(|value| record("vm", value)).transpose()
}

/// A disk as the store keeps it.
pub(crate) fn disk_record(value: &serde_json::Value) -> Result<RootDisk, WakeError> {
    record("root disk", value)
}

/// What the machine of `row` is, over the disk that `root` makes. Making that and opening the
/// TAP go on at the same time.
pub(crate) async fn spec(
    world: &World,
    row: &SandboxRow,
    subnet: u32,
    root: impl Future<Output = Result<RootDisk, WakeError>>,
) -> Result<BootSpec, WakeError> {
    let begun = Instant::now();
    let tap = async {
        let _staying = world.networks.read().await;
        let tap = world.taps.open_tap(subnet, &row.engine_id).await;
        (tap.map_err(WakeError::Network), millis_since(begun))
    };
    let root = async { (root.await, millis_since(begun)) };
    // Both to their end: what is making files must not be left alone with them.
    let ((root, disk_ms), (tap, network_ms)) = tokio::join!(root, tap);
    let (root, tap) = (root?, tap?);
    tracing::info!(disk_ms, network_ms, "disk and network are there");
    Ok(BootSpec {
        id: row.engine_id.clone(),
        dir: world.layout.sandbox(&row.engine_id),
        shape: Shape { milli_cpus: row.cpus.milli(), memory: row.memory },
        kernel: world.settings.kernel.clone(),
        initramfs: world.settings.initramfs.clone(),
        root,
        nic: tap.map(|tap| Nic { mac: bhatti_net::guest_mac(&row.engine_id), tap }),
        owner: owner_of(row),
        hugepages: row.hugepages,
    })
}

/// Boots the machine of `row` and waits for its guest, which has the sandbox's identity
/// afterwards. The row's `vm` is recorded as soon as there is a process, so that a crash from
/// then on finds it. On failure, or when `stop` fires, no process is left; the directory and the
/// row are the caller's. Not to be dropped half-way: `stop` is how to end it early.
pub(crate) async fn boot(
    world: &World,
    row: &SandboxRow,
    spec: BootSpec,
    stop: &CancellationToken,
) -> Result<Machine, WakeError> {
    let begun = Instant::now();
    let vm = world.engine.boot(spec).await.map_err(WakeError::Engine)?;
    let vmm_ms = millis_since(begun);
    let settle = async {
        let id = row.id.clone();
        let value = to_json("vm", &vm.record())?;
        world.db.call(move |store| store.set_vm(&id, &value)).await?;
        let reach = Reach {
            mode: Mode::FirstBoot,
            patience: world.settings.boot_timeout,
            resume: false,
            identity: Some(guest::identity(row, None)),
        };
        guest::reach(world, &vm, reach).await
    };
    let machine = settled(world, &vm, stop, settle).await?;
    let (pid, guest_ms) = (machine.vm.record().pid, millis_since(begun).saturating_sub(vmm_ms));
    tracing::info!(pid, vmm_ms, guest_ms, "machine is up");
    Ok(machine)
}

/// For the log, whose readers ask what a create or a wake is made of.
fn millis_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Where a machine continues from.
pub(crate) struct Frozen {
    /// The snapshot's directory.
    pub(crate) snapshot: Utf8PathBuf,
    /// The golden snapshot its memory stands on, and is shared with.
    pub(crate) base: Option<Utf8PathBuf>,
    /// Whether what continues is to become another sandbox, with an identity of its own.
    pub(crate) clone: bool,
}

/// Continues the machine of `row` from a snapshot, and waits for its guest, which has fresh
/// randomness and the right time before anything is asked of it; a clone also has the identity of
/// `row`. The row's `vm` is the caller's to record: until then a crash leaves a machine that
/// nobody knows, which the next start ends. Otherwise like [`boot`].
pub(crate) async fn restore(
    world: &World,
    row: &SandboxRow,
    machine: BootSpec,
    frozen: Frozen,
    stop: &CancellationToken,
) -> Result<Machine, WakeError> {
    // A disk of the image's size is as large as it was: looking costs the guest 20 ms.
    let bytes = machine.root.bytes.filter(|_| row.disk_size.0 > 0);
    let Frozen { snapshot, base, clone } = frozen;
    let spec = RestoreSpec { machine, snapshot, base };
    let vm = world.engine.restore(spec).await.map_err(WakeError::Engine)?;
    let settle = async {
        let reach = Reach {
            mode: Mode::Reconnect,
            patience: world.settings.boot_timeout,
            resume: true,
            identity: clone.then(|| guest::identity(row, bytes)),
        };
        guest::reach(world, &vm, reach).await
    };
    let machine = settled(world, &vm, stop, settle).await?;
    tracing::info!(pid = machine.vm.record().pid, clone, "machine is restored");
    Ok(machine)
}

/// The machine with its guest, or no machine.
async fn settled(
    world: &World,
    vm: &Arc<dyn Vm>,
    stop: &CancellationToken,
    settle: impl Future<Output = Result<Guest, WakeError>>,
) -> Result<Machine, WakeError> {
    let settled = tokio::select! {
        biased;
        () = stop.cancelled() => Err(WakeError::ShuttingDown),
        settled = settle => settled,
    };
    match settled {
        Ok(guest) => Ok(Machine { vm: vm.clone(), guest: Some(guest), stands: false }),
        Err(error) => {
            end(world, vm).await;
            Err(error)
        }
    }
}

/// Ends a machine that is not wanted, by whichever way works. One that does not end is nobody's,
/// and the next start of the daemon ends it.
pub(crate) async fn end(world: &World, vm: &Arc<dyn Vm>) {
    let Err(error) = vm.kill().await else { return };
    tracing::warn!(error = crate::chain(&error), "an unwanted machine does not end when told to");
    if let Err(error) = world.engine.end(&vm.record()).await {
        tracing::error!(error = crate::chain(&error), "failed to end an unwanted machine");
    }
}

/// Takes away everything a sandbox has on this host, then its row. Idempotent: a step that
/// finds nothing to do is done. Stops at the first step that cannot be done, keeping the row,
/// so that it can be tried again.
pub(crate) async fn demolish(
    world: &World,
    row: &SandboxRow,
    vm: Option<Arc<dyn Vm>>,
    owner: &UserRow,
) -> Result<(), WakeError> {
    match (vm, vm_record(row)?) {
        (Some(vm), _) => vm.kill().await.map_err(WakeError::Engine)?,
        // Nothing is asked of a machine that may not answer.
        (None, Some(record)) => world.engine.end(&record).await.map_err(WakeError::Engine)?,
        (None, None) => {}
    }
    let (layout, id) = (world.layout.clone(), row.engine_id.clone());
    tokio::task::spawn_blocking(move || layout.remove_sandbox(&id))
        .await
        .map_err(|_| WakeError::ShuttingDown)??;
    let id = row.id.clone();
    world.db.call(move |store| store.remove_sandbox(&id)).await?;
    release_network(world, owner).await;
    Ok(())
}

/// Has what is recorded of the user's sandboxes hold in their network.
pub(crate) async fn apply_network(world: &World, owner: &UserRow) -> Result<(), WakeError> {
    let _staying = world.networks.read().await;
    world.taps.apply(owner.subnet_index).await.map_err(WakeError::Network)
}

/// Removes the user's network if nothing of theirs is left to use it.
async fn release_network(world: &World, owner: &UserRow) {
    let _alone = world.networks.write().await;
    let user = owner.id.clone();
    let released = match world.db.call(move |store| store.sandboxes_of(&user)).await {
        Ok(rows) if rows.is_empty() => world.taps.release(owner.subnet_index).await,
        Ok(_) => return,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = released {
        // The sandbox is gone; the network is swept at the next start.
        tracing::warn!(error = crate::chain(&*error), "failed to remove a user's network");
    }
}

/// The one engine error that is about the request rather than the host.
pub(crate) fn as_request_error(error: &EngineError) -> Option<crate::ServiceError> {
    match error {
        EngineError::DiskTooSmall { asked_mib, image_mib } => Some(crate::ServiceError::Invalid(
            format!("disk_size_mb {asked_mib} is smaller than the image ({image_mib} MB)"),
        )),
        EngineError::NoHugepages { .. } => Some(crate::ServiceError::Invalid(error.to_string())),
        EngineError::NoSpace { needed_mib, free_mib } => {
            Some(crate::ServiceError::HostFull { needed_mib: *needed_mib, free_mib: *free_mib })
        }
        _ => None,
    }
}
