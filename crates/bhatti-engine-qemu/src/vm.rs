//! One running machine: a task that watches it, and the handle others hold.
//!
//! ```text
//!  QemuVm ──commands──▶ Watcher ◀── pidfd: the process ended
//!     ▲                    │    ◀── QMP: the guest powered off (the VMM waits, stopped)
//!     └──── exit, console ─┘          lost and found again: `control`
//! ```
//!
//! The watcher alone speaks QMP and alone declares the machine ended, after its process has been
//! collected and its traces removed: who sees [`Vm::exited`] resolve finds nothing left. Dropping
//! the handle stops the watching, not the machine.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{Carrier, EngineError, Exit, Private, RootDisk, Save, Saved, Vm, VmRecord};
use camino::Utf8Path;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::cgroup::Group;
use crate::cmdline::CONSOLE_BYTES;
use crate::control::Control;
use crate::machine_dir::{AGENT_SOCKET, CONSOLE_LOG, MachineDir};
use crate::process::{Process, Status};
use crate::qmp::{Event, Qmp};
use crate::vmm_log::VmmLog;

/// How long a kill waits for the console before it does without.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// How long the VMM may take to close its disk after the guest has ended.
const QUIT_DEADLINE: Duration = Duration::from_secs(5);
/// Between two tries of a write that found the host's disk full.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(2);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The handle of a machine.
pub(crate) struct QemuVm {
    record: VmRecord,
    owner: Private,
    dir: Arc<MachineDir>,
    console: Arc<Mutex<Vec<u8>>>,
    commands: mpsc::Sender<Command>,
    exit: watch::Receiver<Option<Exit>>,
    watcher: JoinHandle<()>,
    /// The socket of the link given out last.
    link: tokio::sync::Mutex<Option<OwnedFd>>,
}

enum Command {
    Kill,
    /// Fetch what the guest has printed; answered when it is in the shared buffer.
    Console(oneshot::Sender<()>),
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
}

impl QemuVm {
    /// Starts watching.
    pub(crate) fn watch(parts: Parts) -> Arc<Self> {
        let Parts { record, owner, dir, process, group, qmp, log } = parts;
        let dir = Arc::new(dir);
        // A former daemon may have taken some of it out of the VMM already.
        let saved = dir.tail(CONSOLE_LOG, CONSOLE_BYTES).unwrap_or_default();
        let console = Arc::new(Mutex::new(saved));
        let (commands, inbox) = mpsc::channel(8);
        let (exit_sender, exit) = watch::channel(None);
        let watcher = Watcher {
            process,
            control: Control::new(Arc::clone(&dir), owner, qmp),
            group,
            log,
            dir: Arc::clone(&dir),
            console: Arc::clone(&console),
            inbox,
            ending: Ending::Unexpected,
            go_on_at: None,
        };
        let watcher = tokio::spawn(watcher.run(exit_sender));
        let link = tokio::sync::Mutex::new(None);
        Arc::new(Self { record, owner, dir, console, commands, exit, watcher, link })
    }

    fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
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
        self.record.clone()
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
        let connect = self.dir.connect(AGENT_SOCKET, self.owner);
        let stream = match timeout(CONNECT_DEADLINE, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) if self.has_ended() => return Err(EngineError::Gone),
            Ok(Err(source)) => return Err(self.dir.error("connect to", AGENT_SOCKET, source)),
            Err(_) => {
                let seconds = CONNECT_DEADLINE.as_secs();
                return Err(EngineError::Timeout { action: "accept a link", seconds });
            }
        };
        let handle = stream.as_fd().try_clone_to_owned();
        *current = Some(handle.map_err(|e| self.dir.error("hold", AGENT_SOCKET, e))?);
        Ok(Carrier::Single(Box::new(Link(stream))))
    }

    async fn pause(&self) -> Result<(), EngineError> {
        Err(not_built("pause"))
    }

    async fn resume(&self) -> Result<(), EngineError> {
        Err(not_built("resume"))
    }

    async fn save(&self, _save: Save) -> Result<Saved, EngineError> {
        Err(not_built("save"))
    }

    async fn seal_disk(
        &self,
        _disk: &RootDisk,
        _sealed: &Utf8Path,
    ) -> Result<RootDisk, EngineError> {
        Err(not_built("seal_disk"))
    }

    async fn kill(&self) -> Result<(), EngineError> {
        // A closed channel means that the watcher is done, and so is the machine.
        drop(self.commands.send(Command::Kill).await);
        match self.exit.clone().wait_for(Option::is_some).await {
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::Control {
                command: "kill".to_owned(),
                message: "nobody watches this machine any more".to_owned(),
            }),
        }
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let seen = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
        seen.ok().flatten().unwrap_or_else(|| Exit::Died {
            detail: "nobody watches this machine any more".to_owned(),
        })
    }

    async fn console(&self) -> Vec<u8> {
        refresh_console(&self.commands, self.exit.clone()).await;
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

fn not_built(command: &str) -> EngineError {
    let message = "not built yet".to_owned();
    EngineError::Control { command: command.to_owned(), message }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Why the process will end, if it does now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Unexpected,
    /// The guest powered off, rebooted or panicked.
    Guest,
    /// We were asked to.
    Killed,
}

struct Watcher {
    process: Process,
    control: Control,
    group: Group,
    log: Option<VmmLog>,
    dir: Arc<MachineDir>,
    console: Arc<Mutex<Vec<u8>>>,
    inbox: mpsc::Receiver<Command>,
    ending: Ending,
    /// When a machine that stands because the host's disk is full is to try again.
    go_on_at: Option<Instant>,
}

enum Happened {
    Ended(std::io::Result<Status>),
    Event(Event),
    Asked(Option<Command>),
    TimeToGoOn,
}

impl Watcher {
    async fn run(mut self, exit: watch::Sender<Option<Exit>>) {
        self.catch_up().await;
        let status = loop {
            let happened = tokio::select! {
                biased;
                status = self.process.ended() => Happened::Ended(status),
                event = self.control.event() => Happened::Event(event),
                command = self.inbox.recv() => Happened::Asked(command),
                () = at(self.go_on_at) => Happened::TimeToGoOn,
            };
            match happened {
                Happened::Ended(Ok(status)) => break status,
                Happened::Ended(Err(error)) => {
                    tracing::error!(%error, dir = %self.dir.path(), "cannot collect a VMM");
                    break Status::Unknown;
                }
                Happened::Event(event) => self.react(event).await,
                Happened::TimeToGoOn => self.go_on().await,
                Happened::Asked(Some(Command::Kill)) => self.kill().await,
                Happened::Asked(Some(Command::Console(reply))) => {
                    self.take_console().await;
                    // The asker may have gone.
                    reply.send(()).ok();
                }
                // The handle is gone; it aborts this task, unless it comes to this first.
                Happened::Asked(None) => return,
            }
        };
        let detail = self.finish(status).await;
        exit.send_replace(Some(match self.ending {
            Ending::Guest => Exit::Guest,
            Ending::Killed => Exit::Killed,
            Ending::Unexpected => Exit::Died { detail },
        }));
    }

    /// The guest may have ended while nobody watched: then there is no event to come.
    async fn catch_up(&mut self) {
        let Some(qmp) = self.control.qmp() else { return };
        match qmp.missed().await {
            Ok(Some(event)) => self.react(event).await,
            Ok(None) => {}
            Err(error) => self.control.lose(&error),
        }
    }

    async fn react(&mut self, event: Event) {
        match event {
            Event::GuestEnded => self.dismiss().await,
            Event::DiskFull => {
                if self.go_on_at.is_none() {
                    tracing::error!(
                        dir = %self.dir.path(),
                        "the host's disk is full: a machine stands still until there is room"
                    );
                }
                self.go_on_at = Some(Instant::now() + DISK_FULL_PAUSE);
            }
            Event::Other => {}
        }
    }

    /// Tries the write again that found no room. If there is none still, the next event says so.
    async fn go_on(&mut self) {
        self.go_on_at = None;
        let Some(qmp) = self.control.qmp() else { return };
        if let Err(error) = qmp.go_on().await {
            self.control.lose(&error);
        }
    }

    /// The guest has ended and QEMU holds still: take what is left of it, then let it go.
    async fn dismiss(&mut self) {
        if self.ending == Ending::Unexpected {
            self.ending = Ending::Guest;
        }
        self.take_console().await;
        if let Some(qmp) = self.control.qmp() {
            // Not a kill: QEMU closes the disk in order first. It may hang up before it answers.
            drop(timeout(QUIT_DEADLINE, qmp.quit()).await);
        }
        self.control.close();
        if timeout(QUIT_DEADLINE, self.process.wait_readable()).await.is_err() {
            tracing::warn!(dir = %self.dir.path(), "the VMM did not quit, ending it");
            self.process.kill();
        }
    }

    async fn kill(&mut self) {
        if self.ending == Ending::Unexpected {
            self.ending = Ending::Killed;
        }
        drop(timeout(LAST_WORDS, self.take_console()).await);
        self.process.kill();
    }

    /// Moves what the guest has printed from QEMU into the buffer and the file beside it.
    async fn take_console(&mut self) {
        let Some(qmp) = self.control.qmp() else { return };
        match qmp.take_console().await {
            Ok(new) if new.is_empty() => {}
            Ok(new) => {
                let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
                console.extend_from_slice(&new);
                let surplus = console.len().saturating_sub(CONSOLE_BYTES);
                console.drain(..surplus);
                if let Err(error) = self.dir.write(CONSOLE_LOG, &console) {
                    tracing::warn!(%error, dir = %self.dir.path(), "cannot save a console");
                }
            }
            Err(error) => self.control.lose(&error),
        }
    }

    /// Removes the traces of the ended process; returns a sentence about its end.
    async fn finish(&mut self, status: Status) -> String {
        let mut detail = status.describe();
        if self.group.ran_out_of_memory() {
            detail.push_str("; the kernel says it ran out of its memory limit");
        }
        if let (Ending::Unexpected, Some(log)) = (self.ending, &self.log) {
            detail.push_str("; its log ends: ");
            detail.push_str(&log.tail());
        }
        let group = self.group.clone();
        match tokio::task::spawn_blocking(move || group.clear()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, dir = %self.dir.path(), "cannot remove a control group");
            }
            // Only when the runtime is going down; the next start sweeps.
            Err(error) => tracing::debug!(%error, "control group left for the next start"),
        }
        self.dir.remove_sockets();
        detail
    }
}

/// The host's end of the link. Closing it is closing for everybody: the copy of the descriptor
/// that lets the next [`Vm::open_link`] close it must not keep it open.
struct Link(UnixStream);

impl Drop for Link {
    fn drop(&mut self) {
        close_both(&self.0);
    }
}

fn close_both(socket: &impl AsRawFd) {
    // ENOTCONN: the other side was first.
    nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both).ok();
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
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
