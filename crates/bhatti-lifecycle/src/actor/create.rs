//! Being made: from an image, by way of a golden snapshot if there is one, or from a named one.

use bhatti_engine::{Below, EngineError, RootDisk, Shape};
use bhatti_guest_client::Guest;
use bhatti_store::{Change, Generation, GoldenRow, SandboxRow, SnapshotRow};
use bhatti_types::{EventKind, Phase};
use camino::Utf8PathBuf;
use serde_json::json;

use super::{Actor, Origin};
use crate::disk::{self, base_dir, blocking};
use crate::golden::Golden;
use crate::machine::{self, Frozen, to_json};
use crate::spec::FileContent;
use crate::{WakeError, golden};

/// A machine whose guest answers, and what is to be recorded of it.
struct Made {
    change: Change,
    reason: String,
    /// Whose memory it stands on: not to go before that has been recorded.
    golden: Option<golden::Hold>,
    /// The golden snapshot it is a clone of.
    clone_of: Option<GoldenRow>,
}

impl Actor {
    pub(super) async fn create(
        &mut self,
        row: SandboxRow,
        origin: Origin,
        files: Vec<FileContent>,
    ) -> Result<(), WakeError> {
        let Err(error) = self.bring_up(row, origin, files).await else { return Ok(()) };
        tracing::warn!(error = crate::chain(&error), "create failed; undoing it");
        let vm = self.machine.take().map(|machine| machine.vm);
        // Read again: what there is to undo was recorded step by step.
        let undone = match self.row().await {
            Ok(row) => machine::demolish(&self.world, &row, vm, &self.owner).await,
            Err(gone) => Err(gone),
        };
        if let Err(error) = undone {
            // The row stays in phase `creating`; the next start of the daemon tries again.
            tracing::error!(error = crate::chain(&error), "failed to undo a create");
        }
        self.show(self.standing(Phase::Destroying, "its creation failed"));
        (self.on_gone)(&self.id);
        Err(error)
    }

    async fn bring_up(
        &mut self,
        row: SandboxRow,
        origin: Origin,
        files: Vec<FileContent>,
    ) -> Result<(), WakeError> {
        let from = match &origin {
            Origin::Snapshot(snapshot) => Some(snapshot.name.clone()),
            Origin::Image { .. } => None,
        };
        let Made { mut change, reason, golden, clone_of } = match origin {
            Origin::Image { file } => self.make_from_image(&row, file).await?,
            Origin::Snapshot(snapshot) => self.continue_snapshot(&row, &snapshot).await?,
        };
        let Some(machine) = &mut self.machine else { return Err(WakeError::Gone) };
        change.vm = Some(Some(machine.to_json()?));
        let furnish = async {
            let guest = machine.guest(&self.world).await?;
            for file in files {
                guest.write_file(&file.path, file.mode, file.content).await?;
            }
            // What a snapshot continues has run its init script, or is running it.
            if from.is_some() { Ok(()) } else { start_init(&guest, &row.init).await }
        };
        tokio::select! {
            biased;
            () = self.interrupt.cancelled() => return Err(WakeError::ShuttingDown),
            furnished = furnish => furnished?,
        }
        self.move_to(&[Phase::Creating], Phase::Hot, &reason, change).await?;
        // Quiet begins when there is something to use, however long that took.
        self.pins.touch();
        match from {
            Some(snapshot) => {
                let meta = json!({ "name": snapshot.as_str(), "new_sandbox": row.name.as_str() });
                self.tell(EventKind::SnapshotResumed, meta);
            }
            None => self.tell(EventKind::SandboxCreated, created(&row)),
        }
        drop(golden);
        if let Some(golden) = clone_of {
            golden::used(&self.world, &golden);
        }
        Ok(())
    }

    /// Clones the golden snapshot of that image and shape, or boots. A machine on huge pages boots:
    /// it could share no memory with a golden snapshot, and Firecracker brings a machine back on
    /// the kind of pages it was saved on, whatever is asked for.
    async fn make_from_image(
        &mut self,
        row: &SandboxRow,
        file: Utf8PathBuf,
    ) -> Result<Made, WakeError> {
        let shape = Shape { milli_cpus: row.cpus.milli(), memory: row.memory };
        let found = async {
            if row.hugepages {
                return None;
            }
            golden::find_or_make(&self.world, &row.image, &file, shape).await
        };
        let found = tokio::select! {
            biased;
            () = self.interrupt.cancelled() => return Err(WakeError::ShuttingDown),
            found = found => found,
        };
        if let Some(golden) = found {
            let id = golden.row.id.clone();
            match self.clone_golden(row, golden).await {
                Err(WakeError::Engine(
                    EngineError::Unusable { why } | EngineError::Foreign { why },
                )) => {
                    tracing::error!(why, golden = %id, "a golden snapshot is of no use");
                    golden::forget(&self.world, &id).await;
                }
                Err(error) => {
                    // Not handed out. Whether it is the golden that is bad cannot be told, so the
                    // next create gets another: at worst that costs a boot.
                    if error.is_the_guests() && !error.is_the_requests() {
                        golden::forget(&self.world, &id).await;
                    }
                    return Err(error);
                }
                made => return made,
            }
        }
        let (world, subnet) = (&self.world, self.owner.subnet_index);
        let spec = machine::spec(world, row, subnet, disk::first(world, row, Below::image(file)));
        let spec = spec.await?;
        let root_disk = Some(to_json("root disk", &spec.root)?);
        self.machine = Some(machine::boot(world, row, spec, &self.interrupt).await?);
        let change = Change { root_disk, ..Change::default() };
        Ok(Made { change, reason: "created by booting".to_owned(), golden: None, clone_of: None })
    }

