//! Files put in place whole, and trees of them packed and unpacked: what the agent and the
//! command do alike, each with what the other sent.
//!
//! ```text
//!   pack    directory ─▶ tar          staged    bytes ─▶ a file without a name ─▶ its name
//!   unpack  tar ─▶ directory             ▲
//!              └── one file at a time ───┘
//! ```
//!
//! Promises:
//! - Under its final name a file is never seen half-written. After a power cut neither, if it was
//!   synced before it was published; what is unpacked is not.
//! - Unpacking makes nothing outside the directory it was given, whatever the archive says, and
//!   whoever exchanges directories for symlinks meanwhile. It makes files, directories and
//!   symlinks, nothing else, without set-id bits.
//! - Neither direction holds more than a piece of one file in memory, however large the tree.
//!
//! Blocking, all of it: callers bring a thread. Not here: how an archive travels.

#![forbid(unsafe_code)]

mod handle;
mod pack;
mod pax;
pub mod pipe;
mod place;
mod problem;
mod staged;
mod tally;
mod unpack;

pub use handle::handle;
pub use pack::{Source, root_name};
pub use problem::Problems;
pub use staged::Staged;
pub use tally::Tally;
pub use unpack::{Links, Unpack, UnpackError};
