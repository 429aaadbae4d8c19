//! Writes one file, all of it or nothing.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, fchown};
use std::path::{Component, Path, PathBuf};

use bhatti_wire::message::{ErrorKind, Failure, WriteFile};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// The largest file this operation writes.
pub const MAX_FILE: u64 = 100 << 20;

/// Bytes moved at a time.
const CHUNK: usize = 256 * 1024;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("path {path:?} is not absolute")]
    Relative { path: String },
    #[error("path {path:?} does not name a file")]
    NoName { path: String },
    #[error("{path} is a directory")]
    IsDirectory { path: String },
    #[error("file too large: {size} bytes (max {MAX_FILE})")]
    TooLarge { size: u64 },
    #[error("connection lost after {got}/{size} bytes")]
    Short { got: u64, size: u64 },
    #[error("failed to {action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl WriteError {
    /// As the host sees it.
    pub fn failure(&self) -> Failure {
        let kind = match self {
            Self::Relative { .. }
            | Self::NoName { .. }
            | Self::IsDirectory { .. }
            | Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::Short { .. } => ErrorKind::Other,
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => ErrorKind::Invalid,
                _ => ErrorKind::Other,
            },
        };
        super::failure(kind, self)
    }
}

/// Writes what `content` brings to the path of `request`, as `owner` (uid, gid).
///
/// Readers see the old file or the new one, and so does whoever looks after a power cut; once
/// this has returned they see the new one. A symlink at the path is replaced, not followed.
pub async fn write_file<R>(
    request: &WriteFile,
    owner: (u32, u32),
    content: &mut R,
) -> Result<(), WriteError>
where
    R: AsyncRead + Unpin,
{
    let target = check(request)?;
    let parent = target.parent().unwrap_or(Path::new("/"));
    make_parents(parent, owner)?;
    let mut temporary = Temporary::create(&target)?;
    receive(request.size, content, &mut temporary).await?;
    temporary.publish(&target, request.mode, owner).await
}

fn check(request: &WriteFile) -> Result<PathBuf, WriteError> {
    let path = request.path.clone();
    let target = PathBuf::from(&path);
    if !target.is_absolute() {
        return Err(WriteError::Relative { path });
    }
    if path.ends_with('/')
        || path.contains('\0')
        || !matches!(target.components().next_back(), Some(Component::Normal(_)))
    {
        return Err(WriteError::NoName { path });
    }
    if request.size > MAX_FILE {
        return Err(WriteError::TooLarge { size: request.size });
    }
    if std::fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_dir()) {
        return Err(WriteError::IsDirectory { path });
    }
    Ok(target)
}

/// Makes the directories that are missing, and gives those, and only those, to `owner`.
fn make_parents(parent: &Path, owner: (u32, u32)) -> Result<(), WriteError> {
    let missing: Vec<_> = parent.ancestors().take_while(|path| !path.is_dir()).collect();
    for path in missing.into_iter().rev() {
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(path)
            // Not the umask's decision.
            .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
            .and_then(|()| chown(path, Some(owner.0), Some(owner.1)))
            .map_err(|error| match error.kind() {
                // Something else is there, or it would not be missing.
                io::ErrorKind::AlreadyExists => io::Error::from(io::ErrorKind::NotADirectory),
                _ => error,
            })
            .map_err(|source| WriteError::File {
                action: "make directory",
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(())
}

async fn receive<R>(size: u64, content: &mut R, temporary: &mut Temporary) -> Result<(), WriteError>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = vec![0; CHUNK.min(size as usize).max(1)];
    let mut got = 0;
    while got < size {
        let room = buffer.len().min((size - got) as usize);
        // An error and an early end are the same here: the sender is gone.
        let n = content.read(&mut buffer[..room]).await.unwrap_or(0);
        if n == 0 {
            return Err(WriteError::Short { got, size });
        }
        temporary.file.write_all(&buffer[..n]).await.map_err(temporary.failed("write"))?;
        got += n as u64;
    }
    temporary.file.flush().await.map_err(temporary.failed("write"))
}

/// A file beside the target that vanishes unless it is published.
struct Temporary {
    file: tokio::fs::File,
    path: PathBuf,
    published: bool,
}

impl Temporary {
    fn create(target: &Path) -> Result<Self, WriteError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // Keeps the whole name below the 255 bytes a file system allows.
        let name: String = name.chars().take(40).collect();
        let path = random_hex::<8>()
            .map(|random| target.with_file_name(format!(".{name}.bhatti-tmp-{random}")))
            .map_err(|source| WriteError::File {
                action: "name a temporary for",
                path: target.to_owned(),
                source,
            })?;
        let file = std::os::unix::fs::OpenOptionsExt::mode(&mut std::fs::OpenOptions::new(), 0o600)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| WriteError::File {
                action: "create a file beside",
                path: target.to_owned(),
                source,
            })?;
        Ok(Self { file: tokio::fs::File::from_std(file), path, published: false })
    }

    async fn publish(
        mut self,
        target: &Path,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<(), WriteError> {
        let failed =
            |action| move |source| WriteError::File { action, path: target.to_owned(), source };
        // Ownership first: changing it clears set-id bits.
        fchown(&self.file, Some(owner.0), Some(owner.1)).map_err(failed("change the owner of"))?;
        let permissions = std::fs::Permissions::from_mode(mode & 0o7777);
        self.file.set_permissions(permissions).await.map_err(failed("set the mode of"))?;
        self.file.sync_all().await.map_err(failed("write"))?;
        std::fs::rename(&self.path, target).map_err(failed("replace"))?;
        self.published = true;
        // The content is on disk, but its name is not until the directory is.
        let parent = target.parent().unwrap_or(Path::new("/"));
        sync_directory(parent).await.map_err(failed("write the directory of"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> WriteError + use<> {
        let path = self.path.clone();
        move |source| WriteError::File { action, path, source }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

/// Writes out what was renamed in `path`, and with it the journal of the directories above.
async fn sync_directory(path: &Path) -> io::Result<()> {
    tokio::fs::File::open(path).await?.sync_all().await
}

/// `N` random bytes as hex.
pub(super) fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
