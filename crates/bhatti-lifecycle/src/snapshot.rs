//! Named snapshots: a sandbox as it was at one moment, from which any number of others continue.
//!
//! A snapshot is a directory with links to files that nobody writes any more, so it costs what
//! changed since, needs its source no longer, and can be deleted while those that came of it run.

use bhatti_engine::RootDisk;
use bhatti_store::{
    NewSandbox, NewSnapshot, Reserved, ReservedSnapshot, SandboxRow, SnapshotRow, SnapshotState,
    UserRow,
};
use bhatti_types::{EventKind, Name, NetPolicy, SnapshotId};
use serde_json::json;
use tokio::sync::oneshot;

use crate::actor::{Checkpoint, CheckpointDirs, Origin, Start};
use crate::disk::{blocking, layers_of};
use crate::machine::to_json;
use crate::registry::failed;
use crate::{Created, Sandboxes, ServiceError, WakeError, golden};

impl Sandboxes {
    /// Saves a sandbox as it is. One that runs stands still for a moment; none is woken.
    ///
    /// Safe to drop: the snapshot is made (or undone) whether or not anybody waits.
    pub async fn checkpoint(
        &self,
        caller: &UserRow,
        key: &str,
        name: Name,
    ) -> Result<SnapshotRow, ServiceError> {
        let row = self.get(caller, key).await?;
        let (reply, answer) = oneshot::channel();
        let this = self.clone();
        self.inner.world.tasks.spawn("checkpoint", |_| async move {
            drop(reply.send(this.make_snapshot(row, name).await));
        });
        answer.await.unwrap_or(Err(ServiceError::ShuttingDown))
    }

    async fn make_snapshot(
        &self,
        row: SandboxRow,
        name: Name,
    ) -> Result<SnapshotRow, ServiceError> {
        let db = &self.inner.world.db;
        let taken = ServiceError::SnapshotExists(name.to_string());
        let new = NewSnapshot {
            owner: row.owner.clone(),
            name,
            source_sandbox: row.id.clone(),
            image: row.image.clone(),
            cpus: row.cpus,
            memory: row.memory,
            disk_size: row.disk_size,
            hugepages: row.hugepages,
            env: row.env.clone(),
            init: row.init.clone(),
            hostname: row.hostname.clone(),
            net_policy: row.net_policy.clone(),
        };
        let reserved = match db.call(move |store| store.reserve_snapshot(&new)).await? {
            ReservedSnapshot::New(reserved) => reserved,
            ReservedSnapshot::Quota { used, max } => {
                return Err(ServiceError::SnapshotQuota { used, max });
            }
            ReservedSnapshot::Taken => return Err(taken),
        };
        let made = self.fill(&row, &reserved.id).await;
        if let Ok(made) = &made {
            let (name, source) = (made.name.as_str(), row.name.as_str());
            let meta = json!({ "name": name, "sandbox": source, "size_mb": made.bytes >> 20 });
            let kind = EventKind::SnapshotCreated;
            self.inner.world.events.record(kind, Some(&row.owner), Some(&row.id), meta);
        }
        if made.is_err()
            && let Err(error) = self.remove(&reserved.id).await
        {
            // The next start removes what never became ready.
            tracing::error!(error = crate::chain(&error), "failed to undo a snapshot");
        }
        made
    }

    async fn fill(&self, row: &SandboxRow, id: &SnapshotId) -> Result<SnapshotRow, ServiceError> {
        let failed = |error| failed(row, "save sandbox", error);
        let world = &self.inner.world;
        let (layout, new) = (world.layout.clone(), id.clone());
        blocking(move || layout.make_snapshot_parts(&new)).await.map_err(failed)?;
        let (memory, disk) = (world.layout.snapshot_memory(id), world.layout.snapshot_disk(id));
        let into = CheckpointDirs { memory, disk };
        let saved = self.handle(row)?.checkpoint(into.clone()).await;
        let Checkpoint { golden, disk } = saved.map_err(failed)?;
        let (golden, held) = golden.unzip();
        let id = id.clone();
        let finished = async {
            let value = to_json("root disk", &disk)?;
            let bytes = blocking(move || {
                bhatti_storage::sync_tree(&into.disk)?;
                bhatti_storage::sync_tree(&into.memory)?;
                Ok(bhatti_storage::bytes_of(&into.memory)? + own_bytes(&disk))
            })
            .await?;
            let finish = move |store: &mut bhatti_store::Store| {
                store.finish_snapshot(&id, golden.as_ref(), &value, bytes)
            };
            Ok::<_, WakeError>(world.db.call(finish).await?)
        };
        let finished = finished.await.map_err(failed);
        drop(held);
        finished
    }

    /// The caller's snapshots, newest first.
    pub async fn snapshots(&self, caller: &UserRow) -> Result<Vec<SnapshotRow>, ServiceError> {
        let user = caller.id.clone();
        Ok(self.inner.world.db.call(move |store| store.snapshots_of(&user)).await?)
    }

    /// One snapshot by name.
    pub async fn snapshot(
        &self,
        caller: &UserRow,
        name: &str,
    ) -> Result<SnapshotRow, ServiceError> {
        let found = self.inner.world.db.read(|store| store.find_snapshot(&caller.id, name))?;
        found.ok_or_else(|| ServiceError::NoSnapshot(name.to_owned()))
    }

