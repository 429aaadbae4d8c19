//! The layers of a sandbox's disk: put together, sealed, and put right after a crash.
//!
//! ```text
//!   image      raw, shared by all          bases/<id>
//!   0, 1, 2 …  sealed, nobody writes them  layers/<id>/<number>.qcow2
//!   top        the machine writes it       sandboxes/<id>/…
//! ```
//!
//! A generation of a sandbox is a snapshot of its memory and the layers that were sealed with it.
//! Each wake writes into a new top, so a generation stays whole while the machine runs on.
//!
//! What another engine has left is sealed like anything else, and the engine makes a new top over it
//! ([`Engine::create_root`](bhatti_engine::Engine::create_root)), which it may stand on or have
//! copied.

use std::os::unix::fs::OpenOptionsExt;

use bhatti_engine::{Below, EngineError, RootDisk, Vm};
use bhatti_store::{Change, Generation, SandboxRow};
use bhatti_types::Phase;
use camino::{Utf8Path, Utf8PathBuf};

use crate::machine::{World, disk_record, owner_of, to_json};
use crate::{WakeError, merge};

/// Runs what touches many files away from the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, bhatti_storage::DiskError> + Send + 'static,
) -> Result<T, WakeError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| WakeError::ShuttingDown)?;
    Ok(done?)
}

/// The root disk of a new sandbox, in a directory made now, over an image or over the disk of a
/// snapshot, whose files the sandbox gets names of its own for.
pub(crate) async fn first(
    world: &World,
    row: &SandboxRow,
    below: Below,
) -> Result<RootDisk, WakeError> {
    let (layout, id, uid) = (world.layout.clone(), row.engine_id.clone(), row.vmm_uid);
    let (dir, below) = blocking(move || {
        // A former try may have been cut short.
        layout.remove_sandbox(&id)?;
        let dir = layout.make_sandbox(&id, uid)?;
        let base = layout.pin_image(&id, &below.base)?;
        let link = |(number, layer): (u32, &Utf8PathBuf)| layout.link_layer(&id, number, layer);
        let layers = (0..).zip(&below.layers).map(link).collect::<Result<_, _>>()?;
        Ok((dir, Below { base, layers, ..below }))
    })
    .await?;
    let size = (row.disk_size.0 > 0).then_some(row.disk_size);
    let made = world.engine.create_root(below, &dir, size, owner_of(row)).await;
    made.map_err(WakeError::Engine)
}

/// All layers of a disk, the lowest first.
pub(crate) fn layers_of(disk: &RootDisk) -> Vec<Utf8PathBuf> {
    disk.layers.iter().cloned().chain([disk.file.clone()]).collect()
}

/// A sealed disk, for another to stand on.
pub(crate) fn below(sealed: &RootDisk) -> Result<Below, WakeError> {
    let base = sealed.base.clone().ok_or_else(|| {
        WakeError::Record("root disk: it stands on no image, so nothing can stand on it".to_owned())
    })?;
    let RootDisk { format, bytes, .. } = *sealed;
    Ok(Below { base, layers: layers_of(sealed), format, bytes })
}

/// The disk that `disk` is once its top has been sealed under that number.
pub(crate) fn sealed_as(world: &World, row: &SandboxRow, disk: &RootDisk, number: u32) -> RootDisk {
    RootDisk { file: world.layout.layer(&row.engine_id, number), ..disk.clone() }
}

/// A new top over a sealed disk.
pub(crate) async fn new_top(
    world: &World,
    row: &SandboxRow,
    sealed: &RootDisk,
) -> Result<RootDisk, WakeError> {
    let dir = world.layout.sandbox(&row.engine_id);
    let made = world.engine.create_root(below(sealed)?, &dir, None, owner_of(row)).await;
    made.map_err(WakeError::Engine)
}

/// Seals the top of a sandbox that has just been frozen as `generation`, or was and nobody came
/// to it; afterwards its machine's directory holds nothing that counts. Its process has ended
/// ([`crate::freeze::finish`] sees to that). Idempotent. Returns the row as it is then.
pub(crate) async fn seal(
    world: &World,
    row: SandboxRow,
    generation: &Generation,
) -> Result<SandboxRow, WakeError> {
    let wanted = disk_record(&generation.disk)?;
    let present = current(&row)?;
    let (layout, id) = (world.layout.clone(), row.engine_id.clone());
    let (top, sealed) = (present.file.clone(), wanted.file.clone());
    let is_sealed = present.file == wanted.file;
    blocking(move || {
        if !is_sealed {
            bhatti_storage::seal_layer(&top, &sealed)?;
        }
        // What a wake that came to nothing has left.
        layout.clear_sandbox(&id)
    })
    .await?;
    if is_sealed && row.vm.is_none() {
        return Ok(row);
    }
    let id = row.id.clone();
    let disk = to_json("root disk", &wanted)?;
    let change = Change { root_disk: Some(disk), vm: Some(None), ..Change::default() };
    let moved = move |store: &mut bhatti_store::Store| {
        store.set_phase(&id, &[Phase::Cold], Phase::Cold, &row.reason, &change)?;
        store.sandbox(&id)
    };
    Ok(world.db.call(moved).await?)
}

