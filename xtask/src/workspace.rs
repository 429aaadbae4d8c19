//! Where things are: the workspace root, the target directory, what git tracks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

/// The root of the workspace this xtask was built from.
pub(crate) fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| own.clone(), Path::to_path_buf)
}

/// The cargo this process was started by, so that nested calls use the same toolchain.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// What `cargo metadata` says about our own packages.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--no-deps"]);
    let text = process::output(&mut command)?;
    serde_json::from_str(&text).context("cargo metadata did not answer with JSON")
}

/// The directory cargo builds into.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let path = metadata["target_directory"].as_str().context("cargo metadata names no target")?;
    Ok(PathBuf::from(path))
}

/// Every file git tracks, plus new ones it does not ignore, relative to the root and sorted.
pub(crate) fn tracked_files() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    command.current_dir(root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let listing = process::output(&mut command).context("failed to list the files of the tree")?;
    let mut files: Vec<PathBuf> =
        listing.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    files.sort();
    files.dedup();
    // A file may be tracked and already deleted in the work tree.
    files.retain(|file| root().join(file).is_file());
    Ok(files)
}
