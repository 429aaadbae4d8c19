//! Firecracker as an engine: hardware virtualisation on hosts with KVM.
//!
//! ```text
//!  FirecrackerEngine::start ── probe ──▶ which release, does KVM work, which cgroups
//!        │ boot, or restore: manifest fits? template loaded?
//!        ▼
//!  files, TAP ──▶ confine + spawn ──▶ API socket ──▶ requests (typed) ──▶ FirecrackerVm
//!  as root        our own jail         serves us      boot: configure, start      │ one watcher:
//!                                      alone          restore: load, held while   ▼ pidfd
//!                                                     memory is put in
//! ```
//!
//! Promises:
//! - The VMM runs in the same confinement as every other (`bhatti_vmm`), with its own system call
//!   filter on, which is checked and not assumed. ADR 0013 says why it is not started by
//!   Firecracker's jailer.
//! - Memory is a private mapping like everywhere else (ADR 0010): a clone shares what it has not
//!   written, and a save writes what has changed. Firecracker writes no memory file.
//! - While memory is read or put in, the VMM's own thread stands still, so that no packet that
//!   comes in meanwhile can make memory and devices disagree (`saving`, `hold`).
//! - Releases with a known fault in what we need are refused at start (`probe`).
//!
//! What it cannot do, and another engine can: layers of a disk that share blocks where the file system
//! cannot (`disk`), keeping the link over a save, and the end of a console of more than 64 KiB.

mod api;
mod arch;
mod config;
mod counters;
mod disk;
mod engine;
mod handover;
mod hold;
mod launch;
mod limits;
mod link;
mod probe;
mod qcow2;
mod restore;
mod saving;
mod tap;
mod vm;
mod watcher;

pub use bhatti_vmm::cgroup::Claim;
pub use engine::{FirecrackerConfig, FirecrackerEngine};
pub use limits::Limits;
pub use probe::{Program, find};
