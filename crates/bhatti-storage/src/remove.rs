//! Removing directories that a VMM could write, after it has ended.
//!
//! Whoever removes a directory by recursion can be ended by one that is nested deep enough: no
//! stack and no table of descriptors has room for some ten thousand. So what is found in one is
//! moved up first, and nothing is ever looked at that is deeper than two.
//!
//! Promises: no link is followed, and four descriptors are enough for any tree. It takes as long
//! as a VMM took to make what is there; callers are on a thread that may block.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Removes a directory with everything in it.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    empty(path)?;
    std::fs::remove_dir(path)
}

/// Removes everything in a directory.
pub(crate) fn empty(path: &Path) -> Result<()> {
    let top = open(path)?;
    let mut number = 0;
    loop {
        let mut found = false;
        for entry in std::fs::read_dir(inside(&top, ""))? {
            let path = entry?.path();
            if !unlink(&path)? {
                found = true;
                flatten(&path, &top, &mut number)?;
                std::fs::remove_dir(&path)?;
            }
        }
        // What was moved up meanwhile may have been seen, or not.
        if !found {
            return Ok(());
        }
    }
}

/// Removes the files in a directory and moves the directories in it to `top`.
fn flatten(path: &Path, top: &File, number: &mut u64) -> Result<()> {
    let directory = open(path)?;
    for entry in std::fs::read_dir(inside(&directory, ""))? {
        let path = entry?.path();
        if unlink(&path)? {
            continue;
        }
        loop {
            *number += 1;
            match std::fs::rename(&path, inside(top, &format!("nested-{number}"))) {
                Ok(()) => break,
                // Taken; there are as many such names at most as there are entries.
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// A directory itself, and not what a link in its place leads to.
fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
        .open(path)
}

/// A path that leads through the open directory, whatever bears its name by now.
fn inside(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Removes what is no directory. False: it is one.
fn unlink(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a directory could not get a name because something else has it.
fn is_taken(error: &Error) -> bool {
    use ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bhatti_types::EngineId;
    use camino::Utf8Path;

    use super::*;
    use crate::Layout;

    /// So little stack a level that nothing which takes any gets to the end.
    const DEPTH: usize = 3000;
    const STACK: usize = 96 << 10;

    fn with_little_stack<E: std::fmt::Debug + Send + 'static>(
        work: impl FnOnce() -> std::result::Result<(), E> + Send + 'static,
    ) {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(work).unwrap();
        thread.join().unwrap().unwrap();
    }

    fn nest(dir: &Utf8Path, outside: &Utf8Path) {
        use nix::fcntl::{OFlag, openat};
        use nix::sys::stat::{Mode, mkdirat};
        std::fs::write(dir.join("root.qcow2"), "disk").unwrap();
        // In the way of the names that are given.
        std::fs::write(dir.join("nested-2"), "").unwrap();
        std::fs::create_dir_all(dir.join("nested-3/full")).unwrap();
        let mut at = File::open(dir).unwrap();
        for depth in 0..DEPTH {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", OFlag::O_DIRECTORY, Mode::empty()).unwrap().into();
            if depth % 1000 == 0 {
                nix::unistd::symlinkat(outside.as_std_path(), &at, "link").unwrap();
            }
        }
    }

    #[test]
    fn directories_nested_deeper_than_any_stack_are_removed() {
        // In memory: to remove a directory takes a disk milliseconds.
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = Utf8Path::from_path(scratch.path()).unwrap();
        let outside = root.join("outside");
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        let layout = Arc::new(Layout::open(&root.join("data")).unwrap());
        let id = EngineId::random();
        let dir = layout.make_sandbox(&id, 4242).unwrap();

        nest(&dir, &outside);
        let (cleared, of) = (layout.clone(), id.clone());
        with_little_stack(move || cleared.clear_sandbox(&of));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        nest(&dir, &outside);
        with_little_stack(move || layout.remove_sandbox(&id));
        assert!(!dir.exists() && outside.join("kept").exists());
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (outside, link) = (scratch.path().join("outside"), scratch.path().join("link"));
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        remove_tree(&link).unwrap_err();
        empty(&link).unwrap_err();
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn what_is_wide_is_removed_too() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("machine");
        for path in (0..30).flat_map(|a| (0..30).map(move |b| format!("{a}/{b}/c"))) {
            std::fs::create_dir_all(dir.join(&path)).unwrap();
            std::fs::write(dir.join(path).join("file"), "").unwrap();
        }
        remove_tree(&dir).unwrap();
        assert!(!dir.exists());
    }
}
