//! `/init` of the initramfs. Everything is in the library, so that tests can reach it.
//!
//! Not Rust's usual `main`: the standard library's start-up code aborts when stdin, stdout and
//! stderr are closed and there is no `/dev/null` to put in their place. That is exactly how a
//! kernel without a console starts its init.

#![no_main]

/// What the C runtime calls.
// SAFETY: no other object of this program defines `main`.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> std::ffi::c_int {
    lohar::main()
}
