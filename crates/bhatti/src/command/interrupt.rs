//! Ctrl-C while a command runs in a guest.

use nix::sys::signal::{SigSet, Signal};

use crate::failure::Failure;

/// What a shell reports for a process that died of SIGINT.
const SIGINT_EXIT: i32 = 130;

/// From here on Ctrl-C ends the process with 130, and with it the connection, which makes the
/// daemon end the command.
///
/// A thread waits for the signal, so that it works even while the main thread is stuck writing
/// to a pipe nobody reads. Must be called before any other thread is started: they inherit the
/// mask.
pub(super) fn exit_on_ctrl_c() -> Result<(), Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let waiter = move || {
        if signals.wait().is_ok() {
            std::process::exit(SIGINT_EXIT);
        }
    };
    std::thread::Builder::new().name("ctrl-c".to_owned()).spawn(waiter)?;
    Ok(())
}
