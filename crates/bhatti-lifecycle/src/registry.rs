//! All sandboxes of this daemon, and the operations on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bhatti_engine::{Engine, HeldBack};
use bhatti_guest_client::Guest;
use bhatti_storage::Layout;
use bhatti_store::{Db, PatchRow, Reserved, SandboxRow, StoreError, Unreadable, UserRow};
use bhatti_types::{EngineId, EventKind, Phase, SandboxId};
use camino::Utf8PathBuf;
use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::oneshot;

use crate::actor::{self, Handle, Origin, Standing, Start};
use crate::golden::{self, Goldens};
use crate::machine::{self, World, as_request_error};
use crate::recover::{Plan, plan};
use crate::spec::{CreateSpec, PatchSpec};
use crate::{Events, Lease, Op, ServiceError, Settings, Taps, Tasks, WakeError, admit};

/// What a [`Sandboxes`] is made of.
pub struct Deps {
    pub engine: Arc<dyn Engine>,
    pub taps: Arc<dyn Taps>,
    pub layout: Arc<Layout>,
    pub db: Db,
    pub settings: Settings,
    pub tasks: Tasks,
    pub events: Events,
}

/// Whether a create made something.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    New(SandboxRow),
    /// It was there and is what was asked for.
    Existing(SandboxRow),
}

/// The sandboxes. Cheap to clone.
#[derive(Clone)]
pub struct Sandboxes {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) world: Arc<World>,
    handles: Mutex<HashMap<SandboxId, Handle>>,
    /// Held from reserving a row to starting its actor, so that whoever finds a row in phase
    /// `creating` finds its actor too.
    pub(crate) reserving: tokio::sync::Mutex<()>,
}

impl Sandboxes {
    /// Takes over what a former daemon left: adopts running machines, finishes interrupted
    /// creates and destroys, and removes what the store does not know.
    pub async fn recover(deps: Deps) -> Result<Self, ServiceError> {
        let Deps { engine, taps, layout, db, settings, tasks, events } = deps;
        let world = Arc::new(World {
            engine,
            taps,
            layout,
            db,
            settings,
            tasks,
            events,
            goldens: Goldens::default(),
            networks: tokio::sync::RwLock::default(),
            snapshots: tokio::sync::RwLock::default(),
        });
        let sandboxes = Self {
            inner: Arc::new(Inner {
                world: world.clone(),
                handles: Mutex::default(),
                reserving: tokio::sync::Mutex::default(),
            }),
        };
        let (rows, unreadable) = world.db.call(|store| store.all_sandboxes()).await?;
        let mut keep = Vec::new();
        for Unreadable { engine_id, error } in &unreadable {
            tracing::error!(
                error = crate::chain(error),
                "left a sandbox alone: its record is unreadable"
            );
            keep.extend(engine_id.clone());
        }
        let (cut_short, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| plan(row) == Plan::Undo);
        for row in rows {
            keep.extend(sandboxes.recover_one(row).await?);
        }
        let ended = world.engine.sweep(&keep).await.map_err(ServiceError::Engine)?;
        // After the sweep: a create that was cut short may have left a machine of no record.
        for row in cut_short {
            sandboxes.undo(&row).await?;
        }
        sandboxes.undo_snapshots().await?;
        let (rows, _) = world.db.call(|store| store.all_sandboxes()).await?;
        let known = rows.into_iter().map(|row| row.engine_id);
        let known: Vec<EngineId> =
            known.chain(unreadable.into_iter().filter_map(|row| row.engine_id)).collect();
        let goldens = world.db.call(|store| store.golden_ids()).await?;
        let snapshots = world.db.call(|store| store.snapshot_ids()).await?;
        let removed =
            world.layout.sweep(&known, &goldens, &snapshots).map_err(ServiceError::Disk)?;
        tracing::info!(
            kept = keep.len(),
            ended = ended.len(),
            directories_removed = removed.len(),
            "recovered"
        );
        golden::tidy_soon(&world);
        sandboxes.wake_what_is_hot();
        Ok(sandboxes)
    }

