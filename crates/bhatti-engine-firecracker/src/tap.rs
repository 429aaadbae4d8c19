//! Handing a TAP to a VMM that opens it by name.
//!
//! Our TAPs are open descriptors without a privilege attached, in the network namespace of the
//! machine's user. Firecracker takes a name only, and opens it itself. So its process is put into that
//! namespace, the TAP becomes the VMM's user's and outlives our descriptor for the moment between
//! ours being closed and its being opened; once it is, it vanishes with the VMM again. The VMM could
//! open no other TAP in there: each belongs to a user of its own and is open already, and its system
//! call filter lets it make no socket but Unix ones.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use bhatti_engine::Private;
use nix::sched::{CloneFlags, setns};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const SIOCGSKNS: libc::c_ulong = 0x894c;
const DEVICE: &str = "/dev/net/tun";
/// More than a VMM may have open.
const MOST_DESCRIPTORS: usize = 256;

/// A TAP that waits for its VMM.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
    network: OwnedFd,
}

impl Tap {
    /// Lets a VMM of that user open it, once, by its name.
    pub(crate) fn prepare(tap: OwnedFd, owner: Private) -> io::Result<Self> {
        let name = name_of(&tap)?;
        // SAFETY: a system call on integers.
        let network = unsafe { libc::ioctl(tap.as_raw_fd(), SIOCGSKNS, 0) };
        check(network)?;
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        let network = unsafe { OwnedFd::from_raw_fd(network) };
        set(&tap, TUNSETOWNER, owner.uid)?;
        set(&tap, TUNSETPERSIST, 1)?;
        Ok(Self { name, network })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The namespace it is in.
    pub(crate) fn network(&self) -> io::Result<OwnedFd> {
        self.network.try_clone()
    }

    /// It has been opened by the VMM, and from now on lives as long as that.
    pub(crate) fn leave_to(&self, pid: i32) -> io::Result<()> {
        // SAFETY: a system call on integers.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let pidfd = i32::try_from(pidfd).map_err(io::Error::other)?;
        check(pidfd)?;
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.take(MOST_DESCRIPTORS) {
            let entry = entry?;
            let number = entry.file_name().to_string_lossy().parse::<i32>();
            let is_tun =
                std::fs::read_link(entry.path()).is_ok_and(|path| path.ends_with("net/tun"));
            let (Ok(number), true) = (number, is_tun) else { continue };
            // SAFETY: a system call on integers.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
            let fd = i32::try_from(fd).map_err(io::Error::other)?;
            check(fd)?;
            // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
            let tap = unsafe { OwnedFd::from_raw_fd(fd) };
            if name_of(&tap).is_ok_and(|name| name == self.name) {
                return set(&tap, TUNSETPERSIST, 0);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the VMM has not opened its TAP"))
    }

    /// Removes it: its VMM did not come to open it.
    pub(crate) fn abandon(self) {
        // A thread changes its namespace for good.
        let removing = move || -> io::Result<()> {
            setns(&self.network, CloneFlags::CLONE_NEWNET)?;
            let device = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE)?;
            let device = OwnedFd::from(device);
            let mut request = request(&self.name);
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            // SAFETY: the request is a valid structure for the time of the call.
            check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
            set(&device, TUNSETPERSIST, 0)
        };
        let done = std::thread::spawn(removing).join();
        match done {
            Ok(Ok(())) => {}
            // It is not there, or its VMM still has it, and it goes with that.
            Ok(Err(error)) => tracing::debug!(%error, "a TAP cannot be removed"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn name_of(tap: &OwnedFd) -> io::Result<String> {
    let mut request = request("");
    // SAFETY: the request is a valid structure for the time of the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
    let name: Vec<u8> = request.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let places = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name.iter_mut().take(places).zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request
}

fn set(tap: &OwnedFd, what: libc::c_ulong, value: u32) -> io::Result<()> {
    // SAFETY: a system call on integers.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), what, libc::c_ulong::from(value)) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