    async fn clone_golden(&mut self, row: &SandboxRow, golden: Golden) -> Result<Made, WakeError> {
        let world = &self.world;
        let below = disk::below(&machine::disk_record(&golden.row.disk)?)?;
        let root = disk::first(world, row, below);
        let spec = machine::spec(world, row, self.owner.subnet_index, root).await?;
        let root_disk = Some(to_json("root disk", &spec.root)?);
        let snapshot = world.layout.golden(&golden.row.id);
        let frozen = Frozen { base: Some(snapshot.clone()), snapshot, clone: true };
        self.machine = Some(machine::restore(world, row, spec, frozen, &self.interrupt).await?);
        let change =
            Change { root_disk, golden: Some(Some(golden.row.id.clone())), ..Change::default() };
        let reason = "created from a golden snapshot".to_owned();
        Ok(Made { change, reason, golden: Some(golden.hold), clone_of: Some(golden.row) })
    }

    /// Continues a named snapshot as another sandbox. Its files get names here, as a generation:
    /// so the snapshot may be deleted, and the next freeze need not write what is in them.
    async fn continue_snapshot(
        &mut self,
        row: &SandboxRow,
        from: &SnapshotRow,
    ) -> Result<Made, WakeError> {
        let world = &self.world;
        let sealed = from.disk.as_ref().ok_or(WakeError::Gone).and_then(machine::disk_record)?;
        let below = disk::below(&sealed)?;
        // The layers are linked as 0, 1, 2 and so on; generations are numbered after them.
        let number = u32::try_from(below.layers.len()).unwrap_or(u32::MAX);
        let linking = world.snapshots.read().await;
        // Before the look: what it finds recorded is not removed afterwards.
        let golden = from.golden.clone().map(|id| golden::hold_id(world, id));
        // Somebody may have deleted it while this create waited.
        let found = world.db.read(|store| store.find_snapshot(&from.owner, from.name.as_str()))?;
        if found.is_none_or(|found| found.id != from.id) {
            return Err(WakeError::SnapshotGone(from.name.clone()));
        }
        let (layout, id) = (world.layout.clone(), row.engine_id.clone());
        let source = world.layout.snapshot_memory(&from.id);
        // Before anything is copied that would be of no use.
        world.engine.recognise(&source).await.map_err(WakeError::Engine)?;
        let mut bytes = 0;
        let root = async {
            let root = disk::first(world, row, below).await?;
            let link =
                move || bhatti_storage::link_tree(&source, &layout.make_frozen(&id, number)?);
            bytes = blocking(link).await?;
            Ok(root)
        };
        let spec = machine::spec(world, row, self.owner.subnet_index, root).await?;
        drop(linking);
        let snapshot = world.layout.frozen(&row.engine_id, number);
        let root = spec.root.clone();
        let base = base_dir(world, from.golden.as_ref());
        let frozen = Frozen { snapshot, base, clone: true };
        self.machine = Some(machine::restore(world, row, spec, frozen, &self.interrupt).await?);
        let generation = Generation {
            number,
            made_at: from.created_at,
            golden: from.golden.clone(),
            disk: to_json("root disk", &top_of(&root))?,
            bytes,
            written: 0,
        };
        let change = Change {
            root_disk: Some(to_json("root disk", &root)?),
            golden: Some(from.golden.clone()),
            generations: Some(vec![generation]),
            serial: Some(number),
            ..Change::default()
        };
        let reason = format!("resumed from snapshot {}", from.name);
        Ok(Made { change, reason, golden, clone_of: None })
    }
}

/// What is told of a new sandbox.
fn created(row: &SandboxRow) -> serde_json::Value {
    json!({
        "name": row.name.as_str(),
        "cpus": f64::from(row.cpus.milli()) / 1000.0,
        "memory_mb": row.memory.0,
        "image": row.image,
        "keep_hot": row.keep_hot,
    })
}

/// The sealed part of a disk, as a disk.
fn top_of(disk: &RootDisk) -> RootDisk {
    let mut layers = disk.layers.clone();
    match layers.pop() {
        Some(file) => RootDisk { file, layers, ..disk.clone() },
        None => disk.clone(),
    }
}

/// What the session of the init script is called.
const INIT: &str = "init";

/// Where the end of the init script's output goes when it has ended, in the guest.
const INIT_LOG: &str = "/var/log/lohar/init.log";

pub(super) async fn start_init(guest: &Guest, script: &str) -> Result<(), WakeError> {
    if !script.is_empty() {
        guest.start_script(INIT, script, INIT_LOG).await?;
    }
    Ok(())
}
