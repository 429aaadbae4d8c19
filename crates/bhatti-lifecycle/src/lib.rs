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
//! - A create that fails at any step leaves nothing (`a_failed_boot_leaves_nothing`,
//!   `a_clone_that_fails_leaves_nothing_and_costs_no_golden`).
//! - Concurrent creates of one name make one sandbox (`two_creates_of_one_name_make_one`).
//! - A quota holds under concurrency (`twenty_creates_at_once_respect_the_quota`).
//! - A restarted daemon takes over running machines (`a_restart_adopts_what_runs`).
//! - A machine is ended for sleep only when what it wakes from is on the medium and recorded; a
//!   freeze that fails leaves it running (`a_failed_freeze_leaves_it_running`).
//! - What a cold sandbox can wake from is written by nobody: a wake that fails can be tried again
//!   (`a_failed_wake_can_be_repeated`), and never beside a machine that is still there
//!   (`a_machine_that_does_not_end_is_ended_before_it_wakes`).
//! - Memory is given up only for what is wrong with the memory, or on demand
//!   (`what_cannot_be_used_is_booted_from_disk_and_said`, `only_force_goes_back_to_the_older_one`,
//!   `force_gives_up_nothing_for_the_hosts_sake`).
//! - While it is not recorded which layer a machine writes, it stands
//!   (`a_machine_whose_disk_is_not_known_stands`, `a_seal_nobody_heard_of_loses_nothing`).
//! - A phase is seen with its own reason and time (`what_is_seen_is_of_one_moment`).
//! - While a lease lives nothing pauses its sandbox (`a_lease_keeps_it_hot`).
//! - A use of a hot sandbox writes nothing and asks nobody (`a_use_of_what_is_hot_costs_nothing`).
//! - A clone that has not taken its own identity is not handed out
//!   (`a_clone_that_cannot_be_told_who_it_is_is_not_handed_out`).
//! - A golden snapshot stays while anything stands on it, recorded or not yet
//!   (`a_golden_does_not_go_from_under_a_clone_that_is_being_made`).
//! - A daemon may die at any step of any of this: the next one finds what was acknowledged, and
//!   nothing else stays (`tests/crash.rs`, which tries every step).
//!
//! Not here: HTTP, and which engine runs the machines.

mod actor;
mod admit;
mod dial;
mod disk;
mod error;
mod event;
mod freeze;
mod golden;
mod guest;
mod idle;
mod machine;
mod merge;
mod pin;
mod recover;
mod registry;
mod snapshot;
mod spec;
mod tasks;

pub use actor::Lease;
pub use admit::{Denied, Op, Verdict, admit};
pub use dial::{ByNetwork, Connection, Dialer};
pub use error::{ServiceError, WakeError, chain};
pub use event::{Events, Recorder};
pub use golden::GoldenLimits;
pub use idle::Thermal;
pub use machine::{Settings, Taps};
pub use registry::{Created, Deps, Sandboxes};
pub use spec::{CreateSpec, FileContent, PatchSpec};
pub use tasks::Tasks;

#[cfg(test)]
mod tests;