    /// Deletes a snapshot, also one whose record cannot be read. Sandboxes that continued from it keep
    /// what they need.
    ///
    /// Safe to drop: it is deleted whether or not anybody waits.
    pub async fn delete_snapshot(&self, caller: &UserRow, name: &str) -> Result<(), ServiceError> {
        let found = self.inner.world.db.read(|store| store.find_snapshot_id(&caller.id, name))?;
        let id = found.ok_or_else(|| ServiceError::NoSnapshot(name.to_owned()))?;
        let (owner, meta) = (caller.id.clone(), json!({ "name": name }));
        let (reply, answer) = oneshot::channel();
        let this = self.clone();
        self.inner.world.tasks.spawn("delete snapshot", |_| async move {
            let removed = this.remove(&id).await;
            if removed.is_ok() {
                let kind = EventKind::SnapshotDeleted;
                this.inner.world.events.record(kind, Some(&owner), None, meta);
            }
            let failed = |cause| ServiceError::Failed { doing: "delete snapshot", cause };
            drop(reply.send(removed.map_err(failed)));
        });
        answer.await.unwrap_or(Err(ServiceError::ShuttingDown))
    }

    /// The record first: files without one are removed at the next start.
    async fn remove(&self, id: &SnapshotId) -> Result<(), WakeError> {
        let world = &self.inner.world;
        let (forgotten, id, layout) = (id.clone(), id.clone(), world.layout.clone());
        world.db.call(move |store| store.remove_snapshot(&forgotten)).await?;
        // Whoever continues from it just now links its files first.
        let _alone = world.snapshots.write().await;
        blocking(move || layout.remove_snapshot(&id)).await?;
        golden::tidy_soon(world);
        Ok(())
    }

    /// Removes snapshots that a former daemon did not finish.
    pub(crate) async fn undo_snapshots(&self) -> Result<(), ServiceError> {
        let rows = self.inner.world.db.call(|store| store.all_snapshots()).await?;
        for row in rows.into_iter().filter(|row| row.state == SnapshotState::Creating) {
            if let Err(error) = self.remove(&row.id).await {
                tracing::error!(error = crate::chain(&error), "failed to undo a snapshot");
            }
        }
        Ok(())
    }

    /// Continues a snapshot as a new sandbox, with an address and an identity of its own. It may
    /// reach what the snapshot's source could, unless `net_policy` says otherwise.
    ///
    /// Safe to drop: the sandbox is made (or undone) whether or not anybody waits.
    pub async fn resume_snapshot(
        &self,
        caller: &UserRow,
        name: &str,
        new_name: Option<Name>,
        net_policy: Option<NetPolicy>,
    ) -> Result<SandboxRow, ServiceError> {
        let snapshot = self.snapshot(caller, name).await?;
        let new_name = match new_name {
            Some(name) => name,
            None => default_name(&snapshot.name)?,
        };
        let (reply, answer) = oneshot::channel();
        let (this, caller) = (self.clone(), caller.clone());
        self.inner.world.tasks.spawn("resume", |_| async move {
            drop(reply.send(this.make_from(&caller, snapshot, new_name, net_policy).await));
        });
        answer.await.unwrap_or(Err(ServiceError::ShuttingDown))
    }

    async fn make_from(
        &self,
        caller: &UserRow,
        snapshot: SnapshotRow,
        name: Name,
        net_policy: Option<NetPolicy>,
    ) -> Result<SandboxRow, ServiceError> {
        let reserving = self.inner.reserving.lock().await;
        let new = NewSandbox {
            owner: caller.id.clone(),
            name,
            image: snapshot.image.clone(),
            cpus: snapshot.cpus,
            memory: snapshot.memory,
            disk_size: snapshot.disk_size,
            hugepages: snapshot.hugepages,
            keep_hot: false,
            labels: bhatti_types::Labels::default(),
            env: snapshot.env.clone(),
            init: snapshot.init.clone(),
            files_digest: String::new(),
            net_policy: net_policy.unwrap_or_else(|| snapshot.net_policy.clone()),
            uids: self.inner.uids(),
        };
        let subnet = caller.subnet_index;
        let pick = move |used: &[_]| bhatti_net::lowest_free(subnet, used).ok();
        let reserve = move |store: &mut bhatti_store::Store| store.reserve_sandbox(&new, pick);
        let row = match self.inner.world.db.call(reserve).await? {
            Reserved::New(row) => *row,
            Reserved::Existing(row) => return Err(ServiceError::NameTaken(row.name.to_string())),
            Reserved::Quota { used, max } => return Err(ServiceError::Quota { used, max }),
            Reserved::NoAddress => return Err(ServiceError::NoAddress),
        };
        let id = row.id.clone();
        let (reply, answer) = oneshot::channel();
        let origin = Origin::Snapshot(Box::new(snapshot));
        self.start_actor(row, caller.clone(), Start::Create { origin, files: Vec::new(), reply });
        drop(reserving);
        match self.made(id, answer).await? {
            Created::New(row) | Created::Existing(row) => Ok(row),
        }
    }
}

/// `<snapshot>-<6 hex>`, cut to the length of a name.
fn default_name(snapshot: &Name) -> Result<Name, ServiceError> {
    const LONGEST: usize = 63;
    let mut bytes = [0; 3];
    getrandom::fill(&mut bytes)
        .map_err(|error| ServiceError::Invalid(format!("no random name: {error}")))?;
    let [a, b, c] = bytes;
    let suffix = format!("-{a:02x}{b:02x}{c:02x}");
    let stem: String = snapshot.as_str().chars().take(LONGEST - suffix.len()).collect();
    format!("{stem}{suffix}")
        .parse()
        .map_err(|error: bhatti_types::BadName| ServiceError::Invalid(error.to_string()))
}

/// What the layers over the image take on the medium.
fn own_bytes(disk: &RootDisk) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let blocks = |path: &camino::Utf8PathBuf| path.metadata().map_or(0, |file| file.blocks());
    layers_of(disk).iter().map(blocks).sum::<u64>() * 512
}
