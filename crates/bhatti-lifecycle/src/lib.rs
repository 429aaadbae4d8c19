//! The life of sandboxes, from request to removal.
//!
//! ```text
//!            create                guest powers off, VMM dies
//! (nothing) ───────▶ Creating ──▶ Hot ───────────────────▶ Stopped
//!                        │         ▲                          │
//!                 failed │         └──── any use boots it ────┘
//!                        ▼
//!                   (nothing) ◀── Destroying ◀── destroy, from anywhere
//! ```
//!
//! One actor owns one sandbox; handlers ask it and may hang up at any time, the actor finishes.
//! Intent is recorded before the effect. Creating, destroying and recovering share one teardown,
//! which may run twice and changes nothing the second time.
//!
//! Invariants, each with the test that holds it:
//! - A create that fails at any step leaves nothing (`a_failed_boot_leaves_nothing`).
//! - Concurrent creates of one name make one sandbox (`two_creates_of_one_name_make_one`).
//! - A quota holds under concurrency (`twenty_creates_at_once_respect_the_quota`).
//! - A restarted daemon takes over running machines (`a_restart_adopts_what_runs`).
//!
//! Not here: HTTP, and which engine runs the machines.

mod actor;
mod admit;
mod error;
mod guest;
mod machine;
mod recover;
mod registry;
mod spec;
mod tasks;

pub use actor::Lease;
pub use admit::{Denied, Op, Verdict, admit};
pub use error::{ServiceError, WakeError, chain};
pub use machine::{Settings, Taps};
pub use registry::{Created, Deps, Sandboxes};
pub use spec::{CreateSpec, FileContent, PatchSpec};
pub use tasks::Tasks;

#[cfg(test)]
mod tests;
