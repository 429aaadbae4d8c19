//! Remembers what a finished artefact was built from.
//!
//! Promise: if a stamp with the wanted key exists, the artefact beside it is complete. The stamp is
//! removed before the artefact is replaced and written after it, so a crash in between only costs
//! a rebuild.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::process;

/// What is known about a finished artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Hash over everything that went in.
    pub(crate) key: String,
    /// Hash of what came out.
    pub sha256: String,
    /// Apparent size of what came out.
    pub(crate) bytes: u64,
    /// Packages inside as `name=version`, where that says something.
    pub(crate) packages: Vec<String>,
}

/// An artefact with this key, if it was finished before.
pub(crate) fn finished(dir: &Path, name: &str, key: &str) -> Option<Stamp> {
    let text = fs::read_to_string(stamp_path(dir, name)).ok()?;
    let stamp: Stamp = serde_json::from_str(&text).ok()?;
    let size = fs::metadata(dir.join(name)).ok()?.len();
    (stamp.key == key && stamp.bytes == size).then_some(stamp)
}

/// Puts a finished file in its place and stamps it.
pub(crate) fn finish(
    dir: &Path,
    name: &str,
    built: &Path,
    key: &str,
    packages: Vec<String>,
) -> Result<Stamp> {
    let sha256 = file_hash(built)?;
    let file = File::open(built).with_context(|| format!("failed to open {}", built.display()))?;
    file.sync_all().with_context(|| format!("failed to flush {}", built.display()))?;
    let bytes =
        file.metadata().with_context(|| format!("failed to look at {}", built.display()))?.len();
    let stamp = Stamp { key: key.to_owned(), sha256, bytes, packages };

    let path = stamp_path(dir, name);
    match fs::remove_file(&path) {
        Err(error) if !process::is_missing(&error) => {
            return Err(error).with_context(|| format!("failed to remove {}", path.display()));
        }
        _ => {}
    }
    let target = dir.join(name);
    fs::rename(built, &target).with_context(|| format!("failed to write {}", target.display()))?;
    replace(&path, serde_json::to_string_pretty(&stamp)?.as_bytes())?;
    Ok(stamp)
}

/// Writes a small file so that readers see the old or the new one, never a half.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension("part");
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("failed to write {}", path.display()))
}

/// Where a build puts what is not finished. Gone with the returned value, or at the next start.
pub(crate) fn scratch(dir: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(SCRATCH_PREFIX)
        .tempdir_in(dir)
        .with_context(|| format!("failed to create a directory in {}", dir.display()))
}

const SCRATCH_PREFIX: &str = ".build-";

/// Removes what an interrupted build left. The caller holds the lock of the directory.
pub(crate) fn sweep(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("failed to list {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("failed to list {}", dir.display()))?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            let path = entry.path();
            fs::remove_dir_all(&path)
                .with_context(|| format!("failed to remove the left-over {}", path.display()))?;
        }
    }
    Ok(())
}

/// The key for a list of ingredients. Each is told from its neighbour, so that moving a letter
/// from one to the next gives another key.
pub(crate) fn key<'a>(ingredients: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for ingredient in ingredients {
        hash.update(ingredient.len().to_le_bytes());
        hash.update(ingredient.as_bytes());
    }
    hex(&hash.finalize())
}

/// SHA-256 of a file's content.
pub(crate) fn file_hash(path: &Path) -> Result<String> {
    let mut file =
        File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read =
            file.read(&mut buffer).with_context(|| format!("failed to read {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stamp_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.stamp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish_one(dir: &Path, content: &[u8], key: &str) -> Stamp {
        let scratch = scratch(dir).expect("scratch");
        let built = scratch.path().join("out");
        fs::write(&built, content).expect("written");
        finish(dir, "thing", &built, key, Vec::new()).expect("finished")
    }

    #[test]
    fn only_the_same_key_and_size_count_as_finished() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        assert_eq!(finished(dir.path(), "thing", "k1"), None);
        let stamp = finish_one(dir.path(), b"abc", "k1");
        assert_eq!(finished(dir.path(), "thing", "k1"), Some(stamp));
        assert_eq!(finished(dir.path(), "thing", "k2"), None);
        fs::write(dir.path().join("thing"), b"cut").expect("written");
        assert!(finished(dir.path(), "thing", "k1").is_some());
        fs::write(dir.path().join("thing"), b"cu").expect("written");
        assert_eq!(finished(dir.path(), "thing", "k1"), None);
        finish_one(dir.path(), b"new", "k2");
        assert!(finished(dir.path(), "thing", "k2").is_some());
    }

    #[test]
    fn the_hash_is_the_usual_one() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let stamp = finish_one(dir.path(), b"abc", "k");
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(stamp.sha256, known);
    }

    #[test]
    fn keys_tell_neighbours_apart() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_ne!(key(["a"]), key(["a", ""]));
        assert_eq!(key(["a", "b"]), key(["a", "b"]));
    }

    #[test]
    fn left_overs_are_swept_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let left = scratch(dir.path()).expect("scratch").keep();
        fs::write(dir.path().join("vmlinux"), b"kernel").expect("written");
        sweep(dir.path()).expect("swept");
        assert!(!left.exists());
        assert!(dir.path().join("vmlinux").exists());
    }
}
