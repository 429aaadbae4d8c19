//! One sandbox's owner. Everything that changes it goes through here, one thing at a time.

use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{Exit, RootDisk, Save, Saved, Shape};
use bhatti_guest_client::{ExecSpec, Guest, GuestError};
use bhatti_store::{Change, Generation, SandboxRow, SnapshotRow, StoreError, UserRow};
use bhatti_types::{GoldenId, Phase, SandboxId};
use camino::Utf8PathBuf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::disk::{self, base_dir, blocking};
use crate::freeze::{self, Attempt};
use crate::guest::describe;
use crate::idle::{self, Next, Quiet};
use crate::machine::{self, Frozen, Machine, World, to_json};
use crate::pin::{Pin, Pins};
use crate::spec::FileContent;
use crate::{Op, WakeError, admit, golden};

/// A guest that is ready, and kept awake for as long as this value lives.
///
/// Taking one wakes the sandbox; while there is one, nothing pauses it. Whoever works on a
/// guest's behalf for a while (a command that runs, a file on its way) holds one all that time.
#[derive(Clone)]
pub struct Lease {
    guest: Guest,
    _pin: Pin,
}

impl Lease {
    /// The guest; it answers.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }
}

type Reply<T> = oneshot::Sender<Result<T, WakeError>>;

/// What can be asked of the actor.
pub(crate) enum Command {
    Use {
        reply: Reply<Lease>,
    },
    /// `force`: lose what must be lost, rather than not start.
    Start {
        force: bool,
        reply: Reply<()>,
    },
    Stop {
        reason: &'static str,
        reply: Reply<()>,
    },
    /// Saves the machine as it is into a directory; returns its disk, sealed.
    Checkpoint {
        into: Utf8PathBuf,
        reply: Reply<Checkpoint>,
    },
    PowerOff {
        reply: Reply<()>,
    },
    KeepHot(bool),
    Destroy {
        reply: Reply<()>,
    },
}

/// What a named snapshot is made of besides its directory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) golden: Option<GoldenId>,
    /// As it is in the sandbox; the layers are to be linked from there.
    pub(crate) disk: RootDisk,
}

/// What everybody else holds of a sandbox. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    phase: watch::Receiver<Phase>,
    /// Ends a boot under way: somebody wants the sandbox gone, or the daemon stops.
    interrupt: CancellationToken,
}

/// How many requests may wait for one sandbox before callers wait to ask.
const QUEUE: usize = 64;

impl Handle {
    /// A guest that answers. Safe to drop at any point: the actor finishes, the answer is lost.
    pub(crate) async fn lease(&self) -> Result<Lease, WakeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Use { reply }, answer).await.unwrap_or(Err(WakeError::Gone))
    }

    /// Makes it hot. Safe to drop: the actor finishes.
    pub(crate) async fn start(&self, force: bool) -> Result<(), WakeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Start { force, reply }, answer).await.unwrap_or(Err(WakeError::Gone))
    }

    /// Freezes it, whoever uses it. Safe to drop: the actor finishes.
    pub(crate) async fn stop(&self, reason: &'static str) -> Result<(), WakeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Stop { reason, reply }, answer).await.unwrap_or(Err(WakeError::Gone))
    }

    /// Saves it into a directory, without waking it.
    pub(crate) async fn checkpoint(&self, into: Utf8PathBuf) -> Result<Checkpoint, WakeError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.ask(Command::Checkpoint { into, reply }, answer).await;
        asked.unwrap_or(Err(WakeError::Gone))
    }

    /// Ends the machine as its own `poweroff` would. Safe to drop: the actor finishes.
    pub(crate) async fn power_off(&self) -> Result<(), WakeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::PowerOff { reply }, answer).await.unwrap_or(Ok(()))
    }

    /// Tells it that the record says so.
    pub(crate) async fn keep_hot(&self, keep: bool) {
        // An actor that is gone needs to know nothing.
        drop(self.commands.send(Command::KeepHot(keep)).await);
    }

    /// Removes the sandbox. Safe to drop: the actor finishes.
    pub(crate) async fn destroy(&self) -> Result<(), WakeError> {
        self.interrupt.cancel();
        let (reply, answer) = oneshot::channel();
        // No answer means that the actor ended: somebody else's destroy was first.
        self.ask(Command::Destroy { reply }, answer).await.unwrap_or(Ok(()))
    }

    /// `None`: the actor ended before it answered. A command that is sent in the moment the
    /// actor ends stays in the queue unread, so waiting for the answer alone could be for ever.
    async fn ask<T>(&self, command: Command, mut answer: oneshot::Receiver<T>) -> Option<T> {
        self.commands.send(command).await.ok()?;
        tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            () = self.commands.closed() => answer.try_recv().ok(),
        }
    }

    /// The phase as it is, which the record may learn a moment later.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until creation has come to an end, whichever.
    pub(crate) async fn created(&self) {
        let mut phase = self.phase.clone();
        // An error means the actor is gone, which is an end too.
        drop(phase.wait_for(|phase| *phase != Phase::Creating).await);
    }
}

