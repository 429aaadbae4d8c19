//! Files: looked at, read, listed. What these operations share with those that write.
//!
//! Promises:
//! - Nothing waits for a disk on the agent's one thread. Every touch of a file runs on a thread of
//!   its own, and [`MAX_OPERATIONS`] operations touch files at a time; more wait their turn.
//! - Opening has no side effects: what is no regular file is not opened, and nothing can be
//!   exchanged between the look and the opening.
//! - A read costs two chunks of memory, whatever the size of the file and the pace of the host.

mod lines;
mod list;
mod read;

use std::fs::{File, FileType, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bhatti_wire::message::{ErrorKind, Failure, FileInfo, FileKind, FileReply, StatFile};
use nix::errno::Errno;
use tokio::sync::OwnedSemaphorePermit;

use super::write_file::MAX_FILE;
use crate::guest::Guest;

pub use list::list;
pub use read::read;

/// Most operations on files at one time, archives not counted.
pub const MAX_OPERATIONS: usize = 48;

/// Bytes moved at a time: one window of the link.
pub(super) const CHUNK: usize = bhatti_wire::mux::WINDOW;

/// Why there is no file, or no part of one.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("path {path:?} is not absolute")]
    Relative { path: String },
    #[error("path {path:?} does not name a file")]
    NoName { path: String },
    #[error("file not found")]
    Missing,
    #[error("{path} is a directory")]
    IsDirectory { path: String },
    #[error("{path} is not a directory")]
    NotDirectory { path: String },
    #[error("{path} is not a regular file")]
    NotRegular { path: String },
    #[error("file too large: {size} bytes (max {MAX_FILE})")]
    TooLarge { size: u64 },
    #[error("connection lost after {got}/{size} bytes")]
    Short { got: u64, size: u64 },
    #[error("failed to {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the agent is powering off")]
    Ending,
    #[error("the thread that works on the file ended early")]
    Thread(#[source] tokio::task::JoinError),
}

impl FileError {
    /// For `map_err`: what was being done, and to what. What is not there is [`Self::Missing`]
    /// whatever was being done.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Io { action, path, source },
        }
    }

    /// As the host sees it.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::Relative { .. }
            | Self::NoName { .. }
            | Self::IsDirectory { .. }
            | Self::NotDirectory { .. }
            | Self::NotRegular { .. } => ErrorKind::Invalid,
            Self::Missing => ErrorKind::NotFound,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Short { .. } | Self::Ending | Self::Thread(_) => ErrorKind::Other,
            Self::Io { source, .. } => kind_of(source),
        };
        super::failure(kind, self)
    }
}

/// What a caller may branch on, from what the system said.
pub(super) fn kind_of(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::StorageFull | K::QuotaExceeded => ErrorKind::NoSpace,
        K::FileTooLarge => ErrorKind::TooLarge,
        K::ReadOnlyFilesystem | K::PermissionDenied => ErrorKind::Denied,
        K::NotADirectory | K::IsADirectory | K::InvalidFilename | K::InvalidInput => {
            ErrorKind::Invalid
        }
        // Has no kind of its own yet.
        _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => ErrorKind::Invalid,
        _ => ErrorKind::Other,
    }
}

/// A place among those who work on files. Goes wherever the work goes, and ends with it: a thread
/// that hangs in somebody's network file system keeps its own.
pub(super) type Turn = OwnedSemaphorePermit;

pub(super) async fn turn(guest: &Guest) -> Result<Turn, FileError> {
    Arc::clone(&guest.files).acquire_owned().await.map_err(|_| FileError::Ending)
}

/// Runs `work` on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    tokio::task::spawn_blocking(work).await.map_err(FileError::Thread)?
}

/// Says what a path leads to.
pub async fn stat(guest: &Guest, request: StatFile) -> FileReply {
    let looking = async {
        let turn = turn(guest).await?;
        blocking(move || {
            let path = absolute(request.path)?;
            let meta = followed(&path, |path| std::fs::metadata(path))
                .map_err(FileError::io("look at", path))?;
            drop(turn);
            Ok(info(String::new(), &meta))
        })
        .await
    };
    match looking.await {
        Ok(info) => FileReply { info: Some(info), ..FileReply::default() },
        Err(error) => FileReply { failure: Some(error.failure()), ..FileReply::default() },
    }
}

pub(super) fn absolute(path: String) -> Result<PathBuf, FileError> {
    if !path.starts_with('/') {
        return Err(FileError::Relative { path });
    }
    if path.contains('\0') {
        return Err(FileError::NoName { path });
    }
    Ok(PathBuf::from(path))
}

/// Does `open` with the path, and once more with where its symlinks lead if that was not allowed.
///
/// In a directory that belongs to all (`/tmp`), not even root may follow the links of others: the
/// kernel wants to keep its programs from being led astray. Here somebody asks for just that.
pub(super) fn followed<T>(path: &Path, open: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open(&std::fs::canonicalize(path)?)
        }
        outcome => outcome,
    }
}

/// What the host may know of a file called `name`.
pub(super) fn info(name: String, meta: &Metadata) -> FileInfo {
    let (size, mode, mtime) = (meta.len(), meta.mode() & 0o7777, meta.mtime());
    FileInfo { name, size, mode, kind: kind(meta.file_type()).into(), mtime }
}

fn kind(of: FileType) -> FileKind {
    match of {
        kind if kind.is_file() => FileKind::Regular,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        _ => FileKind::Special,
    }
}

/// Opens a regular file to read it.
///
/// A device may do something when it is opened, and a FIFO waits for a writer. So first only a
/// handle is taken, which opens nothing; if it turns out to be of a regular file, that one is
/// opened, whatever the path leads to by now.
fn open_regular(path: PathBuf) -> Result<(File, Metadata), FileError> {
    let shown = || path.to_string_lossy().into_owned();
    let handle = followed(&path, bhatti_tree::handle).map_err(FileError::io("open", &path))?;
    let meta = handle.metadata().map_err(FileError::io("look at", &path))?;
    if meta.is_dir() {
        return Err(FileError::IsDirectory { path: shown() });
    }
    if !meta.is_file() {
        return Err(FileError::NotRegular { path: shown() });
    }
    let opened = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle));
    // Some files of the kernel's own wait for news unless they are told not to.
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(opened);
    Ok((file.map_err(FileError::io("open", &path))?, meta))
}

#[cfg(test)]
mod tests;