/// The disk of a row that has one.
pub(crate) fn current(row: &SandboxRow) -> Result<RootDisk, WakeError> {
    let missing = || WakeError::Record("root disk: there is none".to_owned());
    disk_record(row.root_disk.as_ref().ok_or_else(missing)?)
}

/// The disk of a sandbox without a machine, for the next to boot from. One that another engine has
/// left is sealed and gets a new top first. A crash on the way leaves a record that is right, and
/// the next call goes on from there.
pub(crate) async fn bootable(world: &World, row: &SandboxRow) -> Result<RootDisk, WakeError> {
    let present = current(row)?;
    let (layout, engine_id) = (world.layout.clone(), row.engine_id.clone());
    let is_top = present.file.starts_with(layout.sandbox(&engine_id));
    if is_top && present.format == world.engine.disk_format() {
        return Ok(present);
    }
    tracing::info!(from = ?present.format, to = ?world.engine.disk_format(), "taking over a disk");
    let record = async |disk: &RootDisk| {
        let (id, value) = (row.id.clone(), to_json("root disk", disk)?);
        Ok::<_, WakeError>(world.db.call(move |store| store.set_root_disk(&id, &value)).await?)
    };
    let sealed = if is_top {
        let id = row.id.clone();
        let number = world.db.call(move |store| store.next_serial(&id)).await?;
        let sealed = sealed_as(world, row, &present, number);
        let (layout, id, top) = (layout.clone(), engine_id.clone(), present.file.clone());
        blocking(move || layout.link_layer(&id, number, &top)).await?;
        sync_names(&sealed).await?;
        // It has two names until this is on the medium.
        record(&sealed).await?;
        sealed
    } else {
        present
    };
    let file = sealed.file.clone();
    blocking(move || {
        bhatti_storage::seal_layer(&file, &file)?;
        layout.clear_sandbox(&engine_id)
    })
    .await?;
    let top = new_top(world, row, &sealed).await?;
    sync_top(&top).await?;
    sync_names(&top).await?;
    record(&top).await?;
    Ok(top)
}

/// What is true of a sandbox whose machine is gone, besides its phase: what was frozen is older
/// than the disk, and waking from it would take files back.
pub(crate) fn lost() -> Change {
    Change { generations: Some(Vec::new()), golden: Some(None), ..Change::default() }
}

/// How many of the layers of a disk to keep when the others are merged into its top. `None`: let
/// them be.
pub(crate) async fn worth_merging(disk: &RootDisk) -> Result<Option<usize>, WakeError> {
    use std::os::unix::fs::MetadataExt;
    let (layers, top) = (disk.layers.clone(), disk.file.clone());
    let chosen = move || {
        let bytes = |file: &std::fs::Metadata| file.blocks() * 512;
        let files: Vec<_> =
            layers.iter().map(|layer| layer.symlink_metadata()).collect::<Result<_, _>>()?;
        // A layer with another name is a golden's or a snapshot's too.
        let shared = files.iter().take_while(|file| file.nlink() > 1).count();
        let sizes: Vec<u64> = files.iter().map(bytes).collect();
        Ok(merge::keep(&sizes, bytes(&top.symlink_metadata()?), shared))
    };
    let chosen = tokio::task::spawn_blocking(chosen).await.map_err(|_| WakeError::ShuttingDown)?;
    chosen.map_err(|source| {
        let path = disk.file.clone();
        WakeError::Engine(EngineError::File { action: "measure the layers of", path, source })
    })
}

/// Returns when what a paused machine has written is on the medium.
pub(crate) async fn sync_top(disk: &RootDisk) -> Result<(), WakeError> {
    let path = disk.file.clone();
    // The VMM could have put anything there.
    let careful = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let synced = move || {
        let opened = std::fs::File::options().read(true).custom_flags(careful).open(&path);
        opened.and_then(|file| file.sync_all()).map_err(|source| EngineError::File {
            action: "sync",
            path,
            source,
        })
    };
    let synced = tokio::task::spawn_blocking(synced).await;
    synced.map_err(|_| WakeError::ShuttingDown)?.map_err(WakeError::Engine)
}

/// Returns when the names of all files of a disk are on the medium. Most have been for long, but
/// not every file system brings the links of a clone there with the first sync of anything else.
pub(crate) async fn sync_names(disk: &RootDisk) -> Result<(), WakeError> {
    let mut dirs: Vec<_> = layers_of(disk)
        .iter()
        .chain(&disk.base)
        .flat_map(|file| file.ancestors().skip(1).take(2))
        .map(Utf8Path::to_owned)
        .collect();
    dirs.sort();
    dirs.dedup();
    for dir in dirs {
        sync_dir(dir).await?;
    }
    Ok(())
}

