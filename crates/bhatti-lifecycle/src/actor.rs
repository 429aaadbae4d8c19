//! One sandbox's owner. Everything that changes it goes through here, one thing at a time.

mod checkpoint;
mod create;
mod handle;
mod sleep;
mod wake;

use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::Exit;
use bhatti_store::{Change, SandboxRow, StoreError, UserRow};
use bhatti_types::{EventKind, Phase, SandboxId};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use handle::Lease;
pub(crate) use handle::{Checkpoint, CheckpointDirs, Handle, Origin, Standing, Start};

use crate::dial::Route;
use crate::guest::describe;
use crate::idle::Next;
use crate::machine::{self, Machine, World};
use crate::pin::Pins;
use crate::{Op, WakeError, admit, disk, golden};
use handle::{Command, QUEUE};
use sleep::Asked;

pub(crate) struct Actor {
    world: Arc<World>,
    id: SandboxId,
    owner: UserRow,
    /// What everybody sees.
    seen: watch::Sender<Standing>,
    commands: mpsc::Receiver<Command>,
    machine: Option<Machine>,
    interrupt: CancellationToken,
    pins: Pins,
    /// The way to its programs.
    route: Arc<Route>,
    keep_hot: bool,
    /// What the guest has been asked in this time of quiet.
    asked: Asked,
    /// A move that everybody sees and the record does not yet.
    owed: Option<Standing>,
    /// The disk the machine writes, where the record does not say so yet and is right too.
    unrecorded_disk: Option<serde_json::Value>,
    /// A sealing of its disk has begun, and what came of it is not recorded. Until it is, the
    /// machine stands, no number is given out and no layer is removed.
    half_sealed: bool,
    /// How often in a row it could not be frozen.
    failed_freezes: u32,
    /// Something may have become superfluous.
    untidy: bool,
    /// Told once, when the row is gone.
    on_gone: Box<dyn Fn(&SandboxId) + Send + Sync>,
}
/// Starts the actor of `row`.
pub(crate) fn start(
    world: &Arc<World>,
    row: SandboxRow,
    owner: UserRow,
    start: Start,
    on_gone: Box<dyn Fn(&SandboxId) + Send + Sync>,
) -> Handle {
    let (commands, queue) = mpsc::channel(QUEUE);
    let standing = Standing { phase: row.phase, reason: row.reason.clone(), since: row.changed_at };
    let (seen, standing) = watch::channel(standing);
    let interrupt = world.tasks.stopping().child_token();
    let (taps, id) = (world.taps.clone(), row.engine_id.clone());
    let route = Route::new(taps, owner.subnet_index, id, row.ip);
    let pins = Pins::default();
    let actor = Actor {
        world: world.clone(),
        id: row.id.clone(),
        owner,
        seen,
        commands: queue,
        machine: None,
        interrupt: interrupt.clone(),
        pins: pins.clone(),
        route: Arc::new(route),
        keep_hot: row.keep_hot,
        asked: Asked::default(),
        owed: None,
        unrecorded_disk: None,
        half_sealed: false,
        failed_freezes: 0,
        untidy: false,
        on_gone,
    };
    let span = tracing::info_span!(parent: None, "sandbox", id = %row.id, name = %row.name);
    world.tasks.spawn("sandbox", |stop| actor.run(row, start, stop).instrument(span));
    Handle { commands, standing, pins, interrupt, stopping: world.tasks.stopping() }
}

/// What the loop turns to next.
enum Turn {
    Ended(Exit),
    Asked(Option<Command>),
    /// The time of quiet has begun, or has lasted long enough for something.
    Quiet,
}

impl Actor {
    async fn run(mut self, row: SandboxRow, start: Start, stop: CancellationToken) {
        match start {
            Start::Found { machine } => self.machine = machine,
            Start::Create { origin, files, reply } => {
                let result = self.create(row, origin, files).await;
                let failed = result.is_err();
                // The asker may have hung up; the sandbox is in a known state all the same.
                drop(reply.send(result));
                if failed {
                    return;
                }
            }
        }
        self.serve(stop).await;
    }

    /// The loop is deaf while a command runs, so everything inside one has a deadline.
    async fn serve(&mut self, stop: CancellationToken) {
        loop {
            let next = self.next();
            let way = self.way();
            let door = way.map(|way| self.pins.open(way));
            let turn = tokio::select! {
                biased; // order is priority: shutdown, then the machine, then clients
                () = stop.cancelled() => return, // the machine runs on; the next daemon adopts it
                exit = ended(self.machine.as_ref()) => Turn::Ended(exit),
                command = self.commands.recv() => Turn::Asked(command),
                () = self.pins.released() => Turn::Quiet,
                () = due(next) => Turn::Quiet,
            };
            drop(door);
            match turn {
                Turn::Ended(exit) => self.machine_ended(&exit).await,
                Turn::Asked(None) => return,
                Turn::Asked(Some(command)) => {
                    if self.obey(command).await {
                        return;
                    }
                }
                Turn::Quiet => self.fall_asleep().await,
            }
            self.catch_up().await;
        }
    }

