//! How far a copy is, for whoever watches it from another thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts what has been packed or unpacked.
#[derive(Debug, Default)]
pub struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// Regular files that are done.
    pub fn files(&self) -> u64 {
        self.files.load(Relaxed)
    }

    /// What of their contents is done.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(crate) fn add_file(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_bytes(&self, count: usize) {
        self.bytes.fetch_add(count as u64, Relaxed);
    }
}
