//! Memory in pages of 2 MiB: whether the host has any to give.
//!
//! Huge pages are reserved by the operator and belong to whoever takes them first. So they are looked
//! for before anything starts: a VMM would only say that it cannot allocate, or be killed later.

use bhatti_engine::EngineError;
use bhatti_types::Mib;

/// Of the one size that is used.
pub const BYTES: u64 = 2 << 20;

/// [`EngineError::NoHugepages`] if there are fewer than `memory` takes.
pub fn check(memory: Mib) -> Result<(), EngineError> {
    let (needed, free) = (memory.bytes().div_ceil(BYTES), free());
    if free < needed { Err(EngineError::NoHugepages { needed, free }) } else { Ok(()) }
}

/// How many are reserved and nobody's.
fn free() -> u64 {
    const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    // A kernel without them has no such file.
    let text = std::fs::read_to_string(FREE).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}