/// What an actor starts from.
pub(crate) enum Start {
    /// Make it; the files go in before the init script runs.
    Create { origin: Origin, files: Vec<FileContent>, reply: Reply<()> },
    /// It was there before this daemon, perhaps with a machine.
    Found { machine: Option<Machine> },
}

/// What a new sandbox is made from.
pub(crate) enum Origin {
    /// An image, by way of a golden snapshot if there is one.
    Image { file: Utf8PathBuf },
    /// A named snapshot.
    Snapshot(Box<SnapshotRow>),
}

pub(crate) struct Actor {
    world: Arc<World>,
    id: SandboxId,
    owner: UserRow,
    phase: watch::Sender<Phase>,
    commands: mpsc::Receiver<Command>,
    machine: Option<Machine>,
    interrupt: CancellationToken,
    pins: Pins,
    keep_hot: bool,
    /// What the guest has been asked in this time of quiet.
    asked: Asked,
    /// A move that everybody sees and the record does not yet: it is behind the answer.
    owed: Option<&'static str>,
    /// Told once, when the row is gone.
    on_gone: Box<dyn Fn(&SandboxId) + Send + Sync>,
}

/// What came of asking the guest whether it works.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// For which time of quiet, told apart by its beginning.
    since: Option<Instant>,
    /// How often in a row it did not answer.
    silent: u32,
}

/// After so many unanswered questions a guest is put to sleep without an answer.
const PATIENCE: u32 = 3;

