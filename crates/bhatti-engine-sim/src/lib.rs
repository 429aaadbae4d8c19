//! An engine without a hypervisor, with faults on demand: for tests of lifecycle logic.
//!
//! A [`SimHost`] plays the machine the daemon runs on: its "processes" survive the engines and
//! handles that made them, so a daemon restart is a new [`SimEngine`] over the same host. A guest
//! is a closure that is given its end of the link. Time is tokio's, so on a paused clock a boot
//! of two seconds takes none.
//!
//! It passes the suite every engine passes (`tests/all.rs`), and is never selectable by a
//! user.

mod engine;
mod fault;
mod host;
mod vm;

pub use engine::SimEngine;
pub use fault::{Call, Fault};
pub use host::{Guest, SimHost};
