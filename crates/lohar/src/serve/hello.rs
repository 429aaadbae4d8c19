//! The first operation on a new link: sets the clock, reseeds the kernel's randomness.
//!
//! A machine that slept has a clock that slept too, and a clone has its siblings' random pool.
//! Both are put right before the host lets anything else run; if the pool cannot be reseeded
//! there is no reply at all, because the host must not hand that machine out.
//!
//! What is held ([`super::hold`]) is let go when all of that has been done, and the identity taken
//! on that came with it; not before, and not at all if something of it failed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use bhatti_wire::message::{Hello, HelloReply, PROTOCOL_VERSION};
use nix::sys::time::TimeSpec;
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime, clock_settime};

use super::configure;
use crate::console::report;
use crate::guest::Guest;

/// Smaller differences are left to the clock's own drift.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(1);

/// Most entropy taken from one message, in bytes.
const MAX_ENTROPY: usize = 512;

/// Optional operations of this agent.
const FEATURES: &[&str] = &[
    "exec",
    "exec-detach",
    "write-file",
    "configure",
    "power-off",
    "activity",
    "quiesce",
    "hold",
    "files",
    "archive",
    "ports",
    "sessions",
    "kill-exec",
    "dial",
];

/// The kernel was not given the host's randomness.
#[derive(Debug, thiserror::Error)]
#[error("failed to reseed the kernel's randomness")]
pub struct ReseedError(#[source] io::Error);

/// Answers one hello.
pub async fn hello(guest: &Guest, request: Hello) -> Result<HelloReply, ReseedError> {
    if let Err(error) = set_clock(Duration::from_nanos(request.unix_nanos)) {
        report(format_args!("clock not set: {error}"));
    }
    reseed(&request.entropy).map_err(ReseedError)?;
    let applied = match request.identity {
        Some(identity) => Some(configure::answer(guest, identity).await),
        None => None,
    };
    if applied.as_ref().is_none_or(|reply| reply.failure.is_none()) {
        guest.hold.let_go().await;
    }
    let kernel_release = uname().map_or_else(
        |_| String::from("unknown"),
        |names| names.release().to_string_lossy().into_owned(),
    );
    Ok(HelloReply {
        protocol: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        features: FEATURES.iter().map(|&name| name.to_owned()).collect(),
        configured: guest.settings().configured,
        kernel_release,
        applied,
        unix_nanos: now().map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0)),
    })
}

fn set_clock(wanted: Duration) -> io::Result<()> {
    if wanted.is_zero() {
        return Ok(());
    }
    if needs_setting(now()?, wanted) {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(wanted))?;
    }
    Ok(())
}

fn now() -> io::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?))
}

fn needs_setting(now: Duration, wanted: Duration) -> bool {
    now.abs_diff(wanted) > CLOCK_TOLERANCE
}

/// `struct rand_pool_info`, with room for the most we take.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    size_bytes: libc::c_int,
    data: [u8; MAX_ENTROPY],
}

mod ioctl {
    use nix::libc::c_int;
    // _IOW('R', 0x03, int[2]): mixes bytes in and credits them.
    nix::ioctl_write_ptr!(rnd_add_entropy, b'R', 0x03, [c_int; 2]);
    // _IO('R', 0x07): the generator takes a new key from the pool now, not in five minutes.
    nix::ioctl_none!(rnd_reseed_crng, b'R', 0x07);
}

fn reseed(entropy: &[u8]) -> io::Result<()> {
    let entropy = &entropy[..entropy.len().min(MAX_ENTROPY)];
    if entropy.is_empty() {
        return Ok(());
    }
    let random = File::options().write(true).open("/dev/urandom")?;
    let bytes = entropy.len() as libc::c_int;
    let mut info =
        RandPoolInfo { entropy_bits: bytes * 8, size_bytes: bytes, data: [0; MAX_ENTROPY] };
    info.data[..entropy.len()].copy_from_slice(entropy);
    // SAFETY: the kernel reads the two integers and `size_bytes` bytes after them, all of which
    // are inside `info`.
    unsafe { ioctl::rnd_add_entropy(random.as_raw_fd(), (&raw const info).cast()) }?;
    // SAFETY: takes no argument.
    unsafe { ioctl::rnd_reseed_crng(random.as_raw_fd()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_noticeable_difference_sets_the_clock() {
        let now = Duration::from_secs(1_700_000_000);
        assert!(!needs_setting(now, now + CLOCK_TOLERANCE));
        assert!(!needs_setting(now, now - CLOCK_TOLERANCE));
        assert!(needs_setting(now, now + Duration::from_micros(1001)));
        assert!(needs_setting(now, now - Duration::from_secs(3600)));
    }

    #[test]
    fn the_ioctl_numbers_are_the_kernels() {
        assert_eq!(
            nix::request_code_write!(b'R', 0x03, size_of::<[libc::c_int; 2]>()),
            0x4008_5203
        );
        assert_eq!(nix::request_code_none!(b'R', 0x07), 0x5207);
        assert_eq!(std::mem::offset_of!(RandPoolInfo, data), 8);
    }
}
