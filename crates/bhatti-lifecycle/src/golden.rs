//! Golden snapshots: a machine of one image and size, frozen right after boot, of which every
//! new sandbox of that image and size is a clone.
//!
//! The first create of its kind has one made and waits for it; those that come meanwhile wait for
//! the same. Making one is nobody's request: it goes on when the client hangs up. What cannot be
//! made is done without: the create boots. A golden snapshot stays as long as anything stands on
//! its memory; of the others the one used least recently goes when there are too many.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bhatti_engine::{Below, BootSpec, Nic, Private, RootDisk, Save, Shape, Vm};
use bhatti_guest_client::{Configure, ExecSpec, Guest, Mode, Network};
use bhatti_store::{GoldenRow, Store};
use bhatti_types::{EngineId, GoldenId, Mib};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::disk::blocking;
use crate::freeze::QUIESCE;
use crate::guest::{self, Reach};
use crate::machine::{World, end, to_json};
use crate::{WakeError, chain};

/// How many golden snapshots may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoldenLimits {
    pub count: usize,
    /// Of all their files together. 0: there are none, every create boots.
    pub bytes: u64,
}

impl Default for GoldenLimits {
    fn default() -> Self {
        Self { count: 8, bytes: 4 << 30 }
    }
}

/// After a failure nobody tries again for this long: each try costs a boot.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(300);

/// How exactly it is known when one was used last: each note is a write to the medium.
const USE_NOTED_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// Counts as part of what a golden snapshot was made with: raise it when what is done to the
/// machine before it is frozen changes.
const RECIPE: u32 = 5;

/// How old a machine is at least when it is frozen (ADR 0033). KVM, that of Linux 6.1, takes the time
/// stamp counter that a restore sets for an attempt to bring CPUs into step if it is within a second of
/// the one the new CPU has, which began at zero a moment ago, and keeps that one. The guest's clock is
/// behind its timers then, and each clone does nothing for as long as its golden machine had lived. So: a
/// second, and what a slow host takes from making a CPU to setting its counter.
const OLD_ENOUGH: Duration = Duration::from_millis(1500);

/// Those that are being made, and those that could not be.
#[derive(Default)]
pub(crate) struct Goldens {
    kinds: Mutex<HashMap<String, Kind>>,
    /// One at a time: each is a boot.
    turn: tokio::sync::Mutex<()>,
    /// Those that are in no record yet: clones that are not ready.
    held: Arc<Held>,
}

/// How often each golden snapshot is held. Locked for a moment by who begins to use one, and by
/// the store's thread while it forgets one, so that neither comes between the other's look and
/// its deed.
type Held = Mutex<HashMap<GoldenId, usize>>;

/// One use of a golden snapshot, which is not removed while this value lives.
pub(crate) struct Hold {
    held: Arc<Held>,
    id: GoldenId,
}

#[derive(Clone)]
enum Kind {
    /// Whether there is one now, once that is known.
    Making(watch::Receiver<Option<bool>>),
    Failed(Instant),
}

/// What a golden snapshot is of.
#[derive(Clone, Debug)]
struct Recipe {
    key: String,
    image: String,
    file: Utf8PathBuf,
    vcpus: u32,
    memory: Mib,
}

/// A golden snapshot that stays for as long as this value lives.
pub(crate) struct Golden {
    pub(crate) row: GoldenRow,
    pub(crate) hold: Hold,
}

/// The golden snapshot for machines of that image and shape, made now if there is none. `None`:
/// there is none to be had; boot.
pub(crate) async fn find_or_make(
    world: &Arc<World>,
    image: &str,
    file: &Utf8Path,
    shape: Shape,
) -> Option<Golden> {
    if world.settings.goldens.bytes == 0 || world.settings.goldens.count == 0 {
        return None;
    }
    let recipe = match recipe(world, image, file, shape) {
        Ok(recipe) => recipe,
        Err(error) => {
            tracing::warn!(%error, "cannot tell which golden snapshot to use");
            return None;
        }
    };
    if let Some(found) = hold(world, &recipe.key) {
        return Some(found);
    }
    let key = recipe.key.clone();
    let mut outcome = making(world, recipe)?;
    // Others may be made first. To boot takes no longer than this, so who waited that long boots.
    let known = tokio::time::timeout(world.settings.boot_timeout, async {
        // An error means that the maker is gone: the daemon stops.
        outcome.wait_for(Option::is_some).await.is_ok_and(|made| *made == Some(true))
    });
    if known.await.unwrap_or(false) { hold(world, &key) } else { None }
}