    /// Does what is asked. True: the sandbox is gone.
    async fn obey(&mut self, command: Command) -> bool {
        match command {
            // Whoever asked has hung up: nobody needs the machine.
            Command::Use { reply } if reply.is_closed() => {}
            Command::Use { reply } => {
                let (from, begun) = (self.phase(), Instant::now());
                let usable = self.make_usable(false).await;
                let (took, woken) = (begun.elapsed(), usable.is_ok());
                // What is owed to the record is paid behind the answer.
                drop(reply.send(usable));
                if woken {
                    self.tell_woken(from, took);
                }
            }
            Command::Peek { reply } => {
                let up = self.machine.as_ref().filter(|machine| !machine.stands);
                let guest = up.filter(|_| self.phase() == Phase::Hot).and_then(Machine::link);
                drop(reply.send(Ok(guest)));
            }
            Command::Machine { reply } => {
                let machine = self.machine.as_ref().map(|machine| Arc::clone(&machine.vm));
                drop(reply.send(Ok(machine)));
            }
            Command::Start { force, why, reply } => {
                let from = self.phase();
                let started = self.make_usable(force).await.map(drop);
                if started.is_ok() && from != Phase::Hot {
                    self.tell(
                        EventKind::SandboxStarted,
                        json!({ "name": self.name(), "reason": why }),
                    );
                }
                self.catch_up().await;
                drop(reply.send(started));
            }
            Command::Stop { reason, why, reply } => {
                let up = self.machine.is_some();
                let stopped = self.stop(reason).await;
                if up && stopped.is_ok() {
                    self.tell(
                        EventKind::SandboxStopped,
                        json!({ "name": self.name(), "reason": why }),
                    );
                }
                drop(reply.send(stopped));
            }
            Command::Checkpoint { into, reply } => {
                // Nobody waits any more, and its directory may be gone.
                if !reply.is_closed() {
                    drop(reply.send(self.checkpoint(into).await));
                }
            }
            Command::PowerOff { reply } => drop(reply.send(self.power_off().await)),
            // As it is recorded now: of two changes at once the later word may come first.
            Command::KeepHot(keep) => {
                self.keep_hot = self.row().await.map_or(keep, |row| row.keep_hot);
                // Quiet counts from the word that it may sleep, not from long ago.
                self.pins.touch();
            }
            Command::Destroy { reply } => {
                let result = self.destroy().await;
                let gone = result.is_ok();
                drop(reply.send(result));
                return gone;
            }
        }
        false
    }

    async fn machine_ended(&mut self, exit: &Exit) {
        let mut reason = describe(exit);
        tracing::warn!(how = reason, "machine ended");
        if let Exit::Died { .. } = exit {
            reason.push_str("; memory is lost, the disk is kept");
        }
        self.machine = None;
        self.owe(Phase::Stopped, &reason);
        let why = if let Exit::Died { .. } = exit { "died" } else { "poweroff" };
        let meta = json!({ "name": self.name(), "reason": why, "detail": reason });
        self.tell(EventKind::SandboxStopped, meta);
        self.catch_up().await;
    }

    // --- ending ---

