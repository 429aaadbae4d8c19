//! One running machine: a task that watches it, and the handle others hold.
//!
//! ```text
//!  QemuVm ──commands──▶ Watcher ◀── pidfd: the process ended
//!     ▲                    │    ◀── QMP: the guest powered off (the VMM waits, stopped)
//!     └──── exit, console ─┘          lost and found again: `control`
//! ```
//!
//! The watcher ([`crate::watcher`]) alone speaks QMP and alone declares the machine ended, after
//! its process has been collected and its traces removed: who sees [`Vm::exited`] resolve finds
//! nothing left. Dropping the handle stops the watching, not the machine.
//!
//! Pausing, resuming, saving, sealing and merging happen one at a time and to their end; a caller that
//! goes away loses the answer only.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{Carrier, EngineError, Exit, Private, RootDisk, Save, Saved, Vm, VmRecord};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cmdline::CONSOLE_BYTES;
use crate::control::Control;
use crate::disk::TopName;
use crate::qmp::Qmp;
use crate::watcher::{Command, Reply, Watched, Watcher};
use crate::{merging, saving, sealing};
use bhatti_vmm::cgroup::Group;
use bhatti_vmm::fingerprint::Host;
use bhatti_vmm::former::told_of_the_end;
use bhatti_vmm::link::{Link, close_both};
use bhatti_vmm::machine_dir::{CONSOLE_LOG, MachineDir};
use bhatti_vmm::memory::template::InUse;
use bhatti_vmm::process::Process;
use bhatti_vmm::vmm_log::VmmLog;

/// Where QEMU listens for the link.
pub(crate) const AGENT_SOCKET: &str = "agent.sock";
/// How long a kill waits for the watcher, which may be busy, before it goes past him.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The handle of a machine.
pub(crate) struct QemuVm {
    machine: Arc<Shared>,
    console: Arc<Mutex<Vec<u8>>>,
    watcher: JoinHandle<()>,
    /// The socket of the link given out last.
    link: tokio::sync::Mutex<Option<OwnedFd>>,
    killed: Arc<AtomicBool>,
    /// Held for as long as the machine lives.
    _template: Option<Arc<InUse>>,
}

/// What an operation holds on to that runs to its end whether or not anybody waits for it.
pub(crate) struct Shared {
    pub record: VmRecord,
    pub owner: Private,
    pub dir: Arc<MachineDir>,
    pub process: Arc<Process>,
    pub host: Arc<Host>,
    commands: mpsc::Sender<Command>,
    exit: watch::Receiver<Option<Exit>>,
    /// Who changes whether the machine stands, or depends on it, does it alone: a save that
    /// nobody waits for any more still keeps the machine from going on under it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// What a machine is made of once it runs.
pub(crate) struct Parts {
    pub record: VmRecord,
    pub owner: Private,
    pub dir: MachineDir,
    pub process: Process,
    pub group: Group,
    /// `None`: the VMM does not answer, for now or for ever. Its end is seen all the same, but
    /// not its guest's, and its console stays what was saved of it.
    pub qmp: Option<Qmp>,
    /// `None` if it cannot be had any more.
    pub log: Option<VmmLog>,
    pub host: Arc<Host>,
    pub template: Option<Arc<InUse>>,
}

impl QemuVm {
    /// Starts watching.
    pub(crate) fn watch(parts: Parts) -> Arc<Self> {
        let Parts { record, owner, dir, process, group, qmp, log, host, template } = parts;
        let (dir, process) = (Arc::new(dir), Arc::new(process));
        // A former daemon may have taken some of it out of the VMM already.
        let saved = dir.tail(CONSOLE_LOG, CONSOLE_BYTES).unwrap_or_default();
        let console = Arc::new(Mutex::new(saved));
        let killed = Arc::new(AtomicBool::new(false));
        let (commands, inbox) = mpsc::channel(8);
        let (exit_sender, exit) = watch::channel(None);
        let watcher = Watcher::new(Watched {
            process: Arc::clone(&process),
            control: Control::new(Arc::clone(&dir), owner, qmp),
            group,
            log,
            dir: Arc::clone(&dir),
            console: Arc::clone(&console),
            inbox,
            killed: Arc::clone(&killed),
        });
        let watcher = tokio::spawn(watcher.run(exit_sender));
        let link = tokio::sync::Mutex::new(None);
        let turn = Arc::default();
        let machine = Shared { record, owner, dir, process, host, commands, exit, turn };
        let machine = Arc::new(machine);
        Arc::new(Self { machine, console, watcher, link, killed, _template: template })
    }

