//! The control groups that tell the agent from everybody else, so that everybody else can be
//! frozen.
//!
//! ```text
//! /sys/fs/cgroup    the kernel's own threads
//! ├── commands      PID 1, and what it starts: inherited by fork, which costs nothing
//! ├── agent         PID 1 while the others are frozen
//! └── …             what a container runtime made
//! ```
//!
//! Promises:
//! - The group this process is in is never frozen: it steps aside first.
//! - What somebody else has frozen is left as it is, then and afterwards.
//! - Nothing here waits longer than it is told to, whatever lies at those paths.
//!
//! Who moves processes into the root group or the agent's, which takes the guest's root, has them
//! run on.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The most that is read of a file, in bytes. They have some twenty.
const MAX_TEXT: usize = 256;

/// How long to wait before looking again, first and at most. The kernel tells of a change, but not
/// of two within 10 ms.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

/// A group does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("failed to {action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("something in {} does not stop", .group.display())]
    Slow { group: PathBuf },
}

impl GroupError {
    /// True if there is nobody in the group, because there is no group.
    fn is_gone(&self) -> bool {
        let Self::File { source, .. } = self else { return false };
        let code = source.raw_os_error().map(Errno::from_raw);
        matches!(code, Some(Errno::ENOENT | Errno::ENODEV))
    }
}

/// The groups below one root.
#[derive(Debug)]
pub struct Groups {
    root: PathBuf,
}

/// What was told to freeze, and is to be thawed.
#[derive(Debug, Default)]
pub struct Frozen {
    groups: Vec<PathBuf>,
    /// Why something may still run: the first reason.
    pub missed: Option<GroupError>,
}

impl Groups {
    /// Makes the groups in the hierarchy mounted at `root`, and moves this process into that of
    /// the commands. Fails where groups cannot be frozen.
    pub fn set_up(root: &Path) -> Result<Self, GroupError> {
        let groups = Self { root: root.to_owned() };
        let commands = groups.commands();
        make(&commands)?;
        read(&commands.join("cgroup.freeze"))?;
        groups.step_back()?;
        Ok(groups)
    }

    fn commands(&self) -> PathBuf {
        self.root.join("commands")
    }

    fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// Moves this process to where it is not frozen.
    pub fn step_aside(&self) -> Result<(), GroupError> {
        // Whoever tidies up empty groups finds ours empty most of the time.
        make(&self.agent())?;
        write(&self.agent().join("cgroup.procs"), "0")
    }

    /// Moves this process to where what it starts is frozen.
    pub fn step_back(&self) -> Result<(), GroupError> {
        write(&self.commands().join("cgroup.procs"), "0")
    }

    /// Freezes every group but the agent's, and returns when nothing in them runs any more, or
    /// after `patience`. Only after [`Self::step_aside`].
    pub fn freeze_others(&self, patience: Duration) -> Frozen {
        let deadline = Instant::now() + patience;
        let mut frozen = Frozen::default();
        let mut known = BTreeSet::from([self.agent()]);
        loop {
            let groups = match groups_in(&self.root) {
                Ok(groups) => groups,
                Err(error) => {
                    frozen.missed.get_or_insert(error);
                    return frozen;
                }
            };
            // Who was not frozen yet may have made more meanwhile.
            let fresh: Vec<_> = groups.into_iter().filter(|group| !known.contains(group)).collect();
            if fresh.is_empty() || Instant::now() > deadline {
                return frozen;
            }
            known.extend(fresh.iter().cloned());
            frozen.add(fresh, deadline);
        }
    }
}

impl Frozen {
    fn add(&mut self, groups: Vec<PathBuf>, deadline: Instant) {
        let begin = self.groups.len();
        for group in groups {
            match freeze(&group) {
                Ok(Freeze::Told) => self.groups.push(group),
                Ok(Freeze::WasAlready) => {}
                Err(error) => self.miss(error),
            }
        }
        for at in begin..self.groups.len() {
            if let Err(error) = wait_until_frozen(&self.groups[at], deadline) {
                self.miss(error);
            }
        }
    }

    fn miss(&mut self, error: GroupError) {
        if !error.is_gone() {
            self.missed.get_or_insert(error);
        }
    }

    /// Lets everybody go on. Returns what went wrong; nothing is left out because of it.
    pub fn thaw(self) -> Vec<GroupError> {
        let thaw = |group: &PathBuf| write(&group.join("cgroup.freeze"), "0").err();
        self.groups.iter().filter_map(thaw).filter(|error| !error.is_gone()).collect()
    }
}

enum Freeze {
    Told,
    WasAlready,
}

fn freeze(group: &Path) -> Result<Freeze, GroupError> {
    let path = group.join("cgroup.freeze");
    if read(&path)?.starts_with(b"1") {
        return Ok(Freeze::WasAlready);
    }
    write(&path, "1")?;
    Ok(Freeze::Told)
}

fn wait_until_frozen(group: &Path, deadline: Instant) -> Result<(), GroupError> {
    let path = group.join("cgroup.events");
    let failed = |source| GroupError::File { action: "read", path: path.clone(), source };
    let events = open(OpenOptions::new().read(true), &path).map_err(failed)?;
    let mut text = [0; MAX_TEXT];
    let (mut pause, longest) = LOOK_AGAIN;
    loop {
        let length = events.read_at(&mut text, 0).map_err(failed)?;
        if text[..length].split(|byte| *byte == b'\n').any(|line| line == b"frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(GroupError::Slow { group: group.to_owned() });
        }
        let timeout = pause.min(left).as_millis().max(1);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => pause = (pause * 2).min(longest),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn groups_in(root: &Path) -> Result<Vec<PathBuf>, GroupError> {
    let failed = |source| GroupError::File { action: "list", path: root.to_owned(), source };
    let mut groups = Vec::new();
    for entry in std::fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            groups.push(entry.path());
        }
    }
    Ok(groups)
}

fn make(group: &Path) -> Result<(), GroupError> {
    match std::fs::create_dir(group) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(GroupError::File { action: "make", path: group.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, GroupError> {
    let mut text = Vec::new();
    open(OpenOptions::new().read(true), path)
        .and_then(|file| file.take(MAX_TEXT as u64).read_to_end(&mut text))
        .map_err(|source| GroupError::File { action: "read", path: path.to_owned(), source })?;
    Ok(text)
}

fn write(path: &Path, text: &str) -> Result<(), GroupError> {
    open(OpenOptions::new().write(true), path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| GroupError::File { action: "write", path: path.to_owned(), source })
}

/// Somebody may have mounted over it: opening must not wait, as that of a FIFO would.
fn open(how: &mut OpenOptions, path: &Path) -> io::Result<File> {
    how.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

#[cfg(test)]
mod tests;
