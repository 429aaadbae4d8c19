//! An engine without a hypervisor, with faults on demand: for tests of lifecycle logic.
//!
//! A [`SimHost`] plays the machine the daemon runs on: its "processes" survive the engines and
//! handles that made them, so a daemon restart is a new [`SimEngine`] over the same host. A guest
//! is a closure that is given its end of the link. Time is tokio's, so on a paused clock a boot
//! of two seconds takes none. A machine has a few bytes of memory, which a test sets and reads and
//! which a save and a restore carry from one process to the next.
//!
//! It passes the suite every engine passes (`tests/all.rs`), and is never selectable by a
//! user.

mod cable;
mod engine;
mod fault;
mod host;
mod snapshot;
mod vm;

pub use engine::SimEngine;
pub use fault::{Call, Fault};
pub use host::{Guest, SimHost};

/// The error of a file operation.
pub(crate) fn file_error(
    action: &'static str,
    path: &camino::Utf8Path,
) -> impl Fn(std::io::Error) -> bhatti_engine::EngineError {
    move |source| bhatti_engine::EngineError::File { action, path: path.to_owned(), source }
}
