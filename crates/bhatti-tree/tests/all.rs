//! Every test that works on files, in one binary.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "all/copy.rs"]
mod copy;
#[path = "all/hostile.rs"]
mod hostile;
#[path = "all/noise.rs"]
mod noise;
#[path = "all/staged.rs"]
mod staged;
#[path = "all/support.rs"]
mod support;
#[path = "all/unpacking.rs"]
mod unpacking;
