//! Saving a sandbox as it is, for a named snapshot.

use bhatti_engine::{RootDisk, Save};
use bhatti_store::{Generation, SandboxRow};
use bhatti_types::Phase;
use camino::Utf8PathBuf;
use tokio::time::Instant;

use super::Actor;
use super::handle::{Checkpoint, CheckpointDirs};
use crate::disk::{self, blocking, link_disk};
use crate::machine::{self, to_json};
use crate::{Op, WakeError, admit, freeze, golden};

/// From so many layers on a machine stands longer for a snapshot, because they are merged.
const MANY_LAYERS: usize = 16;

impl Actor {
    /// Saves the sandbox as it is. One that runs stands still meanwhile; none is woken.
    pub(super) async fn checkpoint(
        &mut self,
        into: CheckpointDirs,
    ) -> Result<Checkpoint, WakeError> {
        let phase = self.phase();
        admit(phase, Op::Checkpoint)?;
        self.settle_disk().await?;
        let row = self.row().await?;
        match phase {
            Phase::Hot | Phase::Warm => self.checkpoint_running(row, into).await,
            Phase::Cold => {
                let newest = row.generations.first().cloned().ok_or(WakeError::NothingToSave)?;
                self.checkpoint_cold(row, &newest, into).await
            }
            _ => Err(WakeError::NothingToSave),
        }
    }

    async fn checkpoint_cold(
        &self,
        row: SandboxRow,
        newest: &Generation,
        into: CheckpointDirs,
    ) -> Result<Checkpoint, WakeError> {
        let row = freeze::finish(&self.world, row, newest).await?;
        let from = self.world.layout.frozen(&row.engine_id, newest.number);
        let disk = machine::disk_record(&newest.disk)?;
        let disk = blocking(move || {
            bhatti_storage::link_tree(&from, &into.memory)?;
            link_disk(&disk, &into.disk)
        })
        .await?;
        let golden = newest.golden.clone();
        let golden = golden.map(|id| (id.clone(), golden::hold_id(&self.world, id)));
        Ok(Checkpoint { golden, disk })
    }

    async fn checkpoint_running(
        &mut self,
        row: SandboxRow,
        into: CheckpointDirs,
    ) -> Result<Checkpoint, WakeError> {
        let begun = Instant::now();
        let CheckpointDirs { memory, disk } = into;
        let saved =
            self.save_and_seal(&row, Save { into: memory, ..freeze::what(&self.world, &row) });
        let saved = saved.await;
        let still = begun.elapsed();
        if self.phase() == Phase::Hot {
            self.let_go_on().await;
        }
        let (written, sealed) = saved?;
        tracing::info!(millis = still.as_millis(), written, "saved as a snapshot");
        // While this actor is busy nobody removes a layer.
        let disk = blocking(move || link_disk(&sealed, &disk)).await?;
        let golden = row.golden.clone();
        let golden = golden.map(|id| (id.clone(), golden::hold_id(&self.world, id)));
        Ok(Checkpoint { golden, disk })
    }

    async fn save_and_seal(
        &mut self,
        row: &SandboxRow,
        save: Save,
    ) -> Result<(u64, RootDisk), WakeError> {
        // Whatever need not be done while it stands is done before.
        let id = row.id.clone();
        let number = self.world.db.call(move |store| store.next_serial(&id)).await?;
        let (layout, id) = (self.world.layout.clone(), row.engine_id.clone());
        let layers = blocking(move || layout.make_layers(&id)).await?;
        let Some(machine) = &mut self.machine else { return Err(WakeError::Gone) };
        // What runs in it can be held only while it does, and over a link, which one that was
        // adopted has not yet.
        if let Err(error) = machine.guest(&self.world).await {
            tracing::warn!(error = crate::chain(&error), "saved without a word to its agent");
        }
        machine.hold_and_pause().await?;
        if disk::current(row)?.layers.len() >= MANY_LAYERS {
            self.merge_layers().await;
        }
        let row = &self.row().await?;
        let Some(machine) = &mut self.machine else { return Err(WakeError::Gone) };
        let saved = machine.vm.save(save).await.map_err(WakeError::Engine)?;
        Ok((saved.written, self.seal_running(row, number, layers).await?))
    }

    /// Seals the disk of the paused machine, which writes into a new top from then on. Returns
    /// the disk up to the sealed layer.
    ///
    /// The machine stands until the new top is recorded, so whatever a crash or a failure leaves
    /// in between has nothing in it ([`disk::put_right`]).
    async fn seal_running(
        &mut self,
        row: &SandboxRow,
        number: u32,
        layers: Utf8PathBuf,
    ) -> Result<RootDisk, WakeError> {
        let Some(machine) = &self.machine else { return Err(WakeError::Gone) };
        let present = disk::current(row)?;
        let sealed = disk::sealed_as(&self.world, row, &present, number);
        self.half_sealed = true;
        let next = machine.vm.seal_disk(&present, &sealed.file).await.map_err(WakeError::Engine)?;
        let value = to_json("root disk", &next)?;
        disk::sync_dir(layers).await?;
        let id = self.id.clone();
        self.world.db.call(move |store| store.set_root_disk(&id, &value)).await?;
        self.half_sealed = false;
        self.unrecorded_disk = None;
        Ok(sealed)
    }

    /// Finds out what came of a sealing that was cut short, and records it. Nothing to do if none
    /// was.
    pub(super) async fn settle_disk(&mut self) -> Result<(), WakeError> {
        if !self.half_sealed {
            return Ok(());
        }
        let row = self.row().await?;
        let vm = self.machine.as_ref().map(|machine| &*machine.vm);
        if disk::put_right(&self.world, &row, vm).await? {
            self.unrecorded_disk = None;
        }
        self.half_sealed = false;
        Ok(())
    }
}
