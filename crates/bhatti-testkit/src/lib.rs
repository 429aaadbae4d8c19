//! What end-to-end tests share: a host of their own, a real daemon on it, waiting for a state.
//!
//! A test runs [`on_fresh_host`]: its thread gets a network and a mount namespace of its own, so
//! the daemon it starts touches nothing of the real host's network and two tests never meet.
//! [`TestDaemon`] is the real `bhatti serve` as a process, driven by the real `bhatti` command.
//!
//! Every machine the daemon boots is counted (one line in the file that `BHATTI_BOOT_LOG`
//! names), and an ERROR line in its log that the test did not announce fails the test.

#![expect(clippy::missing_panics_doc, reason = "test support reports failure by panicking")]

mod daemon;
mod host;
mod sleep;
mod wait;

pub use daemon::{Ran, TestDaemon, User, image_file};
pub use host::{WORLD, in_namespace, in_world, ip, on_fresh_host};
pub use sleep::Transition;
pub use wait::{deadline, wait_for};
