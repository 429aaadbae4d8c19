//! The data directory: who owns what, and making and removing a sandbox's part of it.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use bhatti_types::EngineId;
use camino::{Utf8Path, Utf8PathBuf};

/// The data directory cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("failed to {action} {path}")]
    File {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "data directory {path} belongs to uid {uid}, not to root: chown it, or set another data_dir"
    )]
    Foreign { path: Utf8PathBuf, uid: u32 },
    #[error("data directory {path} is not a directory")]
    NotADirectory { path: Utf8PathBuf },
    #[error("another bhatti daemon uses {path} already")]
    Locked { path: Utf8PathBuf },
}

/// The directories of a data directory, and who may look into them. A VMM reopens its kernel by
/// itself and lives below `sandboxes`; images it gets as open files.
const PARTS: [(&str, u32); 4] =
    [("bases", 0o700), ("images", 0o700), ("kernel", 0o711), ("sandboxes", 0o711)];

/// The data directory, opened and locked for this daemon.
#[derive(Debug)]
pub struct Layout {
    root: Utf8PathBuf,
    /// Held for its lock, which goes with the process however it ends.
    _lock: std::fs::File,
}

fn file(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::File { action, path, source }
}

impl Layout {
    /// Makes the directories that are missing and takes the lock: two daemons on one directory
    /// would fight over every sandbox in it.
    pub fn open(root: &Utf8Path) -> Result<Self, DiskError> {
        std::fs::create_dir_all(root).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                DiskError::NotADirectory { path: root.to_owned() }
            }
            _ => file("create", root)(error),
        })?;
        let metadata = root.metadata().map_err(file("read", root))?;
        let me = nix::unistd::geteuid().as_raw();
        if metadata.uid() != me {
            return Err(DiskError::Foreign { path: root.to_owned(), uid: metadata.uid() });
        }
        let parts = PARTS.map(|(name, mode)| (root.join(name), mode));
        for (dir, mode) in std::iter::once((root.to_owned(), 0o711)).chain(parts) {
            std::fs::create_dir_all(&dir).map_err(file("create", &dir))?;
            std::fs::set_permissions(&dir, Permissions::from_mode(mode))
                .map_err(file("set the mode of", &dir))?;
        }
        let path = root.join("lock");
        // Private: whoever can open it can hold its lock, and a VMM may pass through here.
        let lock = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|lock| lock.set_permissions(Permissions::from_mode(0o600)).map(|()| lock))
            .map_err(file("create", &path))?;
        lock.try_lock().map_err(|_| DiskError::Locked { path: root.to_owned() })?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// The database file.
    pub fn database(&self) -> Utf8PathBuf {
        self.root.join("state.db")
    }

    /// Where built-in images are.
    pub fn images(&self) -> Utf8PathBuf {
        self.root.join("images")
    }

    /// The directory of one machine, whether or not it exists.
    pub fn sandbox(&self, id: &EngineId) -> Utf8PathBuf {
        self.root.join("sandboxes").join(id.as_str())
    }

    /// Makes the directory of one machine, private to `uid`.
    pub fn make_sandbox(&self, id: &EngineId, uid: u32) -> Result<Utf8PathBuf, DiskError> {
        let dir = self.sandbox(id);
        std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(file("create", &dir))?;
        std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).map_err(file("chown", &dir))?;
        Ok(dir)
    }

    fn base(&self, id: &EngineId) -> Utf8PathBuf {
        self.root.join("bases").join(id.as_str())
    }

    /// Gives one machine its own name for an image's file, so that replacing or deleting the
    /// image takes nothing from under the machine's disk. It is a link: nothing is copied. It
    /// lies outside the machine's directory, where its VMM could put something else in its place.
    pub fn pin_image(&self, id: &EngineId, image: &Utf8Path) -> Result<Utf8PathBuf, DiskError> {
        let base = self.base(id);
        match std::fs::remove_file(&base) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(file("remove", &base)(error));
            }
            _ => {}
        }
        // The file itself, if the image is a symbolic link to it.
        let image = image.canonicalize_utf8().map_err(file("find", image))?;
        std::fs::hard_link(image, &base).map_err(file("link an image to", &base))?;
        Ok(base)
    }

    /// Removes everything of one machine. Removing what is not there is fine.
    pub fn remove_sandbox(&self, id: &EngineId) -> Result<(), DiskError> {
        fn gone(path: &Utf8Path, result: std::io::Result<()>) -> Result<(), DiskError> {
            match result {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(file("remove", path)(error))
                }
                _ => Ok(()),
            }
        }
        let (dir, base) = (self.sandbox(id), self.base(id));
        gone(&dir, std::fs::remove_dir_all(&dir))?;
        gone(&base, std::fs::remove_file(&base))
    }

    /// Removes machine directories that nobody in `keep` owns; returns what went.
    pub fn sweep(&self, keep: &[EngineId]) -> Result<Vec<EngineId>, DiskError> {
        let mut removed = Vec::new();
        for dir in ["sandboxes", "bases"].map(|name| self.root.join(name)) {
            for entry in dir.read_dir_utf8().map_err(file("list", &dir))? {
                let entry = entry.map_err(file("list", &dir))?;
                // Only what has a name of ours: anything else is not ours to remove.
                let Ok(id) = entry.file_name().parse::<EngineId>() else { continue };
                if !keep.contains(&id) {
                    self.remove_sandbox(&id)?;
                    removed.push(id);
                }
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("data")).unwrap();
        (dir, path)
    }

    #[test]
    fn one_daemon_at_a_time() {
        let (_dir, root) = scratch();
        let first = Layout::open(&root).unwrap();
        assert!(matches!(Layout::open(&root), Err(DiskError::Locked { .. })));
        drop(first);
        Layout::open(&root).unwrap();
    }

    #[test]
    fn a_foreign_or_impossible_directory_is_refused() {
        let (dir, root) = scratch();
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::chown(&root, Some(12345), None).expect("tests run as root");
        assert!(matches!(Layout::open(&root), Err(DiskError::Foreign { uid: 12345, .. })));
        let file = Utf8PathBuf::from_path_buf(dir.path().join("file")).unwrap();
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Layout::open(&file), Err(DiskError::NotADirectory { .. })));
    }

    #[test]
    fn a_replaced_image_stays_under_the_disks_that_stand_on_it() {
        let (_dir, root) = scratch();
        let layout = Layout::open(&root).unwrap();
        let (id, image) = (EngineId::random(), layout.images().join("x.ext4"));
        std::fs::write(&image, "old").unwrap();
        let base = layout.pin_image(&id, &image).unwrap();
        std::fs::write(root.join("new"), "new").unwrap();
        std::fs::rename(root.join("new"), &image).unwrap();
        assert_eq!(std::fs::read_to_string(&base).unwrap(), "old");
        assert_eq!(layout.pin_image(&id, &image).unwrap(), base);
        assert_eq!(std::fs::read_to_string(&base).unwrap(), "new");
        layout.remove_sandbox(&id).unwrap();
        assert!(!base.exists());
        layout.pin_image(&id, &image).unwrap();
        assert_eq!(layout.sweep(&[]).unwrap(), [id]);
    }

    #[test]
    fn sandbox_directories_are_private_and_swept() {
        let (_dir, root) = scratch();
        let layout = Layout::open(&root).unwrap();
        let (kept, gone) = (EngineId::random(), EngineId::random());
        let dir = layout.make_sandbox(&kept, 4242).unwrap();
        layout.make_sandbox(&gone, 4243).unwrap();
        std::fs::create_dir(root.join("sandboxes/someone-elses")).unwrap();
        let metadata = dir.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (4242, 0o700));
        assert!(layout.make_sandbox(&kept, 1).is_err(), "an id is never reused");
        assert_eq!(layout.sweep(std::slice::from_ref(&kept)).unwrap(), [gone]);
        assert!(dir.exists() && root.join("sandboxes/someone-elses").exists());
        layout.remove_sandbox(&kept).unwrap();
        layout.remove_sandbox(&kept).unwrap();
    }
}
