//! One machine: booting it, reaching its guest, and taking every trace of it away.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{
    Below, BootSpec, Engine, EngineError, Nic, Private, RootDisk, Shape, Vm, VmRecord,
};
use bhatti_guest_client::{Guest, Mode};
use bhatti_storage::Layout;
use bhatti_store::{Db, SandboxRow, UserRow};
use bhatti_types::EngineId;
use camino::Utf8PathBuf;
use tokio_util::sync::CancellationToken;

use crate::guest;
use crate::{Tasks, WakeError};

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
    /// For the guests' `/etc/resolv.conf`.
    pub nameservers: Vec<String>,
    /// Told to every guest.
    pub version: String,
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
    /// Opening a TAP reads, removing a user's network writes: so a network never goes while a
    /// new sandbox of the same user is about to use it.
    pub(crate) networks: tokio::sync::RwLock<()>,
}

/// A running machine, and its guest while the link stands.
pub(crate) struct Machine {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) guest: Option<Guest>,
}

impl Machine {
    /// A guest that answers, over the standing link or a new one.
    pub(crate) async fn guest(&mut self, world: &World) -> Result<Guest, WakeError> {
        if let Some(guest) = &self.guest
            && !guest.is_gone()
        {
            return Ok(guest.clone());
        }
        let guest = guest::reach(world, &self.vm, Mode::Reconnect, RECONNECT_TIMEOUT).await?;
        Ok(self.guest.insert(guest).clone())
    }
}

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

/// The machine the row says was running, if it says so.
pub(crate) fn vm_record(row: &SandboxRow) -> Result<Option<VmRecord>, WakeError> {
    row.vm.as_ref().map(|value| record("vm", value)).transpose()
}

/// Boots the machine of `row` from its root disk (made now if it is not there) and waits for
/// its guest. The row's `vm` is recorded as soon as there is a process, so that a crash from
/// then on finds it. On failure, or when `stop` fires, no process is left; the directory and the
/// row are the caller's. Not to be dropped half-way: `stop` is how to end it early.
pub(crate) async fn boot(
    world: &World,
    row: &SandboxRow,
    subnet: u32,
    stop: &CancellationToken,
) -> Result<Machine, WakeError> {
    let root = root_disk(world, row).await?;
    let tap = {
        let _staying = world.networks.read().await;
        world.taps.open_tap(subnet, &row.engine_id).await.map_err(WakeError::Network)?
    };
    let nic = tap.map(|tap| Nic { mac: bhatti_net::guest_mac(&row.engine_id), tap });
    let spec = BootSpec {
        id: row.engine_id.clone(),
        dir: world.layout.sandbox(&row.engine_id),
        shape: Shape { milli_cpus: row.cpus.milli(), memory: row.memory },
        kernel: world.settings.kernel.clone(),
        initramfs: world.settings.initramfs.clone(),
        root,
        nic,
        owner: owner_of(row),
        hugepages: false,
    };
    let vm = world.engine.boot(spec).await.map_err(WakeError::Engine)?;
    let settled = tokio::select! {
        biased;
        () = stop.cancelled() => Err(WakeError::ShuttingDown),
        settled = settle(world, row, &vm) => settled,
    };
    match settled {
        Ok(guest) => {
            tracing::info!(pid = vm.record().pid, "machine is up");
            Ok(Machine { vm, guest: Some(guest) })
        }
        Err(error) => {
            if let Err(kill) = vm.kill().await {
                tracing::error!(
                    error = crate::chain(&kill),
                    "failed to end a machine that did not come up"
                );
            }
            Err(error)
        }
    }
}

async fn settle(world: &World, row: &SandboxRow, vm: &Arc<dyn Vm>) -> Result<Guest, WakeError> {
    let id = row.id.clone();
    let value = serde_json::to_value(vm.record())
        .map_err(|error| WakeError::Record(format!("vm: {error}")))?;
    world.db.call(move |store| store.set_vm(&id, &value)).await?;
    let guest = guest::reach(world, vm, Mode::FirstBoot, world.settings.boot_timeout).await?;
    guest::configure(world, row, &guest).await?;
    Ok(guest)
}

async fn root_disk(world: &World, row: &SandboxRow) -> Result<RootDisk, WakeError> {
    if let Some(value) = &row.root_disk {
        return record("root disk", value);
    }
    let (owner, name) = (row.owner.clone(), row.image.clone());
    let image = world
        .db
        .call(move |store| store.image_for(&owner, &name))
        .await?
        .ok_or_else(|| WakeError::NoImage(row.image.clone()))?;
    bhatti_storage::check_image(&image.file)
        .map_err(|source| WakeError::Image { name: row.image.clone(), source })?;
    // A former try may have been cut short before it was recorded.
    world.layout.remove_sandbox(&row.engine_id)?;
    let dir = world.layout.make_sandbox(&row.engine_id, row.vmm_uid)?;
    let base = world.layout.pin_image(&row.engine_id, &image.file)?;
    let size = (row.disk_size.0 > 0).then_some(row.disk_size);
    let disk = world
        .engine
        .create_root(Below { base, layers: Vec::new() }, &dir, size, owner_of(row))
        .await
        .map_err(WakeError::Engine)?;
    let value = serde_json::to_value(&disk)
        .map_err(|error| WakeError::Record(format!("root disk: {error}")))?;
    let id = row.id.clone();
    world.db.call(move |store| store.set_root_disk(&id, &value)).await?;
    Ok(disk)
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
        EngineError::NoSpace { needed_mib, free_mib } => {
            Some(crate::ServiceError::HostFull { needed_mib: *needed_mib, free_mib: *free_mib })
        }
        _ => None,
    }
}
