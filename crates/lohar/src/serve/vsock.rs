//! The agent's vsock port, for machines without virtio-serial (Firecracker's).
//!
//! What the transport does, and what follows from it:
//! - A machine that was restored, or only saved, loses its connections; sockets that listen stay. The
//!   host connects again, and may do so before we have seen the former connection break. So the
//!   newest connection is the one that counts.
//! - Only the host may connect: nobody in the machine can pretend to be it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername,
    listen as nix_listen, socket,
};
use tokio::io::unix::AsyncFd;

use super::carrier::Connection;

/// Where the host finds us.
pub const PORT: u32 = 52;

/// The number of virtio's socket device in sysfs.
const DEVICE_ID: &str = "0x0013";

/// Whether this machine has the device, with or without its driver.
pub fn has_device() -> bool {
    let Ok(devices) = std::fs::read_dir("/sys/bus/virtio/devices") else { return false };
    devices.flatten().any(|device| {
        std::fs::read_to_string(device.path().join("device"))
            .is_ok_and(|id| id.trim_end() == DEVICE_ID)
    })
}

/// Starts to listen; connections wait until somebody accepts them.
pub fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT))?;
    nix_listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

/// Accepts hosts.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Of what [`listen`] made.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped, and `AsyncFd`
        // deregisters it before that.
        Ok(Self(unsafe { AsyncFd::register(listener) }?))
    }

    /// The next connection of the host. Cancel-safe.
    pub async fn accept(&self) -> io::Result<Connection> {
        loop {
            let mut ready = self.0.readable().await?;
            let accepted = ready.try_io(|listener| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                Ok(accept4(listener.as_raw_fd(), flags)?)
            });
            let fd = match accepted {
                Ok(Ok(fd)) => fd,
                // Gone again before we came.
                Ok(Err(error)) if is_its_own_fault(&error) => continue,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => continue,
            };
            // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
            let file = unsafe { File::from_raw_fd(fd) };
            if getpeername::<VsockAddr>(fd).is_ok_and(|peer| peer.cid() == libc::VMADDR_CID_HOST) {
                // SAFETY: the `File` owns its descriptor, is never replaced, and lives in the
                // `AsyncFd`.
                return Ok(unsafe { AsyncFd::register(file) }?.into());
            }
        }
    }
}

/// Whether an accept failed for a reason of the one connection.
fn is_its_own_fault(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ECONNABORTED | Errno::ECONNRESET | Errno::EINTR))
}
