//! The data directory: who owns what, and making and removing a part of it.
//!
//! Promises: what is removed was forgotten by the store before, or never known to it, so what a
//! crash leaves half-made or half-removed is unknown to the store, and a sweep removes it.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::num::ParseIntError;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::str::FromStr;

use bhatti_types::{EngineId, GoldenId, SnapshotId};
use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{DiskError, file};
use crate::{remove, tree};

/// The directories of a data directory, and who may look into them. A VMM reopens its kernel by
/// itself and lives below `sandboxes`; images it gets as open files.
const PARTS: [(&str, u32); 8] = [
    ("bases", 0o700),
    ("frozen", 0o700),
    ("goldens", 0o700),
    ("images", 0o700),
    ("kernel", 0o711),
    ("layers", 0o700),
    ("sandboxes", 0o711),
    ("snapshots", 0o700),
];

/// The parts where a machine has something under its name.
const OF_MACHINES: [&str; 4] = ["sandboxes", "frozen", "layers", "bases"];

/// The data directory, opened and locked for this daemon.
#[derive(Debug)]
pub struct Layout {
    root: Utf8PathBuf,
    /// Held for its lock, which goes with the process however it ends.
    _lock: std::fs::File,
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
        tree::sync(root)?;
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
        gone(&base, std::fs::remove_file(&base))?;
        // The file itself, if the image is a symbolic link to it.
        let image = image.canonicalize_utf8().map_err(file("find", image))?;
        std::fs::hard_link(image, &base).map_err(file("link an image to", &base))?;
        Ok(base)
    }

    /// Where a golden snapshot is, whether or not it exists.
    pub fn golden(&self, id: &GoldenId) -> Utf8PathBuf {
        self.root.join("goldens").join(id.as_str())
    }

    /// Makes the empty directory of a golden snapshot, in place of a leftover.
    pub fn make_golden(&self, id: &GoldenId) -> Result<Utf8PathBuf, DiskError> {
        make_empty(self.golden(id))
    }

    /// Removes a golden snapshot, which the store must have forgotten before. Removing what is
    /// not there is fine.
    pub fn remove_golden(&self, id: &GoldenId) -> Result<(), DiskError> {
        remove_dir(&self.golden(id))
    }

    /// Where a named snapshot is, whether or not it exists.
    pub fn snapshot(&self, id: &SnapshotId) -> Utf8PathBuf {
        self.root.join("snapshots").join(id.as_str())
    }

    /// Makes the empty directory of a named snapshot, in place of a leftover.
    pub fn make_snapshot(&self, id: &SnapshotId) -> Result<Utf8PathBuf, DiskError> {
        make_empty(self.snapshot(id))
    }

    /// Removes a named snapshot, which the store must have forgotten before. Removing what is
    /// not there is fine.
    pub fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), DiskError> {
        remove_dir(&self.snapshot(id))
    }

    /// Where a generation of a machine is, whether or not it exists.
    pub fn frozen(&self, id: &EngineId, number: u32) -> Utf8PathBuf {
        self.all_frozen(id).join(number.to_string())
    }

    /// Makes the empty directory of a generation, in place of a leftover of that number.
    pub fn make_frozen(&self, id: &EngineId, number: u32) -> Result<Utf8PathBuf, DiskError> {
        make_durable(&self.all_frozen(id))?;
        make_empty(self.frozen(id, number))
    }

    /// Removes a generation, which the store must have forgotten before. Removing what is not
    /// there is fine.
    pub fn remove_frozen(&self, id: &EngineId, number: u32) -> Result<(), DiskError> {
        remove_dir(&self.frozen(id, number))
    }

    fn all_frozen(&self, id: &EngineId) -> Utf8PathBuf {
        self.root.join("frozen").join(id.as_str())
    }

    /// Where a sealed layer of a machine's disk is, whether or not it exists.
    pub fn layer(&self, id: &EngineId, number: u32) -> Utf8PathBuf {
        self.layers(id).join(layer_name(number))
    }

    /// Makes the directory for the sealed layers of a machine's disk, if it is missing.
    pub fn make_layers(&self, id: &EngineId) -> Result<Utf8PathBuf, DiskError> {
        let dir = self.layers(id);
        make_durable(&dir)?;
        Ok(dir)
    }

    /// Makes a golden's or a snapshot's layer one of this machine's too, so that it stays when
    /// they go. Nothing is copied; a leftover of that number is replaced.
    pub fn link_layer(
        &self,
        id: &EngineId,
        number: u32,
        from: &Utf8Path,
    ) -> Result<Utf8PathBuf, DiskError> {
        if !from.symlink_metadata().map_err(file("read", from))?.is_file() {
            return Err(DiskError::NotAFile { path: from.to_owned() });
        }
        self.make_layers(id)?;
        let layer = self.layer(id, number);
        gone(&layer, std::fs::remove_file(&layer))?;
        std::fs::hard_link(from, &layer).map_err(file("make a link at", &layer))?;
        Ok(layer)
    }

    fn layers(&self, id: &EngineId) -> Utf8PathBuf {
        self.root.join("layers").join(id.as_str())
    }

    /// Removes everything of one machine. Removing what is not there is fine.
    pub fn remove_sandbox(&self, id: &EngineId) -> Result<(), DiskError> {
        for part in OF_MACHINES {
            let path = self.root.join(part).join(id.as_str());
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => remove_dir(&path)?,
                _ => gone(&path, std::fs::remove_file(&path))?,
            }
        }
        Ok(())
    }

    /// Removes what belongs to machines, goldens and snapshots that are not to be kept; returns
    /// what went. Only what has a name of ours: anything else is not ours to remove.
    pub fn sweep(
        &self,
        keep: &[EngineId],
        goldens: &[GoldenId],
        snapshots: &[SnapshotId],
    ) -> Result<Vec<Utf8PathBuf>, DiskError> {
        let mut removed = Vec::new();
        for part in OF_MACHINES {
            for (path, id) in named::<EngineId>(&self.root.join(part))? {
                if !keep.contains(&id) {
                    self.remove_sandbox(&id)?;
                    removed.push(path);
                }
            }
        }
        for (path, id) in named::<GoldenId>(&self.root.join("goldens"))? {
            if !goldens.contains(&id) {
                remove_dir(&path)?;
                removed.push(path);
            }
        }
        for (path, id) in named::<SnapshotId>(&self.root.join("snapshots"))? {
            if !snapshots.contains(&id) {
                remove_dir(&path)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// Removes the generations of a machine that are not to be kept; returns what went.
    pub fn sweep_frozen(&self, id: &EngineId, keep: &[u32]) -> Result<Vec<Utf8PathBuf>, DiskError> {
        let mut removed = Vec::new();
        for (path, number) in named::<u32>(&self.all_frozen(id))? {
            if !keep.contains(&number) {
                remove_dir(&path)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// Removes the sealed layers of a machine that are not to be kept; returns what went.
    ///
    /// Layers are told apart by machine and number alone: a record that calls the data directory
    /// by another name (a symbolic link, say) keeps its layers.
    pub fn sweep_layers(
        &self,
        id: &EngineId,
        keep: &[Utf8PathBuf],
    ) -> Result<Vec<Utf8PathBuf>, DiskError> {
        let mut removed = Vec::new();
        for (path, LayerName(number)) in named::<LayerName>(&self.layers(id))? {
            let ours = Utf8Path::new(id.as_str()).join(layer_name(number));
            if !keep.iter().any(|kept| kept.ends_with(&ours)) {
                gone(&path, std::fs::remove_file(&path))?;
                removed.push(path);
            }
        }
        Ok(removed)
    }
}

/// `<number>.qcow2`, in a directory of layers.
struct LayerName(u32);

fn layer_name(number: u32) -> String {
    format!("{number}.qcow2")
}

impl FromStr for LayerName {
    type Err = ParseIntError;
    fn from_str(name: &str) -> Result<Self, ParseIntError> {
        name.strip_suffix(".qcow2").unwrap_or_default().parse().map(Self)
    }
}

/// What in `dir` has a name that is a `T`. A directory that is not there has nothing.
fn named<T: FromStr>(dir: &Utf8Path) -> Result<Vec<(Utf8PathBuf, T)>, DiskError> {
    let entries = match dir.read_dir_utf8() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file("list", dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(file("list", dir))?;
        if let Ok(name) = entry.file_name().parse() {
            found.push((entry.into_path(), name));
        }
    }
    Ok(found)
}

/// Makes `dir`, which nobody but us can enter, without what was there.
fn make_empty(dir: Utf8PathBuf) -> Result<Utf8PathBuf, DiskError> {
    remove_dir(&dir)?;
    private_dir(&dir).map_err(file("create", &dir))?;
    Ok(dir)
}

/// Makes `dir` if it is missing, with its name on the medium: what is put into it and synced
/// must not be lost with it.
fn make_durable(dir: &Utf8Path) -> Result<(), DiskError> {
    match private_dir(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => {
            made.map_err(file("create", dir))?;
            dir.parent().map_or(Ok(()), tree::sync)
        }
    }
}

fn private_dir(dir: &Utf8Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

fn remove_dir(dir: &Utf8Path) -> Result<(), DiskError> {
    gone(dir, remove::remove_tree(dir.as_std_path()))
}

fn gone(path: &Utf8Path, removed: std::io::Result<()>) -> Result<(), DiskError> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
