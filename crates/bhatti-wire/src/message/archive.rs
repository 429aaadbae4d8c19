//! Whole trees of files, as tar.

use super::Failure;

/// Reads a file or a tree as a tar archive. The path itself is followed if it is a symlink, those
/// beneath it are in the archive. Feature `archive`.
///
/// What could not be read is told in the archive, see `bhatti_tree`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadArchive {
    /// Absolute path in the guest.
    #[prost(string, tag = "1")]
    pub path: String,
    /// What the path is called in the archive: the first component of every name. Empty: as the
    /// last component of the path, or `.` if that has no name (`/`, `a/.`).
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Unpacks the tar archive that follows, up to the half-close, beneath a directory that is there.
/// Everything belongs to uid 1000 afterwards. Feature `archive`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteArchive {
    /// Absolute path in the guest; a symlink is followed.
    #[prost(string, tag = "1")]
    pub directory: String,
}

/// The answer to [`WriteArchive`]. What was unpacked before a failure stays, each file whole.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArchiveReply {
    /// On the tag [`Reply`](super::Reply) has it.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
    /// Regular files that were written.
    #[prost(uint64, tag = "2")]
    pub files: u64,
    /// What is in them.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    /// What was left out, a sentence each: the first [`MAX_PROBLEMS`].
    #[prost(string, repeated, tag = "4")]
    pub problems: Vec<String>,
    /// How many there were.
    #[prost(uint64, tag = "5")]
    pub problem_count: u64,
}

/// How many problems are told in words.
pub const MAX_PROBLEMS: usize = 20;