    async fn power_off(&mut self) -> Result<(), WakeError> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let ended = async {
            machine.guest(&self.world).await?.power_off().await?;
            Ok::<_, WakeError>(machine.vm.exited().await)
        };
        let exit = match tokio::time::timeout(POWER_OFF, ended).await {
            Ok(Ok(exit)) => exit,
            // A guest that does not want to is ended all the same.
            Ok(Err(_)) | Err(_) => {
                machine.vm.kill().await.map_err(WakeError::Engine)?;
                Exit::Killed
            }
        };
        self.machine_ended(&exit).await;
        Ok(())
    }

    async fn destroy(&mut self) -> Result<(), WakeError> {
        let phase = self.phase();
        admit(phase, Op::Destroy)?;
        // Recorded first: if we die half-way, the next start finishes the job.
        let from = &[
            Phase::Hot,
            Phase::Warm,
            Phase::Cold,
            Phase::Stopped,
            Phase::Unknown,
            Phase::Destroying,
        ];
        let recorded =
            self.move_to(from, Phase::Destroying, "destroy requested", Change::default());
        match recorded.await {
            // Destroying is how a full disk gets room again, so it must not need any.
            Err(WakeError::Store(StoreError::Full(_))) => {
                tracing::warn!("no room to record that a sandbox is being destroyed; going on");
                self.show(self.standing(Phase::Destroying, "destroy requested"));
            }
            recorded => recorded?,
        }
        let vm = self.machine.take().map(|machine| machine.vm);
        let row = self.row().await?;
        machine::demolish(&self.world, &row, vm, &self.owner).await?;
        self.tell(EventKind::SandboxDestroyed, destroyed(&row));
        (self.on_gone)(&self.id);
        // What it stood on may have been waiting for its end.
        golden::tidy_soon(&self.world);
        Ok(())
    }

    // --- what is told ---

    fn tell(&self, kind: EventKind, meta: serde_json::Value) {
        self.world.events.record(kind, Some(&self.owner.id), Some(&self.id), meta);
    }

    /// What it is called now. Only for what is told.
    fn name(&self) -> String {
        let row = self.world.db.read(|store| store.sandbox(&self.id));
        row.map(|row| row.name.to_string()).unwrap_or_default()
    }

    fn tell_woken(&self, from: Phase, took: Duration) {
        if from == Phase::Hot {
            return;
        }
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut meta =
            json!({ "sandbox": self.name(), "from_state": from.as_str(), "wake_ms": millis });
        let reason = &self.seen.borrow().reason;
        if bhatti_types::tells_of_loss(reason) {
            meta["detail"] = reason.as_str().into();
        }
        self.tell(EventKind::ThermalWake, meta);
    }

    // --- the record ---

    async fn row(&self) -> Result<SandboxRow, WakeError> {
        let id = self.id.clone();
        let mut row = self.world.db.call(move |store| store.sandbox(&id)).await?;
        if let Some(disk) = &self.unrecorded_disk {
            row.root_disk = Some(disk.clone());
        }
        Ok(row)
    }

    fn phase(&self) -> Phase {
        self.seen.borrow().phase
    }

    /// How it stands once it has come to that phase now.
    fn standing(&self, to: Phase, reason: &str) -> Standing {
        let seen = self.seen.borrow();
        let since = if seen.phase == to { seen.since } else { Timestamp::now() };
        Standing { phase: to, reason: reason.to_owned(), since }
    }

    fn show(&self, standing: Standing) {
        self.seen.send_replace(standing);
    }

    /// Records the move, then lets everybody see it.
    async fn move_to(
        &mut self,
        from: &'static [Phase],
        to: Phase,
        reason: &str,
        change: Change,
    ) -> Result<(), WakeError> {
        self.come_to(from, self.standing(to, reason), change).await
    }

    async fn come_to(
        &mut self,
        from: &'static [Phase],
        standing: Standing,
        mut change: Change,
    ) -> Result<(), WakeError> {
        let Standing { phase: to, reason, since } = standing.clone();
        let id = self.id.clone();
        tracing::info!(to = %to, reason, "changing phase");
        change.at = Some(since);
        if change.root_disk.is_none() {
            change.root_disk.clone_from(&self.unrecorded_disk);
        }
        let moved =
            move |store: &mut bhatti_store::Store| store.set_phase(&id, from, to, &reason, &change);
        self.world.db.call(moved).await?;
        self.unrecorded_disk = None;
        self.owed = None;
        self.show(standing);
        Ok(())
    }

    /// Lets everybody see a move that has happened whether or not it can be recorded.
    fn owe(&mut self, to: Phase, reason: &str) {
        let standing = self.standing(to, reason);
        self.show(standing.clone());
        self.owed = Some(standing);
    }

    /// Does what could wait until after the answer: records what everybody sees already, and
    /// removes files that nothing needs any more.
    async fn catch_up(&mut self) {
        if let Some(owed) = self.owed.clone() {
            let to = owed.phase;
            let from = &[Phase::Hot, Phase::Warm, Phase::Stopped];
            let change = if to == Phase::Stopped { disk::lost() } else { Change::default() };
            match self.come_to(from, owed, change).await {
                Ok(()) => self.untidy |= to == Phase::Stopped,
                // Tried again after whatever comes next. A daemon that starts meanwhile finds the
                // same out for itself, or pauses what the next use lets go on.
                Err(error) => {
                    tracing::error!(error = crate::chain(&error), "failed to record a move");
                }
            }
        }
        if self.untidy
            && let Err(error) = self.tidy().await
        {
            // Tried again after whatever comes next.
            tracing::warn!(error = crate::chain(&error), "failed to tidy up");
        }
    }

    async fn tidy(&mut self) -> Result<(), WakeError> {
        self.settle_disk().await?;
        let row = self.row().await?;
        self.untidy = false;
        disk::tidy(&self.world, &row).await;
        Ok(())
    }
}

/// What is told of a sandbox that is no more.
pub(crate) fn destroyed(row: &SandboxRow) -> serde_json::Value {
    let lifetime = Timestamp::now().as_second() - row.created_at.as_second();
    json!({ "name": row.name.as_str(), "lifetime_s": lifetime.max(0) })
}

/// Resolves when the machine ends; never, without one.
async fn ended(machine: Option<&Machine>) -> Exit {
    match machine {
        Some(machine) => machine.vm.exited().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the policy wants something done.
async fn due(next: Next) {
    match next {
        Next::Nothing => std::future::pending().await,
        Next::Look(after) => tokio::time::sleep(after).await,
        Next::Baseline | Next::Decide | Next::Freeze => {}
    }
}

/// How long a guest may take to end by itself when it is asked to.
const POWER_OFF: Duration = Duration::from_secs(20);
