//! What a guest asks a name server, and what servers outside answer.
//!
//! `cargo +nightly fuzz run names fuzz/corpus/names fuzz/seeds/names`. The same function runs over
//! damaged seeds in `bhatti-net`'s tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| bhatti_net::hostile::names(bytes));
