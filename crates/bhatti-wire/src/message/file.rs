//! Single files: read, written, looked at, listed.

use super::Failure;

/// Writes one file, atomically (fsync before it gets its name), as root, and gives it and the
/// directories it had to make to uid 1000. Without the half-close behind the content there is no
/// file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteFile {
    /// Absolute path in the guest. A symlink there is replaced, not followed.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Permission bits.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// How many bytes follow. Fewer is an error and leaves no file.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// `mode` is for a new file only: one that is there keeps its permission bits, without
    /// set-id. An agent that does not know this field uses `mode`.
    #[prost(bool, tag = "4")]
    pub keep_mode: bool,
}

/// Reads a regular file; symlinks are followed. Feature `files`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadFile {
    /// Absolute path in the guest.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Which part of it. `None`: all.
    #[prost(oneof = "FilePart", tags = "2, 3, 4")]
    pub part: Option<FilePart>,
}

/// A part of a file.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum FilePart {
    #[prost(message, tag = "2")]
    Bytes(ByteRange),
    /// The last so many bytes.
    #[prost(uint64, tag = "3")]
    Tail(u64),
    #[prost(message, tag = "4")]
    Lines(LineRange),
}

/// Bytes from an offset on.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ByteRange {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// At most so many. 0: to the end.
    #[prost(uint64, tag = "2")]
    pub length: u64,
}

/// Whole lines, each ended with a newline, even the last. One longer than [`MAX_LINE`] ends it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct LineRange {
    /// The first has number 1.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// At most so many. 0: no limit.
    #[prost(uint64, tag = "2")]
    pub count: u64,
    /// At most so many bytes, newlines included. 0: no limit.
    #[prost(uint64, tag = "3")]
    pub max_bytes: u64,
}

/// The longest line that a [`LineRange`] has, in bytes, without its newline.
pub const MAX_LINE: usize = 256 * 1024;

/// Looks at what a path leads to; symlinks are followed. Feature `files`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatFile {
    /// Absolute path in the guest.
    #[prost(string, tag = "1")]
    pub path: String,
}

/// The answer to [`StatFile`], and what comes before the content of [`ReadFile`] and
/// [`ReadArchive`](super::ReadArchive).
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileReply {
    /// Nothing below means anything, and nothing follows. On the tag [`Reply`](super::Reply) has
    /// it.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
    #[prost(message, optional, tag = "2")]
    pub info: Option<FileInfo>,
    /// Where in the file the content begins, if its length is given.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// How many bytes follow. `None`: as many as come before the half-close.
    #[prost(uint64, optional, tag = "4")]
    pub length: Option<u64>,
}

/// What is known of a file without reading it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileInfo {
    /// In a list; otherwise empty. What is no UTF-8 has U+FFFD.
    #[prost(string, tag = "1")]
    pub name: String,
    /// In bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Permission bits, set-id and sticky included.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(enumeration = "FileKind", tag = "4")]
    pub kind: i32,
    /// Last change of the content, in seconds since the Unix epoch.
    #[prost(sint64, tag = "5")]
    pub mtime: i64,
}

/// What sort of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum FileKind {
    /// A device, FIFO, socket.
    Special = 0,
    Regular = 1,
    Directory = 2,
    Symlink = 3,
}

/// Lists a directory; a symlink that leads to one is followed, those in it are not. Feature
/// `files`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListDirectory {
    /// Absolute path in the guest.
    #[prost(string, tag = "1")]
    pub path: String,
}

/// The most entries of one directory that are listed.
pub const MAX_ENTRIES: usize = 10_000;

/// A part of the answer to [`ListDirectory`]. There are as many as it takes, then the half-close.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DirectoryPart {
    /// Ends the answer. On the tag [`Reply`](super::Reply) has it.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<FileInfo>,
    /// In the last part: how many entries the directory has, listed or not.
    #[prost(uint64, optional, tag = "3")]
    pub total: Option<u64>,
}
