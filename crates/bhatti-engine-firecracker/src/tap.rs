//! Handing a TAP to a VMM that opens it by name.
//!
//! Our TAPs are open descriptors without a privilege attached, in the network namespace of the
//! machine's user. Firecracker takes a name only, and opens it itself. So its process is put into that
//! namespace, the TAP becomes the VMM's user's and outlives our descriptor for the moment between
//! ours being closed and its being opened; once it is, it vanishes with the VMM again. The VMM could
//! open no other TAP in there: each belongs to a user of its own and is open already, and its system
//! call filter lets it make no socket but Unix ones.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bhatti_engine::Private;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const SIOCGSKNS: libc::c_ulong = 0x894c;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GLINK: u32 = 0x0a;
const SOCKET_FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC;
/// How long somebody may have a copy of our descriptor, and how often to look meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_STEP: Duration = Duration::from_millis(2);
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
        drop(tap);
        let tap = Self { name, network };
        match tap.wait_until_free() {
            Ok(()) => Ok(tap),
            Err(error) => {
                tap.abandon();
                Err(error)
            }
        }
    }

    /// Waits until nobody holds it: a process that is just being started has copies of all our
    /// descriptors, close-on-exec or not, and only one process may hold a TAP.
    fn wait_until_free(&self) -> io::Result<()> {
        let end = Instant::now() + LINGER;
        self.in_its_network(|| {
            let socket = socket(AddressFamily::Inet, SockType::Datagram, SOCKET_FLAGS, None)?;
            // The kernel has no event for this.
            while has_carrier(&socket, &self.name)? {
                if Instant::now() > end {
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
                std::thread::sleep(LINGER_STEP);
            }
            Ok(())
        })
    }

    /// Does something in its namespace, on a thread of its own, because that changes its namespace for
    /// good.
    fn in_its_network<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let enter = || {
            setns(&self.network, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, enter)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
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
        let remove = || -> io::Result<()> { set(&open(&self.name)?, TUNSETPERSIST, 0) };
        // It is not there, or its VMM still has it, and it goes with that.
        if let Err(error) = self.in_its_network(remove) {
            tracing::debug!(%error, tap = self.name, "a TAP cannot be removed");
        }
    }
}

/// Opens a TAP of the thread's network by its name.
fn open(name: &str) -> io::Result<OwnedFd> {
    let device = OwnedFd::from(OpenOptions::new().read(true).write(true).open(DEVICE)?);
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request is a valid structure for the time of the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(device)
}

/// Whether a process holds the TAP of that name in the socket's network. The kernel says so only of one
/// that is up, as ours are.
fn has_carrier(socket: &OwnedFd, name: &str) -> io::Result<bool> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command: ETHTOOL_GLINK, data: 0 };
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and what it points to are valid structures for the time of the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(value.data != 0)
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use nix::sched::unshare;

    use super::*;

    const OWNER: Private = Private { uid: 64123, gid: 64123 };

    /// On a thread with a network of its own. Needs root.
    fn in_a_network(test: impl FnOnce() + Send) {
        let body = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        };
        std::thread::scope(|scope| scope.spawn(body).join().unwrap());
    }

    /// As the daemon makes them. Each test has a name of its own: they are one process.
    fn new(name: &str) -> OwnedFd {
        let tap = open(name).unwrap();
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SOCKET_FLAGS, None).unwrap();
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        // SAFETY: the request is a valid structure for the time of the call.
        let up = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
        check(up).unwrap();
        tap
    }

    fn exists(name: &str) -> bool {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SOCKET_FLAGS, None).unwrap();
        has_carrier(&socket, name).is_ok()
    }

    #[test]
    fn it_is_handed_over_once_nobody_has_a_copy() {
        in_a_network(|| {
            let tap = new("tap1");
            let copy = tap.try_clone().unwrap();
            let (done, prepared) = mpsc::channel();
            let waiting = std::thread::spawn(move || {
                done.send(Tap::prepare(tap, OWNER)).unwrap();
            });
            let early = prepared.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "somebody has it");
            drop(copy);
            let tap = prepared.recv().unwrap().unwrap();
            waiting.join().unwrap();
            // The VMM's place is taken by this.
            let opened = open("tap1").unwrap();
            let pid = i32::try_from(std::process::id()).unwrap();
            tap.leave_to(pid).unwrap();
            drop(opened);
            wait_until_gone("tap1");
        });
    }

    #[test]
    fn what_somebody_keeps_is_not_handed_over() {
        in_a_network(|| {
            let tap = new("tap2");
            let copy = tap.try_clone().unwrap();
            let error = Tap::prepare(tap, OWNER).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
            drop(copy);
        });
    }

    #[test]
    fn what_is_abandoned_is_gone() {
        in_a_network(|| {
            let tap = Tap::prepare(new("tap3"), OWNER).unwrap();
            assert!(exists("tap3"), "it persists");
            tap.abandon();
            wait_until_gone("tap3");
        });
    }

    /// Another test may start a process meanwhile, which has a copy for a moment.
    fn wait_until_gone(name: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        while exists(name) {
            assert!(Instant::now() < end, "it is left");
            std::thread::yield_now();
        }
    }
}