/// Returns when the names in a directory of ours are on the medium.
pub(crate) async fn sync_dir(path: Utf8PathBuf) -> Result<(), WakeError> {
    let synced = move || {
        std::fs::File::open(&path)
            .and_then(|opened| opened.sync_all())
            .map_err(|source| EngineError::File { action: "sync", path, source })
    };
    let synced = tokio::task::spawn_blocking(synced).await;
    synced.map_err(|_| WakeError::ShuttingDown)?.map_err(WakeError::Engine)
}

/// Puts the record of a disk right after a daemon died between a machine's getting a new top and
/// the record of it. To be done before anything is removed, and before the machine goes on: all
/// that time it stood, so the new top is empty. Idempotent. `vm` is the machine, if it is still
/// there. Says whether the record was wrong.
pub(crate) async fn put_right(
    world: &World,
    row: &SandboxRow,
    vm: Option<&dyn Vm>,
) -> Result<bool, WakeError> {
    if row.root_disk.is_none() {
        return Ok(false);
    }
    let recorded = current(row)?;
    // A seal takes the number that was given out last, and nothing is given out before it is
    // recorded.
    let sealed = sealed_as(world, row, &recorded, row.serial);
    if recorded.layers.contains(&sealed.file) || !sealed.file.exists() {
        return Ok(false);
    }
    let right = match vm {
        Some(vm) => {
            let top = vm.disk_top().await.map_err(WakeError::Engine)?;
            if top == recorded.file {
                return Ok(false); // it came no further than a second name for the same file
            }
            let (former, layer) = (recorded.file.clone(), sealed.file.clone());
            blocking(move || bhatti_storage::seal_layer(&former, &layer)).await?;
            RootDisk { file: top, layers: layers_of(&sealed), ..recorded }
        }
        // The same, unless its last step but one was done: what was taken from its VMM is sealed.
        None if belongs_to(&recorded.file, row.vmm_uid) => return Ok(false),
        None => {
            let (layout, id) = (world.layout.clone(), row.engine_id.clone());
            blocking(move || layout.clear_sandbox(&id)).await?;
            new_top(world, row, &sealed).await?
        }
    };
    tracing::warn!(sandbox = %row.id, top = %right.file, "a disk layer was sealed and not recorded");
    let (id, value) = (row.id.clone(), to_json("root disk", &right)?);
    world.db.call(move |store| store.set_root_disk(&id, &value)).await?;
    Ok(true)
}

fn belongs_to(file: &Utf8Path, uid: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.symlink_metadata().is_ok_and(|file| file.uid() == uid)
}

/// Gives all files of a sealed disk names in `dir`; the disk as it is there.
pub(crate) fn link_disk(
    disk: &RootDisk,
    dir: &Utf8Path,
) -> Result<RootDisk, bhatti_storage::DiskError> {
    let mut linked = Vec::new();
    for (at, layer) in layers_of(disk).iter().enumerate() {
        let name = dir.join(format!("{at}.qcow2"));
        bhatti_storage::link_file(layer, &name)?;
        linked.push(name);
    }
    let base = disk.base.as_ref().map(|image| {
        let name = dir.join("image");
        bhatti_storage::link_file(image, &name).map(|()| name)
    });
    let file = linked.pop().unwrap_or_else(|| disk.file.clone());
    Ok(RootDisk { file, base: base.transpose()?, layers: linked, ..disk.clone() })
}

/// Removes what neither the disk of `row` nor one of its generations needs. Best effort: what
/// stays is removed at the next start.
pub(crate) async fn tidy(world: &World, row: &SandboxRow) {
    let Some(needed) = needed(row) else { return };
    let (layout, id) = (world.layout.clone(), row.engine_id.clone());
    let numbers: Vec<u32> = row.generations.iter().map(|generation| generation.number).collect();
    let tidied = blocking(move || {
        layout.sweep_frozen(&id, &numbers)?;
        layout.sweep_layers(&id, &needed)
    });
    if let Err(error) = tidied.await {
        tracing::warn!(error = crate::chain(&error), "failed to remove an old generation");
    }
}

/// Every layer that is still needed; `None` if that cannot be told.
fn needed(row: &SandboxRow) -> Option<Vec<Utf8PathBuf>> {
    let mut needed = Vec::new();
    let disks = row.generations.iter().map(|generation| &generation.disk);
    for disk in disks.chain(&row.root_disk) {
        let disk = disk_record(disk).ok()?;
        needed.extend(layers_of(&disk));
        // Usually an image, and in another place; it may be what another engine has left.
        needed.extend(disk.base);
    }
    Some(needed)
}

/// The directory of the base a generation or machine stands on.
pub(crate) fn base_dir(
    world: &World,
    golden: Option<&bhatti_types::GoldenId>,
) -> Option<Utf8PathBuf> {
    golden.map(|id| world.layout.golden(id))
}
