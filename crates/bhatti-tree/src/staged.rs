//! A file that has no name until it is whole.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

/// A new file in a directory, to be written and then published under its name.
///
/// Dropped before that, or with the whole machine, it leaves nothing behind: it has no name. Only
/// where a file system knows no files without a name (NFS, FAT, some overlays) it has an
/// unguessable one, which a crash leaves behind.
#[derive(Debug)]
pub struct Staged {
    dir: OwnedFd,
    file: File,
    /// What it is called meanwhile, if it must be called something.
    name: Option<OsString>,
}

impl Staged {
    /// Makes an empty file that only its owner may read.
    pub fn create(dir: BorrowedFd<'_>) -> io::Result<Self> {
        let dir = dir.try_clone_to_owned()?;
        match Self::nameless(dir.as_fd()) {
            Ok(file) => Ok(Self { dir, file, name: None }),
            // What file systems and kernels without such files answer.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                let name = unguessable()?;
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
                let file = openat(&dir, name.as_os_str(), flags, PRIVATE)?;
                Ok(Self { dir, file: file.into(), name: Some(name) })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn nameless(dir: BorrowedFd<'_>) -> nix::Result<File> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        openat(dir, c".", flags, PRIVATE).map(File::from)
    }

    /// The file, to be written.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it its name, in place of whatever has it. A directory cannot be replaced.
    ///
    /// Does not wait for the disk: who needs that syncs the file before, and the directory after.
    pub fn publish(mut self, name: &OsStr) -> io::Result<()> {
        if self.name.is_none() {
            match self.link(name) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            // Only a name can replace a name. This one lives for a moment.
            let own = unguessable()?;
            self.link(&own)?;
            self.name = Some(own);
        }
        let own = self.name.as_deref().unwrap_or_default();
        renameat(&self.dir, own, &self.dir, name)?;
        self.name = None;
        Ok(())
    }

    fn link(&self, name: &OsStr) -> nix::Result<()> {
        let file = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .map_err(|_| Errno::EINVAL)?;
        linkat(AT_FDCWD, file.as_c_str(), &self.dir, name, AtFlags::AT_SYMLINK_FOLLOW)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Whoever removed it was first.
            unlinkat(&self.dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir).ok();
        }
    }
}

const PRIVATE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// A name nobody can have prepared for.
pub(crate) fn unguessable() -> io::Result<OsString> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(format!(".bhatti-tmp-{:016x}", u64::from_ne_bytes(random)).into())
}