fn hold(world: &World, key: &str) -> Option<Golden> {
    let held = &world.goldens.held;
    let mut counts = locked(held);
    let row = recorded(world, key)?;
    *counts.entry(row.id.clone()).or_default() += 1;
    let hold = Hold { held: held.clone(), id: row.id.clone() };
    Some(Golden { row, hold })
}

/// Holds one that something recorded stands on, which may be removed meanwhile.
pub(crate) fn hold_id(world: &World, id: GoldenId) -> Hold {
    let held = &world.goldens.held;
    *locked(held).entry(id.clone()).or_default() += 1;
    Hold { held: held.clone(), id }
}

fn locked(held: &Held) -> MutexGuard<'_, HashMap<GoldenId, usize>> {
    // Nothing panics between two numbers.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = locked(&self.held);
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}

/// One that is recorded and whose files are there.
fn recorded(world: &World, key: &str) -> Option<GoldenRow> {
    let found = world.db.read(|store| store.golden_by_key(key)).unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "failed to look for a golden snapshot");
        None
    })?;
    Some(found).filter(|row| world.layout.golden(&row.id).is_dir())
}

/// Notes that a create has used it, for the choice of which one goes first. Nobody waits: what
/// a crash takes back was a guess.
pub(crate) fn used(world: &Arc<World>, golden: &GoldenRow) {
    if golden.used_at + USE_NOTED_EVERY > Timestamp::now() {
        return;
    }
    let (world, id) = (world.clone(), golden.id.clone());
    world.clone().tasks.spawn("golden use", |_| async move {
        if let Err(error) = world.db.call(move |store| store.use_golden(&id)).await {
            tracing::warn!(error = chain(&error), "failed to note the use of a golden snapshot");
        }
    });
}

/// Gives up on one that cannot be used: the next create makes another. Its files stay as long as
/// anything stands on them.
pub(crate) async fn forget(world: &World, id: &GoldenId) {
    let forgotten = id.clone();
    match world.db.call(move |store| store.retire_golden(&forgotten)).await {
        Ok(()) => tidy(world).await,
        Err(error) => {
            tracing::warn!(error = chain(&error), "failed to forget a golden snapshot");
        }
    }
}

/// Removes, in the background, what is too much and what was kept only for something that is
/// gone now.
pub(crate) fn tidy_soon(world: &Arc<World>) {
    let world = world.clone();
    world.clone().tasks.spawn("golden tidy", |_| async move { tidy(&world).await });
}

async fn tidy(world: &World) {
    let limits = world.settings.goldens;
    if let Err(error) = remove_unused(world, limits.count, limits.bytes).await {
        tracing::warn!(error = chain(&error), "failed to remove golden snapshots");
    }
}

/// The outcome of making one, which begins now unless it has begun. `None`: it failed not long
/// ago.
fn making(world: &Arc<World>, recipe: Recipe) -> Option<watch::Receiver<Option<bool>>> {
    let mut kinds = world.goldens.kinds();
    match kinds.get(&recipe.key) {
        // One whose maker is gone without a word is made again.
        Some(Kind::Making(outcome)) if outcome.has_changed().is_ok() => {
            return Some(outcome.clone());
        }
        Some(Kind::Failed(when)) if when.elapsed() < PAUSE_AFTER_FAILURE => return None,
        Some(Kind::Making(_) | Kind::Failed(_)) | None => {}
    }
    let (told, outcome) = watch::channel(None);
    kinds.insert(recipe.key.clone(), Kind::Making(outcome.clone()));
    let making = world.clone();
    world.tasks.spawn("golden", |_| async move {
        let _turn = making.goldens.turn.lock().await;
        let made = if making.tasks.stopping().is_cancelled() {
            Err(WakeError::ShuttingDown)
        } else {
            make(&making, &recipe).await
        };
        let mut kinds = making.goldens.kinds();
        match &made {
            Ok(row) => {
                if let Some(row) = row {
                    tracing::info!(id = %row.id, image = row.image, vcpus = row.vcpus,
                        memory_mb = row.memory.0, bytes = row.bytes, "made a golden snapshot");
                }
                // From now on it is found in the store.
                kinds.remove(&recipe.key);
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(error),
                    image = recipe.image,
                    "failed to make a golden snapshot; sandboxes of this kind boot"
                );
                kinds.insert(recipe.key.clone(), Kind::Failed(Instant::now()));
            }
        }
        drop(kinds);
        told.send_replace(Some(matches!(made, Ok(Some(_)))));
    });
    Some(outcome)
}

