//! What a guest sends as an archive, unpacked by the command on its user's machine.
//!
//! `cargo +nightly fuzz run archive`. The same function runs over damaged archives in
//! `bhatti-tree`'s tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/bhatti-tree/tests/all/unpacking.rs"]
mod unpacking;

fuzz_target!(|bytes: &[u8]| unpacking::stays_in_its_box(bytes));