    /// Freezes every machine, as far as that can be done in so much time. For a daemon that is to
    /// leave none behind; what is not frozen by then runs on, and the next daemon adopts it.
    pub async fn freeze_all(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.freeze_each()).await.is_err() {
            let seconds = patience.as_secs();
            tracing::error!(
                seconds,
                "not every machine could be frozen in time; the others run on"
            );
        }
    }

    async fn freeze_each(&self) {
        /// At once; each reads its memory and writes it.
        const AT_ONCE: usize = 4;
        let handles: Vec<Handle> = self.inner.handles().values().cloned().collect();
        let freezes = handles.iter().map(|handle| handle.stop("the daemon stopped", "shutdown"));
        let mut frozen = futures_util::stream::iter(freezes).buffer_unordered(AT_ONCE);
        while let Some(result) = frozen.next().await {
            match result {
                // What is being destroyed or cannot be vouched for is left as it is.
                Ok(()) | Err(WakeError::Denied(_) | WakeError::Gone | WakeError::ShuttingDown) => {}
                Err(error) => {
                    tracing::error!(error = crate::chain(&error), "failed to freeze a machine");
                }
            }
        }
    }

    /// Powers off every machine, as its own `poweroff` would; disks are kept, and the next use
    /// boots. For an operator who is about to stop the host. What takes longer than `patience` goes
    /// on by itself.
    pub async fn power_off_all(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.power_off_each()).await.is_err() {
            let seconds = patience.as_secs();
            tracing::error!(seconds, "not every machine could be powered off in time");
        }
    }

    async fn power_off_each(&self) {
        let handles: Vec<Handle> = self.inner.handles().values().cloned().collect();
        let endings = handles.iter().map(|handle| handle.power_off());
        for ended in futures_util::future::join_all(endings).await {
            match ended {
                Ok(()) | Err(WakeError::Gone | WakeError::ShuttingDown) => {}
                Err(error) => {
                    tracing::error!(error = crate::chain(&error), "failed to power off a machine");
                }
            }
        }
    }

    pub(crate) fn start_actor(&self, row: SandboxRow, owner: UserRow, start: Start) -> Handle {
        let id = row.id.clone();
        let registry = Arc::downgrade(&self.inner);
        let on_gone = Box::new(move |id: &SandboxId| {
            if let Some(registry) = registry.upgrade() {
                registry.handles().remove(id);
            }
        });
        // The lock is held across both, so that an actor which ends at once finds its entry.
        let mut handles = self.inner.handles();
        let handle = actor::start(&self.inner.world, row, owner, start, on_gone);
        handles.insert(id, handle.clone());
        handle
    }

    /// Makes a sandbox, or finds the one of that name if it is what is asked for.
    ///
    /// Safe to drop: the sandbox is made (or undone) whether or not anybody waits.
    pub async fn create(
        &self,
        caller: &UserRow,
        spec: CreateSpec,
    ) -> Result<Created, ServiceError> {
        spec.check(caller)?;
        spec.check_engine(self.inner.world.engine.info(), caller)?;
        let (reply, answer) = oneshot::channel();
        let (this, caller) = (self.clone(), caller.clone());
        // A task of its own: between reserving a row and starting its actor nothing may be lost.
        self.inner.world.tasks.spawn("create", |_| async move {
            drop(reply.send(this.find_or_make(&caller, spec).await));
        });
        answer.await.unwrap_or(Err(ServiceError::ShuttingDown))
    }

    async fn find_or_make(
        &self,
        caller: &UserRow,
        spec: CreateSpec,
    ) -> Result<Created, ServiceError> {
        loop {
            let image = self.check_image(caller, &spec)?;
            let reserving = self.inner.reserving.lock().await;
            let row = match self.reserve(caller, &spec).await? {
                Reserved::Quota { used, max } => return Err(ServiceError::Quota { used, max }),
                Reserved::NoAddress => return Err(ServiceError::NoAddress),
                Reserved::New(row) => {
                    let id = row.id.clone();
                    let (reply, answer) = oneshot::channel();
                    let origin = Origin::Image { file: image };
                    let start = Start::Create { origin, files: spec.files, reply };
                    self.start_actor(*row, caller.clone(), start);
                    drop(reserving);
                    return self.made(id, answer).await;
                }
                Reserved::Existing(row) => row,
            };
            drop(reserving);
            let differences = spec.differences(&row);
            if !differences.is_empty() {
                return Err(ServiceError::Exists { name: row.name.to_string(), differences });
            }
            if let Some(found) = self.existing(*row).await? {
                return Ok(Created::Existing(found));
            }
        }
    }

    async fn reserve(&self, caller: &UserRow, spec: &CreateSpec) -> Result<Reserved, ServiceError> {
        let world = &self.inner.world;
        let settings = &world.settings;
        let new = spec.to_row(caller, &settings.default_image, self.inner.uids());
        let subnet = caller.subnet_index;
        let pick = move |used: &[_]| bhatti_net::lowest_free(subnet, used).ok();
        Ok(world.db.call(move |store| store.reserve_sandbox(&new, pick)).await?)
    }

    /// The sandbox of that row once its creation has ended. `None`: it failed, and the name is
    /// free again.
    async fn existing(&self, row: SandboxRow) -> Result<Option<SandboxRow>, ServiceError> {
        let handle = self.inner.handles().get(&row.id).cloned();
        if let Some(handle) = handle {
            handle.created().await;
        }
        let id = row.id.clone();
        match self.inner.world.db.call(move |store| store.sandbox(&id)).await {
            Ok(mut row) if row.phase.wire().is_some() => {
                self.inner.up_to_date(&mut row);
                Ok(Some(row))
            }
            // Being destroyed, or left over from a failed undo.
            Ok(row) => Err(ServiceError::NameTaken(row.name.to_string())),
            Err(StoreError::NoSandbox(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses a create whose image cannot be used, before anything is taken for it.
    /// Returns its file.
    fn check_image(
        &self,
        caller: &UserRow,
        spec: &CreateSpec,
    ) -> Result<Utf8PathBuf, ServiceError> {
        let world = &self.inner.world;
        let name = spec.image.clone().unwrap_or_else(|| world.settings.default_image.clone());
        // A few rows, and not behind somebody else's write.
        let images = world.db.read(|store| store.images_for(&caller.id))?;
        let Some(image) = images.iter().find(|image| image.name == name) else {
            let available = images.into_iter().map(|image| image.name).collect();
            return Err(ServiceError::NoImage { name, available });
        };
        match bhatti_storage::check_image(&image.file) {
            Ok(_) => Ok(image.file.clone()),
            Err(source) => Err(ServiceError::BadImage { name, source }),
        }
    }

    /// Waits for the actor of a new sandbox to finish its creation.
    pub(crate) async fn made(
        &self,
        id: SandboxId,
        answer: oneshot::Receiver<Result<(), WakeError>>,
    ) -> Result<Created, ServiceError> {
        match answer.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(match error {
                    WakeError::ShuttingDown => ServiceError::ShuttingDown,
                    WakeError::SnapshotGone(name) => ServiceError::NoSnapshot(name.to_string()),
                    error => told(error, ServiceError::Create),
                });
            }
            Err(_) => return Err(ServiceError::ShuttingDown),
        }
        Ok(Created::New(self.inner.world.db.read(|store| store.sandbox(&id))?))
    }

    /// The caller's sandboxes, newest first. Wakes nothing.
    pub async fn list(&self, caller: &UserRow) -> Result<Vec<SandboxRow>, ServiceError> {
        let user = caller.id.clone();
        let mut rows = self.inner.world.db.call(move |store| store.sandboxes_of(&user)).await?;
        for row in &mut rows {
            self.inner.up_to_date(row);
        }
        rows.retain(|row| row.phase.wire().is_some());
        Ok(rows)
    }

    /// One sandbox by id or name. Wakes nothing.
    pub async fn get(&self, caller: &UserRow, key: &str) -> Result<SandboxRow, ServiceError> {
        self.find(caller, key, |phase| phase.wire().is_some())
    }

    fn find(
        &self,
        caller: &UserRow,
        key: &str,
        visible: impl FnOnce(Phase) -> bool,
    ) -> Result<SandboxRow, ServiceError> {
        let mut row = self.inner.world.db.read(|store| store.find_sandbox(&caller.id, key))?;
        if let Some(row) = &mut row {
            self.inner.up_to_date(row);
        }
        row.filter(|row| visible(row.phase)).ok_or_else(|| ServiceError::NoSandbox(key.to_owned()))
    }

    /// How often the sandbox was denied something by its policy since its network was made. Wakes
    /// nothing; `None`: it cannot be told just now.
    pub async fn denied(&self, caller: &UserRow, row: &SandboxRow) -> Option<u64> {
        let denied = self.inner.world.taps.denied(caller.subnet_index, row.ip).await;
        denied
            .inspect_err(|error| {
                tracing::warn!(error = crate::chain(&**error), "denials cannot be counted");
            })
            .ok()
    }

    /// How often its limits have held it back since its machine was started. Wakes nothing; `None`: it
    /// has no machine or no limits that are counted, or its actor is busy.
    pub async fn held_back(&self, row: &SandboxRow) -> Option<HeldBack> {
        /// An actor that is at nothing answers at once, and nobody looks at a sandbox for this.
        const PATIENCE: Duration = Duration::from_millis(100);
        if !self.inner.world.engine.info().capabilities.counts_limits {
            return None;
        }
        let handle = self.handle(row).ok()?;
        if !matches!(handle.standing().phase, Phase::Hot | Phase::Warm) {
            return None;
        }
        let asked = tokio::time::timeout(PATIENCE, handle.machine()).await;
        asked.ok()?.ok()??.held_back().await
    }

    /// Changes the record.
    ///
    /// Safe to drop: whoever has to know what is recorded is told whether or not anybody waits.
    pub async fn patch(
        &self,
        caller: &UserRow,
        key: &str,
        spec: PatchSpec,
    ) -> Result<SandboxRow, ServiceError> {
        spec.check()?;
        let row = self.get(caller, key).await?;
        admit(row.phase, Op::Edit)?;
        let (reply, answer) = oneshot::channel();
        let (this, caller) = (self.clone(), caller.clone());
        self.inner.world.tasks.spawn("patch", |_| async move {
            drop(reply.send(this.change(&caller, row, spec).await));
        });
        answer.await.unwrap_or(Err(ServiceError::ShuttingDown))
    }

    async fn change(
        &self,
        caller: &UserRow,
        row: SandboxRow,
        spec: PatchSpec,
    ) -> Result<SandboxRow, ServiceError> {
        let PatchSpec { name, keep_hot, labels_add, labels_remove, net_policy } = spec;
        let sets_policy = net_policy.is_some();
        let patch = PatchRow { name, labels_add, labels_remove, keep_hot, net_policy };
        let id = row.id.clone();
        let (patch, patched) = self
            .inner
            .world
            .db
            .call(move |store| {
                let patched = store.patch_sandbox(&id, &patch)?;
                Ok((patch, patched))
            })
            .await?;
        for meta in told_changes(&row, &patched, &patch) {
            let events = &self.inner.world.events;
            events.record(EventKind::SandboxUpdated, Some(&caller.id), Some(&row.id), meta);
        }
        // Also if it is what was recorded: the last attempt may have failed after that, and of two
        // that came at once neither knows what the other has made of it.
        if sets_policy {
            let applied = machine::apply_network(&self.inner.world, caller).await;
            applied.map_err(|error| {
                failed(&patched, "apply the network policy, which is recorded", error)
            })?;
        }
        let Some(keep) = keep_hot else { return self.get(caller, patched.id.as_str()).await };
        let handle = self.handle(&patched)?;
        handle.keep_hot(keep).await;
        if keep {
            handle.start(false, "keep_hot").await.map_err(|error| wake_error(&patched, error))?;
        }
        self.get(caller, patched.id.as_str()).await
    }

    /// Makes it hot. `force`: lose what must be lost rather than not start.
    pub async fn start(
        &self,
        caller: &UserRow,
        key: &str,
        force: bool,
    ) -> Result<SandboxRow, ServiceError> {
        let row = self.get(caller, key).await?;
        let started = self.handle(&row)?.start(force, "api").await;
        started.map_err(|error| wake_error(&row, error))?;
        self.get(caller, row.id.as_str()).await
    }

    /// Freezes it, whoever uses it; what sleeps or never ran stays as it is.
    pub async fn stop(&self, caller: &UserRow, key: &str) -> Result<SandboxRow, ServiceError> {
        let row = self.get(caller, key).await?;
        let stopped = self.handle(&row)?.stop("stop requested", "api").await;
        stopped.map_err(|error| failed(&row, "stop sandbox", error))?;
        self.get(caller, row.id.as_str()).await
    }

    /// Removes a sandbox and everything of it. One whose removal failed can be removed again.
    pub async fn destroy(&self, caller: &UserRow, key: &str) -> Result<(), ServiceError> {
        let row = self.find(caller, key, |phase| phase != Phase::Creating)?;
        let destroyed = self.handle(&row)?.destroy().await;
        destroyed.map_err(|error| failed(&row, "destroy sandbox", error))
    }

    /// A guest that answers, waking it if need be.
    pub async fn lease(&self, caller: &UserRow, key: &str) -> Result<Lease, ServiceError> {
        let row = self.get(caller, key).await?;
        self.lease_of(&row).await
    }

    /// The same for a sandbox that was just looked up.
    pub async fn lease_of(&self, row: &SandboxRow) -> Result<Lease, ServiceError> {
        self.handle(row)?.lease().await.map_err(|error| wake_error(row, error))
    }

    /// Its guest, if it is awake, without keeping it so: it may fall asleep while it is asked
    /// something, and then does not answer. `None` also if its actor is busy.
    pub async fn guest_if_hot(&self, row: &SandboxRow) -> Option<Guest> {
        /// Whoever looks at all sandboxes does not wait for one of them.
        const PATIENCE: Duration = Duration::from_secs(2);
        let handle = self.handle(row).ok()?;
        if handle.standing().phase != Phase::Hot {
            return None;
        }
        tokio::time::timeout(PATIENCE, handle.peek()).await.ok()?.ok()?
    }

    /// Whether it has no machine, and will have one when it is used, once its actor has done what it
    /// is at: who freezes a machine may break its link some time before it is recorded as asleep.
    pub async fn has_fallen_asleep(&self, row: &SandboxRow) -> bool {
        /// Longer than a freeze takes, also that of a large machine on a slow disk.
        const PATIENCE: Duration = Duration::from_secs(60);
        let Ok(handle) = self.handle(row) else { return false };
        // What it answers is not needed: that it does is the end of whatever came before.
        drop(tokio::time::timeout(PATIENCE, handle.peek()).await);
        matches!(handle.standing().phase, Phase::Cold | Phase::Stopped)
    }

    /// The phase it is in at this moment; `None`: there is none. Asks nobody.
    pub fn phase_now(&self, row: &SandboxRow) -> Option<Phase> {
        self.inner.handles().get(&row.id).map(|handle| handle.standing().phase)
    }

    /// What the sandbox has lost since `row` was looked up, if it has lost something: one that
    /// could not wake as it was, or died and was booted again. Asks nobody.
    pub fn loss_since(&self, row: &SandboxRow) -> Option<String> {
        let standing = self.inner.handles().get(&row.id).map(Handle::standing);
        let Standing { phase, reason, since } = standing?;
        // Why it is unknown is the operator's business.
        let told = phase != Phase::Unknown && since != row.changed_at;
        (told && bhatti_types::tells_of_loss(&reason)).then_some(reason)
    }

    pub(crate) fn handle(&self, row: &SandboxRow) -> Result<Handle, ServiceError> {
        let handle = self.inner.handles().get(&row.id).cloned();
        handle.ok_or_else(|| ServiceError::NoSandbox(row.name.to_string()))
    }
}

/// What is told of a change, each part of it for itself.
fn told_changes(was: &SandboxRow, is: &SandboxRow, patch: &PatchRow) -> Vec<serde_json::Value> {
    let name = is.name.as_str();
    let renamed =
        (was.name != is.name).then(|| json!({ "old_name": was.name.as_str(), "new_name": name }));
    let (added, removed) = (&patch.labels_add, &patch.labels_remove);
    let relabelled = (was.labels != is.labels)
        .then(|| json!({ "name": name, "labels_added": added, "labels_removed": removed }));
    let kept =
        (was.keep_hot != is.keep_hot).then(|| json!({ "name": name, "keep_hot": is.keep_hot }));
    let policy = (was.net_policy != is.net_policy)
        .then(|| json!({ "name": name, "net_policy": is.net_policy }));
    [renamed, relabelled, kept, policy].into_iter().flatten().collect()
}

/// What a caller is told when the guest of `row` could not be had.
fn wake_error(row: &SandboxRow, error: WakeError) -> ServiceError {
    match failed(row, "wake sandbox", error) {
        ServiceError::Failed { cause, .. } => ServiceError::Wake(cause),
        other => other,
    }
}

/// What a caller is told when something could not be done with a sandbox.
pub(crate) fn failed(row: &SandboxRow, doing: &'static str, cause: WakeError) -> ServiceError {
    match cause {
        WakeError::Gone => ServiceError::NoSandbox(row.name.to_string()),
        WakeError::ShuttingDown => ServiceError::ShuttingDown,
        WakeError::Denied(denied) => ServiceError::Denied(denied),
        WakeError::NothingToSave => ServiceError::NotRunning(row.name.to_string()),
        cause => told(cause, |cause| ServiceError::Failed { doing, cause }),
    }
}

/// What is about the request or about room, as such; the rest as `otherwise` has it.
fn told(cause: WakeError, otherwise: impl FnOnce(WakeError) -> ServiceError) -> ServiceError {
    if let WakeError::Engine(engine) = &cause
        && let Some(told) = as_request_error(engine)
    {
        return told;
    }
    if cause.is_full() { ServiceError::Full(cause) } else { otherwise(cause) }
}

impl Inner {
    /// The uids sandboxes may have: the last one belongs to the machines of golden snapshots.
    pub(crate) fn uids(&self) -> (u32, u32) {
        let (first, count) = self.world.settings.uids;
        (first, count - 1)
    }

    /// The actor knows first: it answers before it writes. All of it is of one moment, whichever
    /// moment the row is of.
    pub(crate) fn up_to_date(&self, row: &mut SandboxRow) {
        let standing = self.handles().get(&row.id).map(Handle::standing);
        let Some(Standing { phase, reason, since }) = standing else { return };
        let stopped = |phase| matches!(phase, Phase::Cold | Phase::Stopped);
        if stopped(phase) && !stopped(row.phase) {
            row.stopped_at = Some(since);
        }
        (row.phase, row.reason, row.changed_at) = (phase, reason, since);
    }

    pub(crate) fn handles(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Handle>> {
        // Nothing panics while holding it; the map is whole even if something did.
        self.handles.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
