//! Flat directories of plain files, as snapshots are: linked, synced, measured.
//!
//! Promises: a link is never a copy, and what is not a plain file is refused rather than left
//! out, so that a linked tree is whole or is none. These block; callers are on a thread that may.

use std::fs::File;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{DiskError, file};

/// Gives every file in `from` a second name in `to`, which exists; returns the size of them all.
/// On failure some are linked: `to` is to be removed.
pub fn link_tree(from: &Utf8Path, to: &Utf8Path) -> Result<u64, DiskError> {
    let mut bytes = 0;
    for (path, size) in plain_files(from)? {
        let name = to.join(path.file_name().unwrap_or_default());
        std::fs::hard_link(&path, &name).map_err(file("make a link at", &name))?;
        bytes += size;
    }
    Ok(bytes)
}

/// Gives one file a second name.
pub fn link_file(from: &Utf8Path, to: &Utf8Path) -> Result<(), DiskError> {
    std::fs::hard_link(from, to).map_err(file("make a link at", to))
}

/// Returns when every file in `dir`, their names, and the name of `dir` itself are on the medium;
/// also that of the directory it is in, which may have been made with it.
pub fn sync_tree(dir: &Utf8Path) -> Result<(), DiskError> {
    for (path, _) in plain_files(dir)? {
        sync(&path)?;
    }
    dir.ancestors().take(3).try_for_each(sync)
}

/// The size of every file in `dir` together, whoever else has a link to it.
pub fn bytes_of(dir: &Utf8Path) -> Result<u64, DiskError> {
    Ok(plain_files(dir)?.into_iter().map(|(_, size)| size).sum())
}

/// Puts a file, or the names in a directory, on the medium.
pub(crate) fn sync(path: &Utf8Path) -> Result<(), DiskError> {
    File::open(path).and_then(|opened| opened.sync_all()).map_err(file("sync", path))
}

fn plain_files(dir: &Utf8Path) -> Result<Vec<(Utf8PathBuf, u64)>, DiskError> {
    let mut files = Vec::new();
    for entry in dir.read_dir_utf8().map_err(file("list", dir))? {
        let path = entry.map_err(file("list", dir))?.into_path();
        let metadata = path.symlink_metadata().map_err(file("read", &path))?;
        if !metadata.is_file() {
            return Err(DiskError::NotAFile { path });
        }
        files.push((path, metadata.len()));
    }
    Ok(files)
}
