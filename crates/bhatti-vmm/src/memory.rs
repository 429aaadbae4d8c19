//! The guest's memory, from outside: which pages a machine has changed, written to files in
//! proportion to that, and put back into another process page by checked page.
//!
//! ```text
//!  /proc/PID/maps ──▶ Mapping ── changed pages ──▶ chain::save ──▶ mem-000 … mem-top (layers)
//!  /proc/PID/mem                                                        │        │
//!                     Mapping ◀──────── chain::load ◀───────────────────┘        │
//!                     clones ◀── sealed memfd ◀── Templates ◀────────────────────┘
//! ```
//!
//! A VMM's guest memory is always a private mapping: of `/dev/zero` (the machine has its memory
//! alone), of a [`template`] (it shares with its siblings what it has not changed), or of huge
//! pages. So the kernel itself knows what a machine has changed, and nothing has to be logged
//! while it runs. Where a VMM gives back memory of a file that its guest has freed, it maps nothing in
//! its place: such pages are zero. What the machine has not looked at since is nobody's, and may be
//! what the template has there once the machine has slept.
//!
//! Promises, each held by a test in `memory/tests.rs` or beside the code:
//! - What is loaded equals what was saved; every page is hashed before anybody sees it. A file
//!   that was cut, mixed up or has flipped bits is [`MemoryError::Damaged`], never used.
//! - A save writes the pages that differ from `since` and links the rest; what a page costs is
//!   bounded however long the chain of saves becomes ([`chain`]).
//! - A layer that is loaded onto another base than it was saved over is refused.
//!
//! The hash (XXH3, 128 bits) finds accidents, not forgers: the files are root's, and a guest that
//! makes two of its own pages collide damages its own memory.
//!
//! Everything here blocks; call it where blocking is allowed. What a VMM that was broken into can
//! do: report nonsense about itself and get nonsense saved. It cannot make the daemon read, write
//! or allocate beyond that VMM's own memory, nor wait: for who reads from outside, the kernel does
//! not ask a process for its pages (`userfaultfd`), it refuses.

pub mod chain;
mod layer;
pub mod mapping;
mod maps;
mod pages;
pub mod template;
#[cfg(test)]
mod tests;

use std::io;

use bhatti_engine::{EngineError, Piece};
use camino::{Utf8Path, Utf8PathBuf};

use crate::process::Process;

pub use mapping::{Anonymous, Mapping};
pub use template::{Templates, Zero};

/// Refuses a host whose pages are of another size than ours: what a guest has written since it was
/// last saved is asked of the kernel page by page.
pub fn check_host() -> Result<(), EngineError> {
    let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    match bytes.and_then(|bytes| usize::try_from(bytes).ok()) {
        Some(pages::PAGE) => Ok(()),
        other => {
            let (bytes, page) = (other.unwrap_or(0), pages::PAGE);
            let why = format!("its kernel has pages of {bytes} bytes; boot one with {page}");
            Err(EngineError::Host { why })
        }
    }
}

/// Why memory could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// These files will not work however often it is tried. One clause says why.
    #[error("{why}")]
    Damaged { why: String },
    /// A file of ours could not be used, now.
    #[error("failed to {action} {path}")]
    File {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    /// The VMM's memory is not where and how it should be.
    #[error("the VMM's guest memory cannot be found: {why}")]
    NoMapping { why: String },
    /// The VMM has ended.
    #[error("the machine is not running")]
    Gone,
}

impl MemoryError {
    fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged { why: why.into() }
    }

    /// For `map_err`, on an operation on `path`.
    fn file(action: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

impl From<MemoryError> for EngineError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Damaged { why } => Self::Unusable { why },
            MemoryError::File { action, path, source } => Self::File { action, path, source },
            MemoryError::NoMapping { why } => {
                Self::Control { command: "memory".to_owned(), message: why }
            }
            MemoryError::Gone => Self::Gone,
        }
    }
}

/// The memory of the machine that `process` is.
pub fn of_process(
    process: &Process,
    pid: i32,
    bytes: u64,
    anonymous: Anonymous<'_>,
) -> Result<Mapping, EngineError> {
    its_own(process, Mapping::find(pid, bytes, anonymous)?)
}

/// The same, of which is known where it is and whether it was a template's.
pub fn known(
    process: &Process,
    pid: i32,
    pieces: &[Piece],
    of_template: bool,
) -> Result<Mapping, EngineError> {
    its_own(process, Mapping::at(pid, pieces.to_vec(), of_template)?)
}

/// It lives, so what was found under its pid is its own.
fn its_own(process: &Process, mapping: Mapping) -> Result<Mapping, EngineError> {
    if process.has_ended() { Err(EngineError::Gone) } else { Ok(mapping) }
}
