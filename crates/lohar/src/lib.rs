//! `lohar`, the agent that is PID 1 in every guest.
//!
//! ```text
//!   boot      initramfs ─▶ modules ─▶ root disk ─▶ switch ─▶ mounts ─▶ users
//!     │       a chain of named steps; ends with a `Guest`
//!     ▼
//!   serve     virtio-serial port ─▶ link ─▶ one task per stream ─▶ one operation
//!     │
//!   process   the one reaper; spawning as the sandbox's user
//! ```
//!
//! Promises:
//! - It refuses to do anything unless it is PID 1.
//! - It never panics on purpose: a dead PID 1 is a dead kernel. Nothing read from the disk, the
//!   host or a child is unwrapped.
//! - One piece of code waits for children ([`process::Reaper`]).
//! - Losing the host kills nothing. Commands run on, and what they print is thrown away.
//!
//! Not here: anything of the host, the multiplexer ([`bhatti_link`]), the messages
//! ([`bhatti_wire::message`]).

pub mod boot;
pub mod console;
pub mod guest;
pub mod process;
pub mod random;
pub mod replace;
pub mod serve;

use std::ffi::c_int;

use nix::sys::signal::{SigHandler, Signal, signal};

/// The program: boots the machine and serves the host until power-off. Returns only when it is
/// not PID 1.
///
/// Starts without the standard library's own start-up code, see `main.rs`.
pub fn main() -> c_int {
    if std::process::id() != 1 {
        console::report(format_args!(
            "version {}: this is the init of a virtual machine and runs only as PID 1",
            env!("CARGO_PKG_VERSION")
        ));
        return 1;
    }
    // A command that closes its stdin must not end the machine.
    // SAFETY: ignoring a signal runs no code of ours.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) } {
        console::report(format_args!("SIGPIPE stays: {error}"));
    }
    // A panic would otherwise print in pieces, and only to a console that may not exist.
    std::panic::set_hook(Box::new(|info| {
        console::report(format_args!("panic: {info}"));
    }));
    match boot::boot() {
        Ok(machine) => serve::serve_until_power_off(machine),
        Err(error) => console::report(format_args!("boot failed: {}", console::Chain(&error))),
    }
    // Reached when boot failed or the runtime could not start. Powering off tells the host more
    // than the kernel panic that PID 1's exit would be.
    serve::power::halt()
}
