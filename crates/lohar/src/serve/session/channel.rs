//! A program's streams, as its session's keeper has them: one way in, one way out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bhatti_wire::message::WindowSize;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::{Pty, Streams};

/// Our ends.
#[derive(Debug)]
pub(super) enum Channel {
    Terminal(AsyncFd<Pty>),
    Pipes { output: AsyncFd<OwnedFd>, input: AsyncFd<OwnedFd> },
}

impl Channel {
    /// A terminal that belongs to `owner`, and its other end.
    pub(super) fn terminal(
        owner: (u32, u32),
        size: Option<WindowSize>,
    ) -> io::Result<(Self, Streams)> {
        let pty = Pty::open(owner, size)?;
        let theirs = Streams::Terminal(pty.theirs()?);
        // SAFETY: the `Pty` owns the descriptor, never replaces it, and lives in the `AsyncFd`.
        let ours = unsafe { AsyncFd::register(pty) }?;
        Ok((Self::Terminal(ours), theirs))
    }

    /// Two pipes, and their other ends.
    pub(super) fn pipes() -> io::Result<(Self, Streams)> {
        let (output, their_output) = pipe2(OFlag::O_CLOEXEC)?;
        let (their_stdin, input) = pipe2(OFlag::O_CLOEXEC)?;
        let ours = |end: OwnedFd, interest| {
            fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            // SAFETY: an `OwnedFd` is never replaced here, and lives in the `AsyncFd`.
            Ok::<_, io::Error>(unsafe { AsyncFd::register_with_interest(end, interest) }?)
        };
        let output = ours(output, Interest::READABLE)?;
        let input = ours(input, Interest::WRITABLE)?;
        let theirs = Streams::Merged { stdin: their_stdin, output: their_output };
        Ok((Self::Pipes { output, input }, theirs))
    }

    /// Reads what is there, at least a byte. `Ok(0)`: everybody has closed it. Cancel-safe.
    pub(super) async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Terminal(pty) => pty.async_io(Interest::READABLE, |pty| read(pty, into)).await,
            Self::Pipes { output, .. } => {
                output.async_io(Interest::READABLE, |output| read(output, into)).await
            }
        }
    }

    /// Reads what is there without waiting, and without trusting what was said about readiness.
    pub(super) fn read_now(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Terminal(pty) => read(pty.get_ref(), into),
            Self::Pipes { output, .. } => read(output.get_ref(), into),
        }
    }

    /// Writes what there is room for, at least a byte. Fails once nobody can read it any more.
    /// Cancel-safe.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Terminal(pty) => pty.async_io(Interest::WRITABLE, |pty| write(pty, bytes)).await,
            Self::Pipes { input, .. } => {
                input.async_io(Interest::WRITABLE, |input| write(input, bytes)).await
            }
        }
    }

    /// The terminal, if it is one.
    pub(super) fn pty(&self) -> Option<&Pty> {
        match self {
            Self::Terminal(pty) => Some(pty.get_ref()),
            Self::Pipes { .. } => None,
        }
    }
}

fn read(from: &impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    again(|| nix::unistd::read(from, into))
}

fn write(to: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    again(|| nix::unistd::write(to, bytes))
}

fn again(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}
