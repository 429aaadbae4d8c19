//! Ctrl-C while something is under way at the server: what it ends, and what goes on.

use nix::sys::signal::{SigSet, Signal};

use crate::context::Context;
use crate::failure::{Failure, say};

/// What a shell reports for a process that died of SIGINT.
const SIGINT_EXIT: i32 = 130;

/// From here on Ctrl-C ends the process with 130, and with it the connection, which makes the
/// daemon end the command.
pub(super) fn exit_on_ctrl_c() -> Result<(), Failure> {
    on_ctrl_c(String::new())
}

/// From here on Ctrl-C ends the process with 130, and says before that the making of `sandbox` does
/// not end with it. Its name is empty where the server makes one up.
pub(super) fn new_sandbox_goes_on(context: &Context, sandbox: &str) -> Result<(), Failure> {
    match sandbox {
        "" => goes_on(context, "bhatti ls", "bhatti destroy <sandbox>"),
        name => {
            goes_on(context, &format!("bhatti inspect {name}"), &format!("bhatti destroy {name}"))
        }
    }
}

/// The same for anything: a server finishes what it has begun. `shows` and `undoes` are the commands
/// to go on with.
pub(super) fn goes_on(context: &Context, shows: &str, undoes: &str) -> Result<(), Failure> {
    // The line of the spinner.
    let wiped = if context.stderr_is_terminal() { "\r\u{1b}[K" } else { "" };
    on_ctrl_c(format!(
        "{wiped}Interrupted. What the server has begun goes on: {shows} shows it, {undoes} undoes it.\n"
    ))
}

/// A thread waits for the signal, so that it works even while the main thread is stuck writing
/// to a pipe nobody reads. Must be called before any other thread is started: they inherit the
/// mask.
fn on_ctrl_c(last_words: String) -> Result<(), Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let waiter = move || {
        if signals.wait().is_ok() {
            say(&last_words);
            std::process::exit(SIGINT_EXIT);
        }
    };
    std::thread::Builder::new().name("ctrl-c".to_owned()).spawn(waiter)?;
    Ok(())
}