fn recipe(world: &World, image: &str, file: &Utf8Path, shape: Shape) -> std::io::Result<Recipe> {
    let mut digest = Sha256::new();
    digest.update(format!("{RECIPE} {} {} ", shape.vcpus(), shape.memory.0));
    digest.update(world.engine.fingerprint());
    for file in [file, &world.settings.kernel, &world.settings.initramfs] {
        // A replaced file is another inode or has another time; nobody edits an image in place.
        let metadata = file.metadata()?;
        let (device, inode, bytes) = (metadata.dev(), metadata.ino(), metadata.size());
        let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
        digest.update(format!(" {device} {inode} {bytes} {seconds}.{nanos}"));
    }
    Ok(Recipe {
        key: digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        image: image.to_owned(),
        file: file.to_owned(),
        vcpus: shape.vcpus(),
        memory: shape.memory,
    })
}

/// Makes one, if there is room for it. A crash at any point leaves a machine, a directory and
/// perhaps files that no record names: the next start removes them.
async fn make(world: &Arc<World>, recipe: &Recipe) -> Result<Option<GoldenRow>, WakeError> {
    if let Some(found) = recorded(world, &recipe.key) {
        return Ok(Some(found)); // somebody was faster
    }
    let key = recipe.key.clone();
    if let Some(stale) = world.db.call(move |store| store.golden_by_key(&key)).await? {
        tracing::warn!(id = %stale.id, "the files of a golden snapshot are gone");
        world.db.call(move |store| store.retire_golden(&stale.id)).await?;
    }
    let limits = world.settings.goldens;
    if !remove_unused(world, limits.count - 1, limits.bytes).await? {
        tracing::info!(
            image = recipe.image,
            "all golden snapshots that may be kept are in use; sandboxes of this kind boot"
        );
        return Ok(None);
    }
    let id = GoldenId::random();
    let scratch = EngineId::random();
    let made = async {
        let (disk, bytes) = build(world, recipe, &id, &scratch).await?;
        let now = Timestamp::now();
        let row = GoldenRow {
            id: id.clone(),
            key: recipe.key.clone(),
            image: recipe.image.clone(),
            vcpus: recipe.vcpus,
            memory: recipe.memory,
            bytes,
            disk,
            created_at: now,
            used_at: now,
        };
        let new = row.clone();
        world.db.call(move |store| store.add_golden(&new)).await?;
        Ok(Some(row))
    };
    let made = made.await;
    let (layout, leftover) = (world.layout.clone(), made.is_err().then(|| id.clone()));
    let cleared = blocking(move || {
        layout.remove_sandbox(&scratch)?;
        leftover.map_or(Ok(()), |id| layout.remove_golden(&id))
    });
    if let Err(error) = cleared.await {
        tracing::warn!(error = chain(&error), "failed to clear up after a golden snapshot");
    }
    made
}

/// Boots a machine, freezes it, and moves what came of it to its place. Returns its sealed disk
/// and the bytes of all files.
async fn build(
    world: &World,
    recipe: &Recipe,
    id: &GoldenId,
    scratch: &EngineId,
) -> Result<(serde_json::Value, u64), WakeError> {
    // The last uid is no sandbox's.
    let (first, count) = world.settings.uids;
    let uid = first + count - 1;
    let owner = Private { uid, gid: uid };
    let (layout, scratch_id, golden, file) =
        (world.layout.clone(), scratch.clone(), id.clone(), recipe.file.clone());
    let (into, dir, base) = blocking(move || {
        let into = layout.make_golden(&golden)?;
        let dir = layout.make_sandbox(&scratch_id, uid)?;
        Ok((into, dir, layout.pin_image(&scratch_id, &file)?))
    })
    .await?;
    let root = world.engine.create_root(Below::image(base), &dir, None, owner).await;
    let root = root.map_err(WakeError::Engine)?;
    let tap = world.taps.open_detached().await.map_err(WakeError::Network)?;
    let nobody = nobody(scratch, tap.is_some());
    let spec = BootSpec {
        id: scratch.clone(),
        dir,
        // The machine of a clone sees the CPUs, its control group bounds the time.
        shape: Shape { milli_cpus: recipe.vcpus * 1000, memory: recipe.memory },
        kernel: world.settings.kernel.clone(),
        initramfs: world.settings.initramfs.clone(),
        root: root.clone(),
        nic: tap.map(|tap| Nic { mac: bhatti_net::guest_mac(scratch), tap }),
        owner,
        hugepages: false,
    };
    let vm = world.engine.boot(spec).await.map_err(WakeError::Engine)?;
    // Its CPUs are there by now.
    let old_enough = Instant::now() + OLD_ENOUGH;
    let stopping = world.tasks.stopping();
    let saved = tokio::select! {
        biased;
        () = stopping.cancelled() => Err(WakeError::ShuttingDown),
        saved = freeze(world, &vm, nobody, old_enough, into.clone()) => saved,
    };
    end(world, &vm).await;
    let bytes = saved?;
    let sealed = seal(&root, into).await?;
    let disk_bytes = sealed.file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
    Ok((to_json("root disk", &sealed)?, bytes + disk_bytes))
}

