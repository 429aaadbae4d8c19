//! One sandbox's owner. Everything that changes it goes through here, one thing at a time.

use std::sync::Arc;

use bhatti_guest_client::{ExecSpec, Guest};
use bhatti_store::{SandboxRow, UserRow};
use bhatti_types::{Phase, SandboxId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::guest::describe;
use crate::machine::{self, Machine, World};
use crate::spec::FileContent;
use crate::{Op, Verdict, WakeError, admit};

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
    Destroy { reply: oneshot::Sender<Result<(), WakeError>> },
}

/// What everybody else holds of a sandbox. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    phase: watch::Receiver<Phase>,
}

/// How many requests may wait for one sandbox before callers wait to ask.
const QUEUE: usize = 64;

impl Handle {
    /// A guest that answers. Safe to drop at any point: the actor finishes, the answer is lost.
    pub(crate) async fn lease(&self) -> Result<Lease, WakeError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Use { reply }, answer).await.unwrap_or(Err(WakeError::Gone))
    }

    /// Removes the sandbox. Safe to drop: the actor finishes.
    pub(crate) async fn destroy(&self) -> Result<(), WakeError> {
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
    let actor = Actor {
        world: world.clone(),
        id: row.id.clone(),
        owner,
        phase,
        commands: queue,
        machine: None,
        on_gone,
    };
    let span = tracing::info_span!("sandbox", id = %row.id, name = %row.name);
    world.tasks.spawn("sandbox", |stop| actor.run(row, start, stop).instrument(span));
    Handle { commands, phase: watching }
}

impl Actor {
    async fn run(mut self, row: SandboxRow, start: Start, stop: CancellationToken) {
        match start {
            Start::Found { machine } => self.machine = machine,
            Start::Create { files, reply } => {
                let result = self.create(row, files, &stop).await;
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
                exit = ended(self.machine.as_ref()) => {
                    tracing::warn!(how = describe(&exit), "machine ended");
                    self.machine = None;
                    let reason = describe(&exit);
                    if let Err(error) = self.move_to(&[Phase::Hot], Phase::Stopped, &reason).await {
                        tracing::error!(error = crate::chain(&error), "failed to record that a machine ended");
                    }
                }
                command = self.commands.recv() => match command {
                    None => return,
                    Some(Command::Use { reply }) => {
                        let result = tokio::select! {
                            biased;
                            () = stop.cancelled() => Err(WakeError::ShuttingDown),
                            result = self.make_usable() => result,
                        };
                        drop(reply.send(result));
                    }
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

    async fn create(
        &mut self,
        row: SandboxRow,
        files: Vec<FileContent>,
        stop: &CancellationToken,
    ) -> Result<(), WakeError> {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => Err(WakeError::ShuttingDown),
            result = self.bring_up(&row, files) => result,
        };
        let Err(error) = result else { return Ok(()) };
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
        let machine = machine::boot(&self.world, row, self.owner.subnet_index).await?;
        let machine = self.machine.insert(machine);
        let guest = machine.guest(&self.world).await?;
        for file in files {
            guest.write_file(&file.path, file.mode, file.content).await?;
        }
        if !row.init.is_empty() {
            start_init(&guest, &row.init).await?;
        }
        self.move_to(&[Phase::Creating], Phase::Hot, "created").await
    }

    async fn make_usable(&mut self) -> Result<Lease, WakeError> {
        let phase = *self.phase.borrow();
        if admit(phase, Op::Use)? == Verdict::Do {
            let row = self.row().await?;
            self.machine = None;
            let machine = machine::boot(&self.world, &row, self.owner.subnet_index).await?;
            let machine = self.machine.insert(machine);
            if !row.init.is_empty() {
                // The init script belongs to a boot, not to a sandbox.
                let guest = machine.guest(&self.world).await?;
                start_init(&guest, &row.init).await?;
            }
            self.move_to(&[Phase::Stopped], Phase::Hot, "booted from its disk on use").await?;
        }
        match &mut self.machine {
            Some(machine) => Ok(Lease { guest: machine.guest(&self.world).await? }),
            None => Err(WakeError::Gone),
        }
    }

    async fn destroy(&mut self) -> Result<(), WakeError> {
        let phase = *self.phase.borrow();
        admit(phase, Op::Destroy)?;
        // Recorded first: if we die half-way, the next start finishes the job.
        self.move_to(
            &[Phase::Hot, Phase::Stopped, Phase::Unknown, Phase::Destroying],
            Phase::Destroying,
            "destroy requested",
        )
        .await?;
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
        self.world.db.call(move |store| store.set_phase(&id, from, to, &reason)).await?;
        self.phase.send_replace(to);
        Ok(())
    }
}

/// Resolves when the machine ends; never, without one.
async fn ended(machine: Option<&Machine>) -> bhatti_engine::Exit {
    match machine {
        Some(machine) => machine.vm.exited().await,
        None => std::future::pending().await,
    }
}

/// Where the init script's output goes, in the guest.
const INIT_LOG: &str = "/var/log/lohar/init.log";

async fn start_init(guest: &Guest, script: &str) -> Result<(), WakeError> {
    let spec = ExecSpec {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        cwd: "/workspace".to_owned(),
        ..ExecSpec::default()
    };
    guest.exec_detached(spec, INIT_LOG).await?;
    Ok(())
}
