//! Templates: a snapshot's memory, loaded once, seen by every clone of it.
//!
//! A template is a sealed memfd. Nobody can write it any more, not even the daemon, so a VMM that
//! maps it privately gets its own copy of exactly the pages it writes.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use camino::Utf8PathBuf;

use super::MemoryError;

/// The memory of one snapshot, immutable.
#[derive(Debug)]
pub(crate) struct Template {
    file: File,
    pages: u32,
    /// Of the newest layer.
    id: u128,
}

/// The templates that machines use, and some that none uses just now.
#[derive(Debug)]
pub(crate) struct Templates {}

/// A machine's use of a template. Held while the machine lives; dropping it costs nothing but
/// the chance to find it loaded next time.
#[derive(Debug)]
pub(crate) struct InUse {
    template: Arc<Template>,
}

impl std::ops::Deref for InUse {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

impl Template {
    /// To be inherited by a VMM: `mem-path=/fd/N,share=off`.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Templates {
    /// Keeps up to `idle` templates that no machine uses.
    pub(crate) fn new(idle: usize) -> Self {
        todo!()
    }

    /// The template of a snapshot, loaded now if need be; whoever asks for one that is being
    /// loaded waits for it. `dirs` is the snapshot, and before it what it stands on, the lowest
    /// first. `bytes` is how much memory it must have.
    pub(crate) fn get(
        &self,
        dirs: &[Utf8PathBuf],
        bytes: u64,
    ) -> Result<InUse, MemoryError> {
        todo!()
    }
}
