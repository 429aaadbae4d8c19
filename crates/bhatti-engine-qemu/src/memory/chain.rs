//! Layers upon each other: the memory of a machine as one snapshot holds it.
//!
//! ```text
//!  snapshot 1   mem-top ─────────────────┐ the same file
//!  snapshot 2   mem-000 (a link to it) ◀─┘   mem-top ──────────────┐
//!  snapshot 3   mem-000                      mem-001 (a link) ◀────┘   mem-top
//! ```
//!
//! The newest layer of a snapshot is `mem-top`, those below it are `mem-000`, `mem-001` and so on,
//! the lowest first. Each names the one below it, so a layer that is missing, foreign or in the
//! wrong place is noticed, the newest included. A page that no layer mentions holds what the
//! mapping started with: zero, or what the base has.
//!
//! A chain has at most [`MOST_LAYERS`] layers. When it is full, or holds too much that newer
//! layers hide, a save does not link the upper layers but writes what they say anew, into its own
//! ([`worth_keeping`]): a page is rewritten a few times in the life of a machine, not each time.

use std::io;

use bhatti_engine::Saved;
use camino::{Utf8Path, Utf8PathBuf};
use xxhash_rust::xxh3::xxh3_128;

use super::layer::{Content, Entry, Layer, Place, Writer};
use super::mapping::{Ground, Mapping};
use super::pages::{PAGE, PageSet, ZERO};
use super::template::Template;
use super::MemoryError;

/// More layers make a load seek and a save compare more.
pub(crate) const MOST_LAYERS: usize = 8;
/// Pages that newer layers hide are let be as long as they are no more than those that count, and
/// these (16 MiB).
const FREE_DEAD_PAGES: u64 = 4096;
/// Pages that are read, hashed and written at once: 1 MiB.
const BATCH: u32 = 256;

const TOP: &str = "mem-top";

/// The memory of one snapshot. Its index is in memory, its pages are not.
#[derive(Debug)]
pub(super) struct Chain {
    /// The lowest first; never empty.
    layers: Vec<Layer>,
}

/// What a chain says about one page, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) page: u32,
    pub(super) content: Content,
    layer: u8,
    slot: u32,
}

/// Writes the memory of a paused machine into the directory `into`, where no memory is yet.
///
/// Memory that is equal in `since` (a former snapshot of this machine, or of what it was restored
/// from, over the same base) is linked instead of written. A `since` that cannot be used is not an
/// error: everything is written then. `base` is the snapshot whose template the machine stands on.
pub(crate) fn save(
    mapping: &Mapping,
    into: &Utf8Path,
    since: Option<&Utf8Path>,
    base: Option<&Utf8Path>,
) -> Result<Saved, MemoryError> {
    todo!()
}

/// Writes what the snapshot in `dir` holds into the memory of a machine that has never run.
///
/// `base` is the template the machine stands on. If that is the snapshot itself, as for a clone,
/// there is nothing left to load.
pub(crate) fn load(
    dir: &Utf8Path,
    base: Option<&Template>,
    mapping: &Mapping,
) -> Result<(), MemoryError> {
    todo!()
}
