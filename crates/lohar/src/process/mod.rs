//! Processes: finding a program, starting it as the sandbox's user, freezing it with all others,
//! learning how it ended.
//!
//! Invariant: only [`Reaper`] waits. `Child::wait` and `tokio::process` are banned in this
//! crate, because whoever loses the race for an exit status loses it for good.

mod find;
mod groups;
mod pty;
mod reaper;
mod spawn;

pub use find::{FindError, find_program};
pub use groups::{Frozen, GroupError, Groups};
pub use pty::Pty;
pub use reaper::{Children, Exit, Leader, Reaper};
pub use spawn::{Program, SpawnError, Spawned, Stdin, Streams, spawn};
