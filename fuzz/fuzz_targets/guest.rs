//! What a guest reads from its carrier: scripts of a peer, and plain noise.
//!
//! `cargo +nightly fuzz run guest`. The same function runs over fixed pseudo-random input in
//! `bhatti-wire`'s tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/bhatti-wire/tests/all/drive.rs"]
#[expect(dead_code, reason = "each target uses its own part")]
mod drive;

fuzz_target!(|bytes: &[u8]| {
    drive::guest_reads(bytes);
    drive::guest_reads_noise(bytes);
});