/// Starts the actor of `row`.
pub(crate) fn start(
    world: &Arc<World>,
    row: SandboxRow,
    owner: UserRow,
    start: Start,
    on_gone: Box<dyn Fn(&SandboxId) + Send + Sync>,
) -> Handle {
    let (commands, queue) = mpsc::channel(QUEUE);
    let (phase, watching) = watch::channel(row.phase);
    let interrupt = world.tasks.stopping().child_token();
    let actor = Actor {
        world: world.clone(),
        id: row.id.clone(),
        owner,
        phase,
        commands: queue,
        machine: None,
        interrupt: interrupt.clone(),
        pins: Pins::default(),
        keep_hot: row.keep_hot,
        asked: Asked::default(),
        owed: None,
        on_gone,
    };
    let span = tracing::info_span!("sandbox", id = %row.id, name = %row.name);
    world.tasks.spawn("sandbox", |stop| actor.run(row, start, stop).instrument(span));
    Handle { commands, phase: watching, interrupt }
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
            let turn = tokio::select! {
                biased; // order is priority: shutdown, then the machine, then clients
                () = stop.cancelled() => return, // the machine runs on; the next daemon adopts it
                exit = ended(self.machine.as_ref()) => Turn::Ended(exit),
                command = self.commands.recv() => Turn::Asked(command),
                () = self.pins.released() => Turn::Quiet,
                () = due(next) => Turn::Quiet,
            };
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
        }
    }

    /// Does what is asked. True: the sandbox is gone.
    async fn obey(&mut self, command: Command) -> bool {
        match command {
            // Whoever asked has hung up: nobody needs the machine.
            Command::Use { reply } if reply.is_closed() => {}
            Command::Use { reply } => {
                let lease = self.make_usable(false).await;
                drop(reply.send(lease));
                self.pay().await;
            }
            Command::Start { force, reply } => {
                let started = self.make_usable(force).await.map(drop);
                self.pay().await;
                drop(reply.send(started));
            }
            Command::Stop { reason, reply } => drop(reply.send(self.stop(reason).await)),
            Command::Checkpoint { into, reply } => {
                drop(reply.send(self.checkpoint(into).await));
            }
            Command::PowerOff { reply } => drop(reply.send(self.power_off().await)),
            Command::KeepHot(keep) => self.keep_hot = keep,
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
        let reason = describe(exit);
        tracing::warn!(how = reason, "machine ended");
        self.machine = None;
        // What was frozen is older than the disk: waking from it would take files back.
        let change = Change { generations: Some(Vec::new()), ..Change::default() };
        let from = &[Phase::Hot, Phase::Warm];
        match self.move_to(from, Phase::Stopped, &reason, change).await {
            Ok(()) => self.tidy().await,
            // The phase stays without a machine; the next use boots one all the same.
            Err(error) => {
                tracing::error!(
                    error = crate::chain(&error),
                    "failed to record that a machine ended"
                );
            }
        }
    }

    // --- being made ---

    async fn create(
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
        self.phase.send_replace(Phase::Destroying);
        (self.on_gone)(&self.id);
        Err(error)
    }

    async fn bring_up(
        &mut self,
        row: SandboxRow,
        origin: Origin,
        files: Vec<FileContent>,
    ) -> Result<(), WakeError> {
        let resumed = matches!(origin, Origin::Snapshot(_));
        let (mut change, reason) = match origin {
            Origin::Image { file } => self.from_image(&row, file).await?,
            Origin::Snapshot(snapshot) => self.from_snapshot(&row, &snapshot).await?,
        };
        let Some(machine) = &mut self.machine else { return Err(WakeError::Gone) };
        change.vm = Some(Some(machine.to_json()?));
        let furnish = async {
            let guest = machine.guest(&self.world).await?;
            for file in files {
                guest.write_file(&file.path, file.mode, file.content).await?;
            }
            // What a snapshot continues has run its init script, or is running it.
            if resumed { Ok(()) } else { start_init(&guest, &row.init).await }
        };
        tokio::select! {
            biased;
            () = self.interrupt.cancelled() => return Err(WakeError::ShuttingDown),
            furnished = furnish => furnished?,
        }
        self.move_to(&[Phase::Creating], Phase::Hot, &reason, change).await
    }

    /// Clones the golden snapshot of that image and shape, or boots.
    async fn from_image(
        &mut self,
        row: &SandboxRow,
        file: Utf8PathBuf,
    ) -> Result<(Change, String), WakeError> {
        let (world, subnet) = (self.world.clone(), self.owner.subnet_index);
        let shape = Shape { milli_cpus: row.cpus.milli(), memory: row.memory };
        let found = tokio::select! {
            biased;
            () = self.interrupt.cancelled() => return Err(WakeError::ShuttingDown),
            found = golden::find_or_make(&world, &row.image, &file, shape) => found,
        };
        if let Some(golden) = found {
            let below = machine::disk_record(&golden.row.disk)?;
            let image = below.base.clone().unwrap_or(file.clone());
            let root = disk::first(&world, row, image, disk::layers_of(&below)).await?;
            let snapshot = world.layout.golden(&golden.row.id);
            // Huge pages are shared with nobody.
            let base = (!row.hugepages).then(|| snapshot.clone());
            let shared = base.is_some();
            let frozen = Frozen { snapshot, base, clone: true };
            let cloned =
                machine::restore(&world, row, subnet, root.clone(), frozen, &self.interrupt);
            match cloned.await {
                Ok(machine) => {
                    self.machine = Some(machine);
                    let change = Change {
                        root_disk: Some(to_json("root disk", &root)?),
                        golden: Some(shared.then(|| golden.row.id.clone())),
                        ..Change::default()
                    };
                    let (id, world) = (golden.row.id.clone(), world.clone());
                    self.world.tasks.spawn("golden use", |_| async move {
                        golden::used(&world, &id).await;
                    });
                    return Ok((change, "created from a golden snapshot".to_owned()));
                }
                Err(WakeError::Engine(bhatti_engine::EngineError::Unusable { why })) => {
                    tracing::error!(why, golden = %golden.row.id, "a golden snapshot is of no use");
                    let id = golden.row.id.clone();
                    drop(golden);
                    golden::forget(&world, &id).await;
                }
                Err(error) => return Err(error),
            }
        }
        let root = disk::first(&world, row, file, Vec::new()).await?;
        let machine = machine::boot(&world, row, subnet, root.clone(), &self.interrupt).await?;
        self.machine = Some(machine);
        let root_disk = Some(to_json("root disk", &root)?);
        Ok((Change { root_disk, ..Change::default() }, "created by booting".to_owned()))
    }

    /// Continues a named snapshot as another sandbox. Its files get names here, as generation 0:
    /// so the snapshot may be deleted, and the next freeze need not write what is in them.
    async fn from_snapshot(
        &mut self,
        row: &SandboxRow,
        from: &SnapshotRow,
    ) -> Result<(Change, String), WakeError> {
        let world = self.world.clone();
        let below = from.disk.as_ref().ok_or(WakeError::Gone).and_then(machine::disk_record)?;
        let image = below.base.clone().ok_or(WakeError::Gone)?;
        let sealed = disk::layers_of(&below);
        let root = disk::first(&world, row, image, sealed).await?;
        // The layers were linked as 0, 1, 2 and so on; generations are numbered after them.
        let number = u32::try_from(root.layers.len()).unwrap_or(u32::MAX);
        let (layout, id, source) =
            (world.layout.clone(), row.engine_id.clone(), world.layout.snapshot_memory(&from.id));
        let (snapshot, bytes) = blocking(move || {
            let into = layout.make_frozen(&id, number)?;
            let bytes = bhatti_storage::link_tree(&source, &into)?;
            Ok((into, bytes))
        })
        .await?;
        let base = base_dir(&world, from.golden.as_ref());
        let frozen = Frozen { snapshot, base, clone: true };
        let subnet = self.owner.subnet_index;
        let machine =
            machine::restore(&world, row, subnet, root.clone(), frozen, &self.interrupt).await?;
        self.machine = Some(machine);
        let sealed = top_of(&root);
        let generation = Generation {
            number,
            made_at: from.created_at,
            golden: from.golden.clone(),
            disk: to_json("root disk", &sealed)?,
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
        Ok((change, format!("resumed from snapshot {}", from.name)))
    }

    // --- waking ---

    async fn make_usable(&mut self, force: bool) -> Result<Lease, WakeError> {
        let phase = *self.phase.borrow();
        admit(phase, Op::Use)?;
        // From here on, so that nothing sleeps between the wake and the answer.
        let pin = self.pins.pin();
        let guest = match &mut self.machine {
            Some(machine) if phase == Phase::Warm => {
                let guest = machine.continue_now(&self.world).await?;
                self.phase.send_replace(Phase::Hot);
                self.owed = Some("used");
                guest
            }
            Some(machine) => machine.guest(&self.world).await?,
            None if phase == Phase::Cold => self.wake(force).await?,
            None => self.boot_again().await?,
        };
        Ok(Lease { guest, _pin: pin })
    }

    /// Records what everybody sees already.
    async fn pay(&mut self) {
        let Some(reason) = self.owed.take() else { return };
        let from = &[Phase::Warm, Phase::Hot];
        if let Err(error) = self.move_to(from, Phase::Hot, reason, Change::default()).await {
            // The record says warm: a daemon that starts now pauses it, and the next use wakes it.
            tracing::error!(error = crate::chain(&error), "failed to record a wake");
        }
    }

    /// Continues a cold sandbox from its newest generation, or from what it can.
    async fn wake(&mut self, force: bool) -> Result<Guest, WakeError> {
        let mut row = self.row().await?;
        let begun = Instant::now();
        let newest = row.generations.first().cloned().ok_or_else(|| {
            WakeError::Record("generations: there is none of a cold sandbox".to_owned())
        })?;
        row = disk::seal(&self.world, row, &newest).await?;
        let mut failed = Vec::new();
        let attempts = freeze::attempts(row.generations.len(), force);
        for (at, attempt) in attempts.iter().enumerate() {
            match self.attempt(&row, *attempt).await {
                Ok((mut machine, change)) => {
                    let reason = freeze::outcome(*attempt, &row.generations, &failed);
                    if !failed.is_empty() {
                        tracing::error!(reason, "a sandbox did not wake as it was");
                    }
                    let guest = machine.guest(&self.world).await;
                    let moved = self.move_to(&[Phase::Cold], Phase::Hot, &reason, change).await;
                    if let Err(error) = moved {
                        machine::end(&machine.vm).await;
                        return Err(error);
                    }
                    tracing::info!(millis = begun.elapsed().as_millis(), "woken from cold");
                    self.machine = Some(machine);
                    self.tidy().await;
                    return guest;
                }
                Err(error) if at + 1 < attempts.len() && freeze::goes_on(&error, force) => {
                    tracing::warn!(error = crate::chain(&error), ?attempt, "a wake failed");
                    failed.push(error.public());
                    self.clear_machine_dir(&row).await?;
                }
                Err(error) => {
                    return Err(match error {
                        WakeError::ShuttingDown => error,
                        cause => WakeError::NotAsItWas { name: row.name, cause: Box::new(cause) },
                    });
                }
            }
        }
        Err(WakeError::Record("generations: there is none of a cold sandbox".to_owned()))
    }

    /// Tries one way to wake. What is left of a failed one is in the machine's directory.
    async fn attempt(
        &self,
        row: &SandboxRow,
        attempt: Attempt,
    ) -> Result<(Machine, Change), WakeError> {
        let world = &self.world;
        let subnet = self.owner.subnet_index;
        let (Attempt::Resume(at) | Attempt::Boot(at)) = attempt;
        let generation =
            row.generations.get(at).ok_or_else(|| WakeError::Record("generations".to_owned()))?;
        let below = machine::disk_record(&generation.disk)?;
        let root = disk::new_top(world, row, &below).await?;
        let root_disk = Some(to_json("root disk", &root)?);
        match attempt {
            Attempt::Resume(_) => {
                let frozen = Frozen {
                    snapshot: world.layout.frozen(&row.engine_id, generation.number),
                    base: base_dir(world, generation.golden.as_ref()),
                    clone: false,
                };
                let machine =
                    machine::restore(world, row, subnet, root, frozen, &self.interrupt).await?;
                let change = Change {
                    root_disk,
                    vm: Some(Some(machine.to_json()?)),
                    golden: Some(generation.golden.clone()),
                    // It has been proven; the one before may go.
                    generations: Some(vec![generation.clone()]),
                    ..Change::default()
                };
                Ok((machine, change))
            }
            Attempt::Boot(_) => {
                let mut machine = machine::boot(world, row, subnet, root, &self.interrupt).await?;
                self.init(&mut machine, row).await;
                let change = Change {
                    root_disk,
                    vm: Some(Some(machine.to_json()?)),
                    golden: Some(None),
                    generations: Some(Vec::new()),
                    ..Change::default()
                };
                Ok((machine, change))
            }
        }
    }

    /// Boots from the disk that is there. If it does not work out there is no machine afterwards.
    async fn boot_again(&mut self) -> Result<Guest, WakeError> {
        let row = self.row().await?;
        let subnet = self.owner.subnet_index;
        let root = disk::current(&row)?;
        let mut machine = machine::boot(&self.world, &row, subnet, root, &self.interrupt).await?;
        self.init(&mut machine, &row).await;
        let guest = machine.guest(&self.world).await;
        let from = &[Phase::Hot, Phase::Warm, Phase::Stopped];
        let change = Change {
            vm: Some(Some(machine.to_json()?)),
            golden: Some(None),
            generations: Some(Vec::new()),
            ..Change::default()
        };
        let moved = self.move_to(from, Phase::Hot, "booted from its disk on use", change).await;
        if let Err(error) = moved {
            machine::end(&machine.vm).await;
            return Err(error);
        }
        self.machine = Some(machine);
        self.tidy().await;
        guest
    }

    /// The init script belongs to a boot, not to a sandbox. One that does not start any more must
    /// not lock its owner out of repairing it.
    async fn init(&self, machine: &mut Machine, row: &SandboxRow) {
        let init = async { start_init(&machine.guest(&self.world).await?, &row.init).await };
        if let Err(error) = init.await {
            tracing::warn!(error = crate::chain(&error), "the init script did not start");
        }
    }

    // --- falling asleep ---

    /// What the policy wants next.
    fn next(&self) -> Next {
        let phase = *self.phase.borrow();
        if self.machine.is_none() {
            return Next::Nothing;
        }
        let last = self.pins.last_use();
        let quiet = Quiet {
            phase,
            keep_hot: self.keep_hot,
            in_use: self.pins.count() > 0,
            since: last.elapsed(),
            baseline: self.asked.since == Some(last),
        };
        idle::next(self.world.settings.thermal, quiet)
    }

    async fn fall_asleep(&mut self) {
        match self.next() {
            Next::Nothing | Next::Look(_) => {}
            Next::Baseline => {
                let _nothing_decided = self.ask().await;
                self.asked.since = Some(self.pins.last_use());
            }
            Next::Decide => match self.ask().await {
                Answer::Idle(reason) => self.cool(&reason).await,
                Answer::Working(why) => {
                    tracing::debug!(why, "stays hot");
                    self.pins.touch();
                }
            },
            Next::Freeze => {
                if let Err(error) = self.freeze("nobody used it for the time set").await {
                    tracing::error!(error = crate::chain(&error), "failed to freeze; trying again");
                    self.pins.touch();
                }
            }
        }
    }

    /// Asks the guest what it does.
    async fn ask(&mut self) -> Answer {
        let Some(machine) = &mut self.machine else { return Answer::Idle(String::new()) };
        let quiet = self.pins.last_use().elapsed().as_secs();
        let report =
            async { Ok::<_, WakeError>(machine.guest(&self.world).await?.activity().await?) };
        match report.await {
            Ok(report) => {
                self.asked.silent = 0;
                match idle::work(&report) {
                    Some(work) => Answer::Working(work),
                    None => Answer::Idle(format!("idle for {quiet} s")),
                }
            }
            // An agent of before there was the question.
            Err(WakeError::Guest(GuestError::Unsupported(_))) => {
                Answer::Idle(format!("unused for {quiet} s"))
            }
            Err(error) => {
                self.asked.silent += 1;
                if self.asked.silent < PATIENCE {
                    return Answer::Working(format!("did not say: {}", error.public()));
                }
                self.asked.silent = 0;
                Answer::Idle(format!("unused for {quiet} s, and its agent does not answer"))
            }
        }
    }

    /// Pauses the machine, or freezes it where there is no warm state.
    async fn cool(&mut self, reason: &str) {
        let result = if self.world.settings.thermal.warm_after.is_none() {
            self.freeze(reason).await
        } else {
            self.pause(reason).await
        };
        if let Err(error) = result {
            tracing::error!(error = crate::chain(&error), "failed to put a sandbox to sleep");
            self.pins.touch();
        }
    }

    async fn pause(&mut self, reason: &str) -> Result<(), WakeError> {
        let Some(machine) = &self.machine else { return Ok(()) };
        machine.vm.pause().await.map_err(WakeError::Engine)?;
        let moved = self.move_to(&[Phase::Hot], Phase::Warm, reason, Change::default()).await;
        if moved.is_err() {
            self.let_go_on().await;
        }
        moved
    }

    async fn stop(&mut self, reason: &str) -> Result<(), WakeError> {
        admit(*self.phase.borrow(), Op::Stop)?;
        if self.machine.is_none() {
            return Ok(());
        }
        self.freeze(reason).await
    }

    /// Brings memory and disk to files and ends the machine. If that fails it goes on as before.
    async fn freeze(&mut self, reason: &str) -> Result<(), WakeError> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let begun = Instant::now();
        let was_hot = *self.phase.borrow() == Phase::Hot;
        if was_hot {
            // Only for the case that its memory is lost: a guest that cannot is frozen all the
            // same, and loses nothing.
            let quiesced = async {
                machine
                    .guest(&self.world)
                    .await?
                    .quiesce(freeze::QUIESCE)
                    .await
                    .map_err(WakeError::from)
            };
            if let Err(error) = quiesced.await {
                tracing::warn!(error = crate::chain(&error), "frozen without a sync");
            }
        }
        let vm = machine.vm.clone();
        let row = self.row().await?;
        let written = async {
            vm.pause().await.map_err(WakeError::Engine)?;
            freeze::write(&self.world, &row, &*vm).await
        };
        let generation = match written.await {
            Ok(generation) => generation,
            Err(error) => {
                if was_hot {
                    self.let_go_on().await;
                }
                return Err(error);
            }
        };
        let number = generation.number;
        let change = Change {
            generations: Some(freeze::with(generation.clone(), &row.generations)),
            // Its process is still there.
            vm: Some(row.vm.clone()),
            ..Change::default()
        };
        if let Err(error) =
            self.move_to(&[Phase::Hot, Phase::Warm], Phase::Cold, reason, change).await
        {
            freeze::discard(&self.world, &row, number).await;
            if was_hot {
                self.let_go_on().await;
            }
            return Err(error);
        }
        // From here on it is cold, whatever happens: the next wake, or the next start, finishes.
        self.machine = None;
        tracing::info!(
            millis = begun.elapsed().as_millis(),
            written = generation.written,
            bytes = generation.bytes,
            "frozen"
        );
        let finished = async {
            vm.kill().await.map_err(WakeError::Engine)?;
            disk::seal(&self.world, self.row().await?, &generation).await
        };
        match finished.await {
            Ok(row) => disk::tidy(&self.world, &row).await,
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "failed to clear up after a freeze");
            }
        }
        Ok(())
    }

    /// A machine that was to sleep and does not goes on, with the right time.
    async fn let_go_on(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        if let Err(error) = machine.continue_now(&self.world).await {
            tracing::error!(error = crate::chain(&error), "a paused machine does not go on");
        }
    }

    // --- snapshots ---

    /// Saves the sandbox as it is. One that runs stands still meanwhile; none is woken.
    async fn checkpoint(&mut self, into: Utf8PathBuf) -> Result<Checkpoint, WakeError> {
        let phase = *self.phase.borrow();
        admit(phase, Op::Checkpoint)?;
        let row = self.row().await?;
        let Some(machine) = &mut self.machine else {
            let newest = row.generations.first().cloned().ok_or(WakeError::NothingToSave)?;
            let row = disk::seal(&self.world, row, &newest).await?;
            let from = self.world.layout.frozen(&row.engine_id, newest.number);
            blocking(move || bhatti_storage::link_tree(&from, &into)).await?;
            let disk = machine::disk_record(&newest.disk)?;
            return Ok(Checkpoint { golden: newest.golden, disk });
        };
        let vm = machine.vm.clone();
        let begun = Instant::now();
        let saved = async {
            vm.pause().await.map_err(WakeError::Engine)?;
            let what = freeze::what(&self.world, &row);
            let save = Save { into, ..what };
            let saved: Saved = vm.save(save).await.map_err(WakeError::Engine)?;
            let id = row.id.clone();
            let number = self.world.db.call(move |store| store.next_serial(&id)).await?;
            let sealed = self.seal_running(&row, number).await?;
            Ok::<_, WakeError>((saved, sealed))
        };
        let saved = saved.await;
        let still = begun.elapsed();
        if phase == Phase::Hot {
            self.let_go_on().await;
        }
        let (saved, disk) = saved?;
        tracing::info!(millis = still.as_millis(), written = saved.written, "saved as a snapshot");
        Ok(Checkpoint { golden: row.golden, disk })
    }

    /// Seals the disk of the paused machine, which writes into a new top from then on. Returns
    /// the disk up to the sealed layer.
    async fn seal_running(&self, row: &SandboxRow, number: u32) -> Result<RootDisk, WakeError> {
        let Some(machine) = &self.machine else { return Err(WakeError::Gone) };
        let present = disk::current(row)?;
        let sealed = disk::sealed_as(&self.world, row, &present, number);
        let (layout, id) = (self.world.layout.clone(), row.engine_id.clone());
        blocking(move || layout.make_layers(&id)).await?;
        let next = machine.vm.seal_disk(&present, &sealed.file).await.map_err(WakeError::Engine)?;
        let (id, value) = (self.id.clone(), to_json("root disk", &next)?);
        self.world.db.call(move |store| store.set_root_disk(&id, &value)).await?;
        Ok(sealed)
    }

    // --- ending ---

    async fn power_off(&mut self) -> Result<(), WakeError> {
        let was_warm = *self.phase.borrow() == Phase::Warm;
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let ended = async {
            if was_warm {
                machine.continue_now(&self.world).await?;
            }
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
        let phase = *self.phase.borrow();
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
            }
            recorded => recorded?,
        }
        let vm = self.machine.take().map(|machine| machine.vm);
        let row = self.row().await?;
        machine::demolish(&self.world, &row, vm, &self.owner).await?;
        (self.on_gone)(&self.id);
        Ok(())
    }

    // --- the record ---

    async fn row(&self) -> Result<SandboxRow, WakeError> {
        let id = self.id.clone();
        Ok(self.world.db.call(move |store| store.sandbox(&id)).await?)
    }

    /// Records the move, then lets everybody see it.
    async fn move_to(
        &self,
        from: &'static [Phase],
        to: Phase,
        reason: &str,
        change: Change,
    ) -> Result<(), WakeError> {
        let (id, reason) = (self.id.clone(), reason.to_owned());
        tracing::info!(to = %to, reason, "changing phase");
        let moved =
            move |store: &mut bhatti_store::Store| store.set_phase(&id, from, to, &reason, &change);
        self.world.db.call(moved).await?;
        self.phase.send_replace(to);
        Ok(())
    }

    /// Removes files that nothing needs any more.
    async fn tidy(&self) {
        match self.row().await {
            Ok(row) => disk::tidy(&self.world, &row).await,
            Err(error) => tracing::warn!(error = crate::chain(&error), "failed to tidy up"),
        }
    }

    async fn clear_machine_dir(&self, row: &SandboxRow) -> Result<(), WakeError> {
        let (layout, id) = (self.world.layout.clone(), row.engine_id.clone());
        blocking(move || layout.clear_sandbox(&id)).await
    }
}

/// What a guest says of itself.
enum Answer {
    /// It does nothing; the sentence is the reason to put it to sleep.
    Idle(String),
    /// It works, and on what.
    Working(String),
}

/// The sealed part of a disk, as a disk.
fn top_of(disk: &RootDisk) -> RootDisk {
    let mut layers = disk.layers.clone();
    match layers.pop() {
        Some(file) => RootDisk { file, layers, ..disk.clone() },
        None => disk.clone(),
    }
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

/// Where the init script's output goes, in the guest.
const INIT_LOG: &str = "/var/log/lohar/init.log";

async fn start_init(guest: &Guest, script: &str) -> Result<(), WakeError> {
    if script.is_empty() {
        return Ok(());
    }
    let spec = ExecSpec {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        cwd: "/workspace".to_owned(),
        ..ExecSpec::default()
    };
    guest.exec_detached(spec, INIT_LOG).await?;
    Ok(())
}
