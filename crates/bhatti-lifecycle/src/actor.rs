//! One sandbox's owner. Everything that changes it goes through here, one thing at a time.

use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::Exit;
use bhatti_guest_client::{ExecSpec, Guest};
use bhatti_store::{SandboxRow, StoreError, UserRow};
use bhatti_types::{Phase, SandboxId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::guest::describe;
use crate::machine::{self, Machine, World};
use crate::spec::FileContent;
use crate::{Op, WakeError, admit};

/// A guest that is ready, for as long as this value lives.
///
/// Taking one wakes the sandbox. Sleep will look at how many are out before it pauses anything.
#[derive(Clone)]
pub struct Lease {
    guest: Guest,
}

impl Lease {
    /// The guest; it answers.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }
}

/// What can be asked of the actor.
pub(crate) enum Command {
    Use { reply: oneshot::Sender<Result<Lease, WakeError>> },
    PowerOff { reply: oneshot::Sender<Result<(), WakeError>> },
    Destroy { reply: oneshot::Sender<Result<(), WakeError>> },
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

    /// Ends the machine as its own `poweroff` would. Safe to drop: the actor finishes.
    pub(crate) async fn power_off(&self) -> Result<(), WakeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::PowerOff { reply }, answer).await.unwrap_or(Ok(()))
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
    Create { files: Vec<FileContent>, reply: oneshot::Sender<Result<(), WakeError>> },
    /// It was there before this daemon, perhaps with a machine.
    Found { machine: Option<Machine> },
}

pub(crate) struct Actor {
    world: Arc<World>,
    id: SandboxId,
    owner: UserRow,
    phase: watch::Sender<Phase>,
    commands: mpsc::Receiver<Command>,
    machine: Option<Machine>,
    interrupt: CancellationToken,
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
        on_gone,
    };
    let span = tracing::info_span!("sandbox", id = %row.id, name = %row.name);
    world.tasks.spawn("sandbox", |stop| actor.run(row, start, stop).instrument(span));
    Handle { commands, phase: watching, interrupt }
}

impl Actor {
    async fn run(mut self, row: SandboxRow, start: Start, stop: CancellationToken) {
        match start {
            Start::Found { machine } => self.machine = machine,
            Start::Create { files, reply } => {
                let result = self.create(row, files).await;
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
            tokio::select! {
                biased; // order is priority: shutdown, then the machine, then clients
                () = stop.cancelled() => return, // the machine runs on; the next daemon adopts it
                exit = ended(self.machine.as_ref()) => self.machine_ended(&exit).await,
                command = self.commands.recv() => match command {
                    None => return,
                    // Whoever asked has hung up: nobody needs the machine.
                    Some(Command::Use { reply }) if reply.is_closed() => {}
                    Some(Command::Use { reply }) => drop(reply.send(self.make_usable().await)),
                    Some(Command::PowerOff { reply }) => drop(reply.send(self.power_off().await)),
                    Some(Command::Destroy { reply }) => {
                        let result = self.destroy().await;
                        let gone = result.is_ok();
                        drop(reply.send(result));
                        if gone {
                            return;
                        }
                    }
                },
            }
        }
    }

    async fn machine_ended(&mut self, exit: &Exit) {
        let reason = describe(exit);
        tracing::warn!(how = reason, "machine ended");
        self.machine = None;
        if let Err(error) = self.move_to(&[Phase::Hot], Phase::Stopped, &reason).await {
            // The phase stays `hot` without a machine; the next use boots one all the same.
            tracing::error!(error = crate::chain(&error), "failed to record that a machine ended");
        }
    }

    async fn create(&mut self, row: SandboxRow, files: Vec<FileContent>) -> Result<(), WakeError> {
        let Err(error) = self.bring_up(&row, files).await else { return Ok(()) };
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
        row: &SandboxRow,
        files: Vec<FileContent>,
    ) -> Result<(), WakeError> {
        let subnet = self.owner.subnet_index;
        let machine = machine::boot(&self.world, row, subnet, &self.interrupt).await?;
        let machine = self.machine.insert(machine);
        let furnish = async {
            let guest = machine.guest(&self.world).await?;
            for file in files {
                guest.write_file(&file.path, file.mode, file.content).await?;
            }
            start_init(&guest, &row.init).await
        };
        tokio::select! {
            biased;
            () = self.interrupt.cancelled() => return Err(WakeError::ShuttingDown),
            furnished = furnish => furnished?,
        }
        self.move_to(&[Phase::Creating], Phase::Hot, "created").await
    }

    async fn make_usable(&mut self) -> Result<Lease, WakeError> {
        let phase = *self.phase.borrow();
        admit(phase, Op::Use)?;
        if self.machine.is_none() {
            self.boot_again().await?;
        }
        match &mut self.machine {
            Some(machine) => Ok(Lease { guest: machine.guest(&self.world).await? }),
            None => Err(WakeError::Gone),
        }
    }

    /// Boots from the disk that is there. If it does not work out there is no machine afterwards.
    async fn boot_again(&mut self) -> Result<(), WakeError> {
        let row = self.row().await?;
        let subnet = self.owner.subnet_index;
        let mut machine = machine::boot(&self.world, &row, subnet, &self.interrupt).await?;
        // The init script belongs to a boot, not to a sandbox. One that does not start any more
        // must not lock its owner out of repairing it.
        let init = async { start_init(&machine.guest(&self.world).await?, &row.init).await };
        if let Err(error) = init.await {
            tracing::warn!(error = crate::chain(&error), "the init script did not start");
        }
        let from = &[Phase::Hot, Phase::Stopped];
        if let Err(error) = self.move_to(from, Phase::Hot, "booted from its disk on use").await {
            if let Err(kill) = machine.vm.kill().await {
                tracing::error!(error = crate::chain(&kill), "failed to end an unrecorded machine");
            }
            return Err(error);
        }
        self.machine = Some(machine);
        Ok(())
    }

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
        let phase = *self.phase.borrow();
        admit(phase, Op::Destroy)?;
        // Recorded first: if we die half-way, the next start finishes the job.
        let from = &[Phase::Hot, Phase::Stopped, Phase::Unknown, Phase::Destroying];
        match self.move_to(from, Phase::Destroying, "destroy requested").await {
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
    ) -> Result<(), WakeError> {
        let (id, reason) = (self.id.clone(), reason.to_owned());
        tracing::info!(to = %to, reason, "changing phase");
        self.world
            .db
            .call(move |store| {
                store.set_phase(&id, from, to, &reason, &bhatti_store::Change::default())
            })
            .await?;
        self.phase.send_replace(to);
        Ok(())
    }
}

/// Resolves when the machine ends; never, without one.
async fn ended(machine: Option<&Machine>) -> Exit {
    match machine {
        Some(machine) => machine.vm.exited().await,
        None => std::future::pending().await,
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
