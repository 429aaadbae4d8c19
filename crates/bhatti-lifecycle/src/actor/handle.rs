//! What everybody else holds of a sandbox, and what can be asked of its actor through it.

use std::sync::Arc;

use bhatti_engine::{RootDisk, Vm};
use bhatti_guest_client::Guest;
use bhatti_store::SnapshotRow;
use bhatti_types::{GoldenId, Phase};
use camino::Utf8PathBuf;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::WakeError;
use crate::dial::Dialer;
use crate::golden::Hold;
use crate::machine::Machine;
use crate::pin::{Pin, Pins};
use crate::spec::FileContent;

/// A guest that is ready, and kept awake for as long as this value lives.
///
/// Taking one wakes the sandbox; while there is one, nothing pauses it. Whoever works on a
/// guest's behalf for a while (a command that runs, a file on its way) holds one all that time.
#[derive(Clone)]
pub struct Lease {
    pub(super) dialer: Dialer,
    pub(super) _pin: Pin,
}

impl Lease {
    /// The guest; it answers.
    pub fn guest(&self) -> &Guest {
        self.dialer.guest()
    }

    /// The way to its programs. It keeps nothing awake.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, WakeError>>;

/// What can be asked of the actor.
pub(crate) enum Command {
    Use {
        reply: Reply<Lease>,
    },
    /// Neither wakes it nor keeps it awake.
    Peek {
        reply: Reply<Option<Guest>>,
    },
    /// Neither wakes it nor keeps it awake.
    Machine {
        reply: Reply<Option<Arc<dyn Vm>>>,
    },
    /// `force`: lose what must be lost, rather than not start.
    Start {
        force: bool,
        why: &'static str,
        reply: Reply<()>,
    },
    /// `reason` is the sentence of the record, `why` the word of the event.
    Stop {
        reason: &'static str,
        why: &'static str,
        reply: Reply<()>,
    },
    /// Saves the machine as it is.
    Checkpoint {
        into: CheckpointDirs,
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

/// Where a named snapshot goes; both are empty.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointDirs {
    pub(crate) memory: Utf8PathBuf,
    pub(crate) disk: Utf8PathBuf,
}

/// What a named snapshot is made of. Nothing of it needs the sandbox any more.
pub(crate) struct Checkpoint {
    /// Whose memory it stands on, which stays at least as long as this value.
    pub(crate) golden: Option<(GoldenId, Hold)>,
    /// Its disk, in the directory that was given.
    pub(crate) disk: RootDisk,
}

/// The phase of a sandbox with all that belongs to it, of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) phase: Phase,
    /// Why it came to that, one sentence.
    pub(crate) reason: String,
    pub(crate) since: Timestamp,
}

/// What everybody else holds of a sandbox. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) pins: Pins,
    /// Ends a boot under way: somebody wants the sandbox gone, or the daemon stops.
    pub(super) interrupt: CancellationToken,
    /// The daemon stops, and its actors with it.
    pub(super) stopping: CancellationToken,
}

/// How many requests may wait for one sandbox before callers wait to ask.
pub(super) const QUEUE: usize = 64;

impl Handle {
    /// A guest that answers. Safe to drop at any point: the actor finishes, the answer is lost.
    pub(crate) async fn lease(&self) -> Result<Lease, WakeError> {
        if let Some((dialer, _pin)) = self.pins.enter() {
            return Ok(Lease { dialer, _pin });
        }
        self.ask(|reply| Command::Use { reply }).await
    }

    /// The guest, if it is up. It may be put to sleep at any moment, and then does not answer.
    pub(crate) async fn peek(&self) -> Result<Option<Guest>, WakeError> {
        self.ask(|reply| Command::Peek { reply }).await
    }

    /// The machine, if there is one, hot or warm. It may end at any moment.
    pub(crate) async fn machine(&self) -> Result<Option<Arc<dyn Vm>>, WakeError> {
        self.ask(|reply| Command::Machine { reply }).await
    }

    /// Makes it hot. Safe to drop: the actor finishes.
    pub(crate) async fn start(&self, force: bool, why: &'static str) -> Result<(), WakeError> {
        self.ask(|reply| Command::Start { force, why, reply }).await
    }

    /// Freezes it, whoever uses it. Safe to drop: the actor finishes.
    pub(crate) async fn stop(
        &self,
        reason: &'static str,
        why: &'static str,
    ) -> Result<(), WakeError> {
        self.ask(|reply| Command::Stop { reason, why, reply }).await
    }

    /// Saves it, without waking it.
    pub(crate) async fn checkpoint(&self, into: CheckpointDirs) -> Result<Checkpoint, WakeError> {
        self.ask(|reply| Command::Checkpoint { into, reply }).await
    }

    /// Ends the machine as its own `poweroff` would. Safe to drop: the actor finishes.
    pub(crate) async fn power_off(&self) -> Result<(), WakeError> {
        self.ask(|reply| Command::PowerOff { reply }).await
    }

    /// Tells it that the record says so.
    pub(crate) async fn keep_hot(&self, keep: bool) {
        // An actor that is gone needs to know nothing.
        drop(self.commands.send(Command::KeepHot(keep)).await);
    }

    /// Removes the sandbox. Safe to drop: the actor finishes.
    pub(crate) async fn destroy(&self) -> Result<(), WakeError> {
        self.interrupt.cancel();
        match self.ask(|reply| Command::Destroy { reply }).await {
            // Somebody else's destroy was first.
            Err(WakeError::Gone) => Ok(()),
            answer => answer,
        }
    }

    /// [`WakeError::Gone`]: the actor ended before it answered, because there is no sandbox any
    /// more. A command that is sent in the moment the actor ends stays in the queue unread, so
    /// waiting for the answer alone could be for ever.
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, WakeError> {
        let (reply, mut answer) = oneshot::channel();
        let gone = || {
            if self.stopping.is_cancelled() { WakeError::ShuttingDown } else { WakeError::Gone }
        };
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        let answered = tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            () = self.commands.closed() => answer.try_recv().ok(),
        };
        answered.unwrap_or_else(|| Err(gone()))
    }

    /// How it stands, which the record may learn a moment later.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Waits until creation has come to an end, whichever.
    pub(crate) async fn created(&self) {
        let mut standing = self.standing.clone();
        // An error means the actor is gone, which is an end too.
        drop(standing.wait_for(|standing| standing.phase != Phase::Creating).await);
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
