//! Writes one file, all of it or nothing.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Component, Path, PathBuf};

use bhatti_tree::Staged;
use bhatti_wire::message::WriteFile;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::file::{CHUNK, FileError, Turn, absolute, blocking, followed, turn};
use crate::guest::Guest;

/// The largest file this operation writes.
pub const MAX_FILE: u64 = 100 << 20;

/// Writes what `content` brings to the path of `request`, as the guest's user.
///
/// Readers see the old file or the new one, and so does whoever looks after a power cut; once
/// this has returned they see the new one. A symlink at the path is replaced, not followed.
pub async fn write_file<R>(
    guest: &Guest,
    request: WriteFile,
    content: &mut R,
) -> Result<(), FileError>
where
    R: AsyncRead + Unpin,
{
    let (owner, size) = (guest.owner, request.size);
    let turn = turn(guest).await?;
    let target = blocking(move || Target::prepare(request, owner, turn)).await?;
    let target = receive(size, content, target).await?;
    // The host half-closes when it means it. One that has given up since has not.
    let mut excess = [0];
    content.read(&mut excess).await.map_err(|_| FileError::Short { got: size, size })?;
    blocking(move || target.publish(owner)).await
}

/// So many bytes are sent to the disk at a time, while more arrive.
const EARLY: u64 = 4 << 20;

/// Moves the content to the file; the next chunk arrives while one is written.
async fn receive<R>(size: u64, content: &mut R, target: Target) -> Result<Target, FileError>
where
    R: AsyncRead + Unpin,
{
    let mut target = target;
    let (mut arriving, mut writing) = (Vec::new(), Vec::new());
    let mut got = fill(content, &mut arriving, size).await;
    loop {
        let done = got == size;
        if !done && arriving.len() < CHUNK {
            return Err(FileError::Short { got, size });
        }
        std::mem::swap(&mut arriving, &mut writing);
        let written = blocking(move || target.write(writing));
        let filled =
            async { if done { 0 } else { fill(content, &mut arriving, size - got).await } };
        let (written, more) = tokio::join!(written, filled);
        (target, writing) = written?;
        if done {
            return Ok(target);
        }
        got += more;
    }
}

/// Replaces what is in `chunk` by what comes next, up to `limit`. Returns how much that is: less
/// than a chunk if the sender is gone, which an error and an early end say alike.
async fn fill<R: AsyncRead + Unpin>(content: &mut R, chunk: &mut Vec<u8>, limit: u64) -> u64 {
    let limit = usize::try_from(limit).map_or(CHUNK, |limit| limit.min(CHUNK));
    chunk.resize(limit, 0);
    let mut got = 0;
    while got < limit {
        match content.read(&mut chunk[got..]).await {
            Ok(n @ 1..) => got += n,
            Ok(0) | Err(_) => break,
        }
    }
    chunk.truncate(got);
    got as u64
}

/// A file to be, beside the one it is to replace.
struct Target {
    path: PathBuf,
    name: OsString,
    mode: u32,
    parent: File,
    staged: Staged,
    written: u64,
    /// How much of that is on its way to the disk already.
    begun: u64,
    _turn: Turn,
}

impl Target {
    fn prepare(request: WriteFile, owner: (u32, u32), turn: Turn) -> Result<Self, FileError> {
        let path = check(&request)?;
        let name = path.file_name().unwrap_or_default().to_owned();
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = followed(parent, |parent| match parent.metadata() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            // It may not be there yet.
            _ => Ok(parent.to_owned()),
        });
        let directory = directory.map_err(FileError::io("look at", parent))?;
        make_parents(&directory, owner)?;
        let mode = match std::fs::symlink_metadata(directory.join(&name)) {
            Ok(meta) if request.keep_mode && meta.is_file() => meta.mode() & 0o1777,
            _ => request.mode & 0o7777,
        };
        let parent = File::open(&directory).map_err(FileError::io("open", directory))?;
        let staged = Staged::create(parent.as_fd())
            .map_err(FileError::io("create a file beside", path.clone()))?;
        Ok(Self { path, name, mode, parent, staged, written: 0, begun: 0, _turn: turn })
    }

    fn write(mut self, chunk: Vec<u8>) -> Result<(Self, Vec<u8>), FileError> {
        let file = self.staged.file();
        file.write_all(&chunk).map_err(FileError::io("write", self.path.clone()))?;
        self.written += chunk.len() as u64;
        if self.written - self.begun >= EARLY {
            begin_writeback(file, self.begun, self.written - self.begun);
            self.begun = self.written;
        }
        Ok((self, chunk))
    }

    fn publish(mut self, owner: (u32, u32)) -> Result<(), FileError> {
        let failed = |action| FileError::io(action, self.path.clone());
        let file = self.staged.file();
        // Ownership first: changing it clears set-id bits.
        fchown(&mut *file, Some(owner.0), Some(owner.1)).map_err(failed("change the owner of"))?;
        file.set_permissions(Permissions::from_mode(self.mode))
            .map_err(failed("set the mode of"))?;
        file.sync_all().map_err(failed("write"))?;
        self.staged.publish(&self.name).map_err(failed("replace"))?;
        // The content is on disk, but its name is not until the directory is, and with it the
        // journal of the directories above.
        self.parent.sync_all().map_err(failed("write the directory of"))
    }
}

/// Has the kernel write a part of a file to the disk while more of it is on its way here: the sync
/// at the end then has little to wait for.
fn begin_writeback(file: &File, from: u64, length: u64) {
    let (Ok(from), Ok(length)) = (i64::try_from(from), i64::try_from(length)) else { return };
    // SAFETY: no memory is passed; the descriptor is open.
    unsafe {
        // Only a start: what fails here fails in the sync too, and is told there.
        libc::sync_file_range(file.as_raw_fd(), from, length, libc::SYNC_FILE_RANGE_WRITE);
    }
}

fn check(request: &WriteFile) -> Result<PathBuf, FileError> {
    let path = &request.path;
    let target = absolute(path.clone())?;
    if path.ends_with('/') || !matches!(target.components().next_back(), Some(Component::Normal(_)))
    {
        return Err(FileError::NoName { path: path.clone() });
    }
    if request.size > MAX_FILE {
        return Err(FileError::TooLarge { size: request.size });
    }
    if std::fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_dir()) {
        return Err(FileError::IsDirectory { path: path.clone() });
    }
    Ok(target)
}

/// Makes the directories that are missing, and gives those, and only those, to `owner`.
fn make_parents(parent: &Path, owner: (u32, u32)) -> Result<(), FileError> {
    let missing: Vec<_> = parent.ancestors().take_while(|path| !path.is_dir()).collect();
    for path in missing.into_iter().rev() {
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(path)
            // Not the umask's decision.
            .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o755)))
            .and_then(|()| chown(path, Some(owner.0), Some(owner.1)))
            .or_else(|error| match error.kind() {
                // Somebody else was first, to whom it belongs.
                io::ErrorKind::AlreadyExists if path.is_dir() => Ok(()),
                io::ErrorKind::AlreadyExists => Err(io::ErrorKind::NotADirectory.into()),
                _ => Err(error),
            })
            .map_err(FileError::io("make directory", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