    fn has_ended(&self) -> bool {
        self.machine.exit.borrow().is_some()
    }
}

impl Shared {
    /// Asks the watcher, and waits for his answer or the machine's end.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() {
            return Err(EngineError::Gone);
        }
        // Not the answer alone: a command sent just as the watcher leaves stays in the channel,
        // and with it the sender of the answer, for as long as we hold our end.
        let mut exit = self.exit.clone();
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or(Err(EngineError::Gone)),
            _ = exit.wait_for(Option::is_some) => Err(EngineError::Gone),
        }
    }

    /// Does something that must not be left half done, when it is its turn.
    async fn to_its_end<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(turn);
            result
        });
        match task.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(EngineError::Gone), // the runtime is going down
            },
        }
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        // Frees the control socket for whoever adopts the machine next.
        self.watcher.abort();
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn record(&self) -> VmRecord {
        self.machine.record.clone()
    }

    async fn open_link(&self) -> Result<Carrier, EngineError> {
        let mut current = self.link.lock().await;
        if self.has_ended() {
            return Err(EngineError::Gone);
        }
        // QEMU serves one connection and lets the next wait until that one is closed.
        if let Some(former) = current.take() {
            close_both(&former);
        }
        let connect = self.machine.dir.connect(AGENT_SOCKET, self.machine.owner);
        let stream = match timeout(CONNECT_DEADLINE, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) if self.has_ended() => return Err(EngineError::Gone),
            Ok(Err(source)) => {
                return Err(self.machine.dir.error("connect to", AGENT_SOCKET, source));
            }
            Err(_) => {
                let seconds = CONNECT_DEADLINE.as_secs();
                return Err(EngineError::Timeout { action: "accept a link", seconds });
            }
        };
        let handle = stream.as_fd().try_clone_to_owned();
        *current = Some(handle.map_err(|e| self.machine.dir.error("hold", AGENT_SOCKET, e))?);
        Ok(Carrier::Single(Box::new(Link(stream))))
    }

    async fn pause(&self) -> Result<(), EngineError> {
        let machine = Arc::clone(&self.machine);
        self.machine.to_its_end(async move { machine.ask(Command::Pause).await }).await
    }

    async fn resume(&self) -> Result<(), EngineError> {
        let machine = Arc::clone(&self.machine);
        self.machine.to_its_end(async move { machine.ask(Command::Resume).await }).await
    }

    async fn save(&self, save: Save) -> Result<Saved, EngineError> {
        self.machine.to_its_end(saving::save(Arc::clone(&self.machine), save)).await
    }

    async fn seal_disk(&self, disk: &RootDisk, sealed: &Utf8Path) -> Result<RootDisk, EngineError> {
        let (machine, disk, sealed) = (Arc::clone(&self.machine), disk.clone(), sealed.to_owned());
        self.machine.to_its_end(sealing::seal(machine, disk, sealed)).await
    }

    async fn merge_disk(&self, disk: &RootDisk, keep: usize) -> Result<RootDisk, EngineError> {
        let (machine, disk) = (Arc::clone(&self.machine), disk.clone());
        self.machine.to_its_end(merging::merge(machine, disk, keep)).await
    }

    async fn disk_top(&self) -> Result<Utf8PathBuf, EngineError> {
        let node = self.machine.ask(Command::Disk).await?.node;
        let file = self.machine.dir.path().join(format!("{node}.qcow2"));
        // A layer is called like its node; anything else is none of ours.
        if TopName::of(&file).is_some_and(|name| name.node() == node) {
            return Ok(file);
        }
        let message = format!("the machine's disk is {node:?}, which is no layer of ours");
        Err(EngineError::Control { command: "look at the disk".to_owned(), message })
    }

    async fn kill(&self) -> Result<(), EngineError> {
        // A closed channel means that the watcher is done, and so is the machine.
        let mut exit = self.machine.exit.clone();
        let asked = async {
            drop(self.machine.commands.send(Command::Kill).await);
            exit.wait_for(Option::is_some).await.map(drop)
        };
        if timeout(KILL_PATIENCE, asked).await.is_err() {
            self.killed.store(true, Ordering::Release);
            self.machine.process.kill();
        }
        told_of_the_end(self.machine.exit.clone()).await
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.machine.exit.clone();
        let seen = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
        seen.ok().flatten().unwrap_or_else(|| Exit::Died {
            detail: "nobody watches this machine any more".to_owned(),
        })
    }

    async fn console(&self) -> Vec<u8> {
        refresh_console(&self.machine.commands, self.machine.exit.clone()).await;
        self.console.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns when the shared console is as new as it can be.
async fn refresh_console(
    commands: &mpsc::Sender<Command>,
    mut exit: watch::Receiver<Option<Exit>>,
) {
    let (reply, done) = oneshot::channel();
    if commands.send(Command::Console(reply)).await.is_err() {
        return; // it has ended, and its last words are in the buffer
    }
    // Not the answer alone: a command sent just as the watcher leaves stays in the channel, and
    // with it the sender of the answer, for as long as we hold our end.
    tokio::select! {
        _ = done => {}
        _ = exit.wait_for(Option::is_some) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_console_asked_for_at_the_last_moment_does_not_wait_for_ever() {
        // A command that nobody will take out of the channel any more.
        let (commands, _abandoned) = mpsc::channel(8);
        let (_sender, exit) = watch::channel(Some(Exit::Guest));
        let refresh = refresh_console(&commands, exit);
        timeout(Duration::from_secs(10), refresh).await.expect("the end is an answer too");
    }
}
