//! QEMU's smallest machines as an engine: hardware virtualisation where it works, emulation where not.
//!
//! ```text
//!  QemuEngine::start ── probe ──▶ which QEMU, which accelerator, which cgroups
//!        │ boot, or restore: manifest fits? template loaded?
//!        ▼
//!  open files ──▶ cmdline (pure) ──▶ confine + spawn ──▶ QMP greets ──▶ QemuVm
//!  as root         argv, fd numbers   cgroup, namespaces, own root        │ one watcher task:
//!                                     uid, no capabilities, seccomp       ▼ pidfd and QMP events
//! ```
//!
//! Promises:
//! - The VMM runs as its own user, without capabilities, in namespaces of its own, in its own
//!   cgroup, under QEMU's seccomp filter, with a cleared environment. Its root holds its own
//!   directory, its program and what that loads, and nothing else (`bhatti_vmm::jail`); every file it
//!   writes is bounded (`tests/all/confinement.rs`).
//! - A machine that lives is found again whatever the configuration says now and however the VMM
//!   behaves, and can always be ended (`tests/all/recovery.rs`).
//! - Whatever lies in a machine's directory after the VMM has run is its word, not ours: it is
//!   opened without following links and read up to a bound (`bhatti_vmm::machine_dir`).
//! - A snapshot is checked to the last byte before its machine runs; one that does not fit is
//!   refused with its reason. Saving, sealing and pausing run to their end, whoever waits
//!   (`tests/all/snapshot.rs`). Memory is a private mapping, and ADR 0010 says why.
//! - A machine that ends while no daemon runs waits, stopped, for the next one: its console and
//!   the way it ended are not lost (`-no-shutdown`).
//!
//! Not here: TAP devices, images, the protocol on the link.

mod arch;
mod cmdline;
mod control;
mod disk;
mod engine;
mod launch;
mod merging;
mod probe;
mod qmp;
mod restore;
mod saving;
mod sealing;
mod vm;
mod watcher;

pub use arch::Arch;
pub use bhatti_vmm::cgroup::Claim;
pub use engine::{QemuConfig, QemuEngine};
pub use probe::{AccelChoice, Found, find};
