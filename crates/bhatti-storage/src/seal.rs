//! Taking files out of a machine's directory, which its VMM could write: what was there is not
//! trusted to be what it should.

use std::fs::{File, Permissions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use bhatti_types::{EngineId, SnapshotId};
use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{DiskError, file};
use crate::layout::Layout;
use crate::remove;
use crate::tree::sync;

/// `O_NOFOLLOW` and `O_NONBLOCK`: neither a link nor a pipe is what we are after.
const CAREFUL: i32 = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;

/// Moves the disk layer `top` of an ended machine to `sealed`, where only root can read it and
/// nobody writes. Idempotent: one that has been moved is there already.
pub fn seal_layer(top: &Utf8Path, sealed: &Utf8Path) -> Result<(), DiskError> {
    let is_there = sealed.symlink_metadata().is_ok();
    let source = if is_there { sealed } else { top };
    let opened = File::options()
        .read(true)
        .custom_flags(CAREFUL)
        .open(source)
        .map_err(file("open", source))?;
    let metadata = opened.metadata().map_err(file("read", source))?;
    if !metadata.is_file() {
        return Err(DiskError::NotAFile { path: source.to_owned() });
    }
    // The descriptor, not the name, is what is given away.
    std::os::unix::fs::fchown(&opened, Some(0), Some(0)).map_err(file("chown", source))?;
    opened.set_permissions(Permissions::from_mode(0o400)).map_err(file("chmod", source))?;
    if !is_there {
        if let Some(parent) = sealed.parent() {
            std::fs::create_dir_all(parent).map_err(file("create", parent))?;
        }
        std::fs::rename(top, sealed).map_err(file("move a disk layer to", sealed))?;
        let moved = sealed.symlink_metadata().map_err(file("read", sealed))?;
        if (moved.dev(), moved.ino()) != (metadata.dev(), metadata.ino()) {
            let other = Error::new(ErrorKind::InvalidData, "it was replaced while it was moved");
            return Err(file("seal", sealed)(other));
        }
    }
    opened.sync_all().map_err(file("sync", sealed))?;
    // The directory it is in may have been made just now.
    sealed.ancestors().skip(1).take(2).try_for_each(sync)
}

impl Layout {
    /// Where a named snapshot's memory is: what an engine saved, and nothing else.
    pub fn snapshot_memory(&self, id: &SnapshotId) -> Utf8PathBuf {
        self.snapshot(id).join("memory")
    }

    /// Where its disk is.
    pub fn snapshot_disk(&self, id: &SnapshotId) -> Utf8PathBuf {
        self.snapshot(id).join("disk")
    }

    /// Makes both, empty, replacing leftovers.
    pub fn make_snapshot_parts(&self, id: &SnapshotId) -> Result<(), DiskError> {
        self.make_snapshot(id)?;
        for dir in [self.snapshot_memory(id), self.snapshot_disk(id)] {
            std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(file("create", &dir))?;
        }
        Ok(())
    }

    /// Removes everything in the directory of a machine that has ended, and leaves the directory.
    pub fn clear_sandbox(&self, id: &EngineId) -> Result<(), DiskError> {
        let dir = self.sandbox(id);
        remove::empty(dir.as_std_path()).map_err(file("clear", &dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    #[test]
    fn sealing_twice_is_sealing_once() {
        let (_dir, path) = scratch();
        let (top, sealed) = (path.join("root"), path.join("layers/1.qcow2"));
        std::fs::write(&top, "disk").unwrap();
        seal_layer(&top, &sealed).unwrap();
        // A new top must not take the place of what was sealed.
        std::fs::write(&top, "new").unwrap();
        seal_layer(&top, &sealed).unwrap();
        assert_eq!(std::fs::read_to_string(&sealed).unwrap(), "disk");
        assert_eq!(sealed.metadata().unwrap().mode() & 0o7777, 0o400);
        assert_eq!(std::fs::read_to_string(&top).unwrap(), "new");
    }

    #[test]
    fn what_is_no_file_is_not_sealed() {
        let (_dir, path) = scratch();
        std::fs::write(path.join("victim"), "x").unwrap();
        let before = path.join("victim").metadata().unwrap().mode();
        std::os::unix::fs::symlink(path.join("victim"), path.join("root")).unwrap();
        seal_layer(&path.join("root"), &path.join("1")).unwrap_err();
        std::fs::create_dir(path.join("dir")).unwrap();
        seal_layer(&path.join("dir"), &path.join("1")).unwrap_err();
        assert!(!path.join("1").exists());
        assert_eq!(path.join("victim").metadata().unwrap().mode(), before);
    }
}