async fn freeze(
    world: &World,
    vm: &Arc<dyn Vm>,
    nobody: Configure,
    old_enough: Instant,
    into: Utf8PathBuf,
) -> Result<u64, WakeError> {
    let reach = Reach {
        mode: Mode::FirstBoot,
        patience: world.settings.boot_timeout,
        resume: false,
        identity: Some(nobody),
    };
    let guest = guest::reach(world, vm, reach).await?;
    warm_up(&guest).await;
    tokio::time::sleep_until(old_enough).await;
    guest.quiesce(QUIESCE).await?;
    vm.pause().await.map_err(WakeError::Engine)?;
    let save = Save { into, since: None, base: None };
    Ok(vm.save(save).await.map_err(WakeError::Engine)?.total)
}

/// An identity that is nobody's. A clone gets its own in half the time if there was one before:
/// what must be set up once is there (54 ms against 105 ms under emulation). The address is one
/// of those reserved for documentation.
fn nobody(scratch: &EngineId, networked: bool) -> Configure {
    let network = networked.then(|| Network {
        address: "192.0.2.2".to_owned(),
        prefix_len: 24,
        gateway: "192.0.2.1".to_owned(),
        nameservers: vec!["192.0.2.1".to_owned()],
        mac: bhatti_net::guest_mac(scratch),
    });
    Configure { hostname: "golden".to_owned(), network, ..Configure::default() }
}

/// Has the guest read what every sandbox reads, so that clones find it in memory.
async fn warm_up(guest: &Guest) {
    let spec = ExecSpec {
        argv: ["/bin/sh", "-c", "ls / >/dev/null; sudo -n true; uname -a; cat /etc/hostname"]
            .map(str::to_owned)
            .into(),
        timeout: Some(Duration::from_secs(10)),
        ..ExecSpec::default()
    };
    // An image may lack any of it.
    let ran = async {
        let mut running = guest.exec(spec).await?;
        while running.next().await?.is_some() {}
        Ok::<_, bhatti_guest_client::GuestError>(())
    };
    if let Err(error) = ran.await {
        tracing::debug!(error = chain(&error), "a golden machine ran nothing");
    }
}

/// Moves the disk of the ended machine beside its memory and brings both to the medium.
async fn seal(root: &RootDisk, into: Utf8PathBuf) -> Result<RootDisk, WakeError> {
    let (top, base) = (root.file.clone(), root.base.clone());
    let sealed = RootDisk { file: into.join("disk.qcow2"), ..root.clone() };
    let (file, image) = (sealed.file.clone(), into.join("image"));
    let kept = image.clone();
    blocking(move || {
        bhatti_storage::seal_layer(&top, &file)?;
        if let Some(base) = base {
            bhatti_storage::link_file(&base, &image)?;
        }
        bhatti_storage::sync_tree(&into)
    })
    .await?;
    Ok(RootDisk { base: root.base.as_ref().map(|_| kept), ..sealed })
}

/// Removes golden snapshots nothing stands on, the one used least recently first, until at most
/// that many of at most so many bytes are left. False if too many are in use.
async fn remove_unused(world: &World, count: usize, bytes: u64) -> Result<bool, WakeError> {
    let goldens = world.db.call(|store| store.goldens()).await?;
    let mut left = goldens.len();
    let mut total: u64 = goldens.iter().map(|(row, _)| row.bytes).sum();
    for (row, in_use) in goldens {
        let fits = left <= count && total < bytes;
        if in_use || (fits && !row.is_retired()) {
            continue;
        }
        let id = row.id.clone();
        let held = world.goldens.held.clone();
        let forget = move |store: &mut Store| {
            let counts = locked(&held);
            if counts.contains_key(&id) { Ok(false) } else { store.remove_golden(&id) }
        };
        if !world.db.call(forget).await? {
            continue; // used just now
        }
        let (layout, id) = (world.layout.clone(), row.id.clone());
        blocking(move || layout.remove_golden(&id)).await?;
        tracing::info!(id = %row.id, image = row.image, "removed a golden snapshot");
        left -= 1;
        total -= row.bytes;
    }
    Ok(left <= count && total < bytes)
}

impl Goldens {
    fn kinds(&self) -> std::sync::MutexGuard<'_, HashMap<String, Kind>> {
        // Nothing panics while holding it.
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
