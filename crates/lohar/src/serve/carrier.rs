//! The way to the host: a virtio-serial port named `agent`, or vsock where there is none
//! ([`super::vsock`]).
//!
//! What the driver of the serial port does, and what follows from it:
//! - A blocking write waits until a host is connected. That is how we wait for one: without
//!   polling, and whatever we write first is its greeting.
//! - While no host is connected a read ends at once and poll reports a hang-up. tokio remembers
//!   a hang-up for ever, so each connection gets an [`AsyncFd`] of its own.

use std::fs::{DirEntry, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the host calls our port.
const PORT_NAME: &str = "agent";

/// Where hosts come from.
#[derive(Debug)]
pub enum Port {
    /// The open virtio-serial port.
    Serial(File),
    /// A listening vsock socket.
    Vsock(OwnedFd),
}

/// Opens the agent's port, waiting for the device to appear.
pub fn open_port(patience: Duration) -> io::Result<Port> {
    let start = Instant::now();
    loop {
        if let Some(path) = find_port() {
            return File::options().read(true).write(true).open(path).map(Port::Serial);
        }
        if super::vsock::has_device() {
            return super::vsock::listen().map(Port::Vsock);
        }
        if start.elapsed() > patience {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no virtio port named agent"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn find_port() -> Option<PathBuf> {
    let named = |entry: &DirEntry| {
        std::fs::read_to_string(entry.path().join("name"))
            .is_ok_and(|name| name.trim_end() == PORT_NAME)
    };
    let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(named)?;
    Some(PathBuf::from("/dev").join(port.file_name())).filter(|path| path.exists())
}

/// Writes `greeting` and returns once a host has connected to take it. Blocks.
pub fn greet(port: &File, greeting: &[u8]) -> io::Result<()> {
    set_flags(port, Blocking::Yes)?;
    let mut port = port;
    port.write_all(greeting)
}

enum Blocking {
    Yes,
    No,
}

fn set_flags(port: &File, blocking: Blocking) -> io::Result<()> {
    let flags = match blocking {
        Blocking::Yes => OFlag::empty(),
        Blocking::No => OFlag::O_NONBLOCK,
    };
    fcntl(port, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// One connection of a host: a handle of the serial port, or a socket.
#[derive(Debug)]
pub struct Connection {
    port: AsyncFd<File>,
}

impl From<AsyncFd<File>> for Connection {
    /// The file is in non-blocking mode.
    fn from(port: AsyncFd<File>) -> Self {
        Self { port }
    }
}

impl Connection {
    /// Starts a connection on a handle of the port. The port itself stays open: a port that is
    /// closed tells the host that nobody is there.
    pub fn new(port: &File) -> io::Result<Self> {
        set_flags(port, Blocking::No)?;
        // SAFETY: the `File` owns its descriptor, is never replaced, and lives in the `AsyncFd`.
        let port = unsafe { AsyncFd::register(port.try_clone()?) }?;
        Ok(Self { port })
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.port.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            if let Ok(outcome) = guard.try_io(|port| port.get_ref().read(unfilled)) {
                return Poll::Ready(outcome.map(|n| buf.advance(n)));
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.port.poll_write_ready(cx))?;
            if let Ok(outcome) = guard.try_io(|port| port.get_ref().write(bytes)) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A serial port has no half-close, and the link needs none.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
