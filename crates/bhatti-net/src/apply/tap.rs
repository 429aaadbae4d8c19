//! TAP devices: opened inside a user's namespace, attached to its bridge, handed out as a descriptor.
//!
//! Promises:
//! - The device is not persistent: it vanishes with the last descriptor, so neither a crash of the
//!   daemon nor the death of a VMM leaves one behind. An engine whose VMM opens it by its name makes
//!   it persist for that moment; what a crash leaves then is found by [`remove_unheld`].
//! - The descriptor is close-on-exec; nobody inherits it who was not given it.
//! - No process is started in here: making a sandbox waits for it.

use std::ffi::{c_int, c_ulong};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bhatti_types::EngineId;
use nix::errno::Errno;
use nix::net::if_::{if_nameindex, if_nametoindex};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::in_namespace;
use crate::NetError;
use crate::names::{BRIDGE, tap_name};

/// The device TAPs are made from.
pub(crate) const TUN: &str = "/dev/net/tun";

/// From `linux/sockios.h`; not in the libc crate.
const SIOCBRADDIF: c_ulong = 0x89a2;

/// From `linux/if_tun.h`; not in the libc crate.
const TUNSETPERSIST: c_ulong = 0x4004_54cb;

/// How long a TAP may outlive the machine that held it. A process that is being started has copies
/// of all our descriptors between fork and exec, close-on-exec or not.
pub(crate) const LINGER: Duration = Duration::from_millis(500);
/// How often to look meanwhile.
pub(crate) const LINGER_STEP: Duration = Duration::from_millis(5);

/// Opens the TAP of machine `id` in `namespace`: up, and a port of the bridge.
pub(crate) async fn open_tap(namespace: &str, id: &EngineId) -> Result<OwnedFd, NetError> {
    let tap = tap_name(id);
    in_namespace(namespace, move || make(&tap)).await
}

/// Opens a TAP in a namespace that nobody else is in: a machine has the device it must have, and
/// reaches nothing. Device and namespace vanish with the last descriptor.
pub(crate) async fn open_detached_tap() -> Result<OwnedFd, NetError> {
    const NAME: &str = "t00000000";
    // A thread of its own, because a namespace is a thread's, and this one is not left again.
    let (reply, made) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let failed = |step| failed(step, NAME);
        let make = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(|errno| failed("isolate")(errno.into()))?;
            let file =
                OpenOptions::new().read(true).write(true).open(TUN).map_err(failed("open"))?;
            create(&file, NAME).map_err(failed("create"))?;
            bring_up(NAME).map_err(failed("bring up"))?;
            Ok(file.into())
        };
        // Whoever asked may be gone, and with the descriptor the device.
        drop(reply.send(make()));
    });
    made.await.unwrap_or_else(|_| {
        let source = io::Error::other("the thread that makes it ended");
        Err(NetError::Tap { step: "create", tap: NAME.to_owned(), source })
    })
}

/// How many TAPs of machines exist in `namespace`.
pub(crate) async fn taps_in(namespace: &str) -> Result<usize, NetError> {
    in_namespace(namespace, || Ok(taps()?.len())).await
}

/// Removes the TAPs in `namespace` that no process holds; returns their names. Nobody may be starting
/// a machine meanwhile.
pub(crate) async fn remove_unheld(namespace: &str) -> Result<Vec<String>, NetError> {
    in_namespace(namespace, || {
        let mut removed = Vec::new();
        for tap in taps()? {
            if remove_if_unheld(&tap).map_err(failed("remove", &tap))? {
                removed.push(tap);
            }
        }
        Ok(removed)
    })
    .await
}

/// The names of machines' TAPs in the thread's namespace.
fn taps() -> Result<Vec<String>, NetError> {
    let links = if_nameindex()
        .map_err(|errno| NetError::Run { program: "if_nameindex", source: errno.into() })?;
    let names = links.iter().map(|link| link.name().to_string_lossy().into_owned());
    Ok(names.filter(|name| is_tap(name)).collect())
}

fn remove_if_unheld(tap: &str) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(TUN)?;
    match create(&file, tap) {
        // Somebody holds it.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
        created => created?,
    }
    // SAFETY: a system call on integers; the descriptor is open.
    let unkept = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST as _, 0) };
    Errno::result(unkept)?;
    Ok(true)
}

fn is_tap(name: &str) -> bool {
    name.strip_prefix('t')
        .is_some_and(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// For `map_err`, on a step of making or removing a TAP.
fn failed(step: &'static str, tap: &str) -> impl FnOnce(io::Error) -> NetError {
    move |source| NetError::Tap { step, tap: tap.to_owned(), source }
}

fn make(tap: &str) -> Result<OwnedFd, NetError> {
    let failed = |step| failed(step, tap);
    // The standard library opens with O_CLOEXEC.
    let file = OpenOptions::new().read(true).write(true).open(TUN).map_err(failed("open"))?;
    let end = Instant::now() + LINGER;
    while let Err(source) = create(&file, tap) {
        match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
            Errno::EBUSY if Instant::now() < end => std::thread::sleep(LINGER_STEP),
            Errno::EBUSY => return Err(NetError::TapBusy { tap: tap.to_owned() }),
            _ => return Err(failed("create")(source)),
        }
    }
    attach(tap).map_err(failed("attach to the bridge"))?;
    bring_up(tap).map_err(failed("bring up"))?;
    Ok(file.into())
}

fn create(file: &File, tap: &str) -> io::Result<()> {
    let mut request = request(tap)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // The three flags are bits 1, 12 and 14: they fit.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    ioctl(file.as_raw_fd(), libc::TUNSETIFF as c_ulong, &mut request)
}

fn attach(tap: &str) -> io::Result<()> {
    let mut request = request(BRIDGE)?;
    let index = if_nametoindex(tap)?;
    request.ifr_ifru.ifru_ifindex = c_int::try_from(index).map_err(io::Error::other)?;
    ioctl(control()?.as_raw_fd(), SIOCBRADDIF, &mut request)
}

fn bring_up(tap: &str) -> io::Result<()> {
    let mut request = request(tap)?;
    // A new device has no flags worth keeping.
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    ioctl(control()?.as_raw_fd(), libc::SIOCSIFFLAGS as c_ulong, &mut request)
}

/// A socket to ask the kernel through; it stands for the thread's namespace.
fn control() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value: an empty name and a
    // union of integers, addresses and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ioctl(fd: RawFd, code: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every code used here takes a pointer to an `ifreq`, which is valid for the call and
    // which the kernel does not keep. `fd` is open: the callers own it.
    let result = unsafe { libc::ioctl(fd, code as _, std::ptr::from_mut(request)) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_recognised() {
        let name = tap_name(&"0123456789abcdef".parse().unwrap());
        assert_eq!(name, "t01234567");
        assert!(is_tap(&name));
        for other in ["t", "tap0", "br0", "t0123456", "t0123456x"] {
            assert!(!is_tap(other), "{other}");
        }
        assert!(request("0123456789abcdef").is_err());
    }
}
