//! The life of sandboxes, from request to removal.
//!
//! ```text
//!             create                 nobody uses it              for longer, or `stop`
//! (nothing) ─────────▶ Creating ──▶ Hot ◀──────────▶ Warm ─────────────────▶ Cold
//!                         │          ▲    any use                             │
//!                  failed │          ├──────────── any use restores it ───────┘
//!                         ▼          │ any use boots it
//!                     (nothing)   Stopped ◀── the guest powers off, the VMM dies
//!                         ▲
//!                    Destroying ◀── destroy, from anywhere
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
//! - A machine is ended for sleep only when what it wakes from is on the medium and recorded; a
//!   freeze that fails leaves it running (`a_failed_freeze_leaves_it_running`).
//! - What a cold sandbox can wake from is written by nobody: a wake that fails can be tried again
//!   (`a_failed_wake_can_be_repeated`).
//! - While a lease lives nothing pauses its sandbox (`a_lease_keeps_it_hot`).
//!
//! Not here: HTTP, and which engine runs the machines.

mod actor;
mod admit;
mod disk;
mod error;
mod freeze;
mod golden;
mod guest;
mod idle;
mod machine;
mod pin;
mod recover;
mod registry;
mod snapshot;
mod spec;
mod tasks;

pub use actor::Lease;
pub use admit::{Denied, Op, Verdict, admit};
pub use error::{ServiceError, WakeError, chain};
pub use golden::GoldenLimits;
pub use idle::Thermal;
pub use machine::{Settings, Taps};
pub use registry::{Created, Deps, Sandboxes};
pub use spec::{CreateSpec, FileContent, PatchSpec};
pub use tasks::Tasks;

#[cfg(test)]
mod tests;
