//! The only code in the agent that waits for children.
//!
//! PID 1 inherits every orphan, so somebody must wait for "any child"; and whoever does that
//! takes the exit status of every child, also of those another part of the program would like to
//! wait for. Hence one waiter, and claims handed out at the moment of the spawn.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// As a shell reports it: the code, or 128 + the signal's number.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => 128 + number,
        }
    }
}

/// Whether children were left after a round of collecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    Some,
    None,
}

/// Spawns, collects, and tells each spawner how its child ended.
#[derive(Debug, Default)]
pub struct Reaper {
    claims: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
}

impl Reaper {
    /// Spawns `command`. The claim is registered under the same lock [`Reaper::reap`] takes, so
    /// a child that dies at once is not mistaken for an orphan, and so is a child whose exec
    /// failed: the standard library waits for that one itself, before this returns.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(i32, oneshot::Receiver<Exit>)> {
        let mut claims = self.claims();
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let (claim, exit) = oneshot::channel();
        claims.insert(pid, claim);
        Ok((pid, exit))
    }

    /// Collects every dead child, ours and adopted.
    pub fn reap(&self) -> Children {
        let mut claims = self.claims();
        while let Some((pid, exit)) = match wait_any() {
            Waited::Ended(pid, exit) => Some((pid, exit)),
            Waited::NoneYet => None,
            Waited::NoChildren => return Children::None,
        } {
            if let Some(claim) = claims.remove(&pid) {
                // The requester may have stopped listening: a detached command.
                claim.send(exit).ok();
            }
        }
        Children::Some
    }

    /// Collects on every SIGCHLD, for ever.
    pub async fn run(&self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        // What died before the handler was installed raised no signal for us.
        self.reap();
        while children.recv().await.is_some() {
            self.reap();
        }
        Ok(())
    }

    /// SIGKILLs the process group a spawned leader made.
    pub fn kill_group(&self, leader: i32, state: Leader) {
        self.signal_group(leader, state, Signal::SIGKILL);
    }

    /// Sends `signal` to the process group a spawned leader made.
    ///
    /// Once a leader was collected its number is
    /// free as soon as the group is empty too; if it has a claim again, it is somebody else's.
    pub fn signal_group(&self, leader: i32, state: Leader, signal: Signal) {
        let claims = self.claims();
        if state == Leader::Collected && claims.contains_key(&leader) {
            return;
        }
        // ESRCH: all gone.
        killpg(Pid::from_raw(leader), signal).ok();
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a process group's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    Running,
    Collected,
}

enum Waited {
    Ended(i32, Exit),
    NoneYet,
    NoChildren,
}

/// The system call itself: nix's wrapper turns a death by a real-time signal into an error, after
/// the status is gone.
fn wait_any() -> Waited {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live integer.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            0 => return Waited::NoneYet,
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Waited::NoChildren,
            pid if libc::WIFSIGNALED(status) => {
                return Waited::Ended(pid, Exit::Signal(libc::WTERMSIG(status)));
            }
            // Without WUNTRACED and WCONTINUED there is no third kind.
            pid => return Waited::Ended(pid, Exit::Code(libc::WEXITSTATUS(status))),
        }
    }
}
