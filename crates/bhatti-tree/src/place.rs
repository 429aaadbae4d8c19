//! Where an archive is unpacked: one directory at a time, reached without following a symlink.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};

use crate::problem::{Problems, sentence};
use crate::staged::{Staged, unguessable};
use crate::unpack::Refused;

/// What an entry is like, besides its content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    /// Permission bits without set-id.
    pub(crate) mode: u32,
    /// Seconds since the Unix epoch.
    pub(crate) mtime: u64,
}

/// A directory that was made, and is not finished: writing into it changes its time, and its mode
/// may forbid that.
struct Made {
    /// How many names of the way lead to it.
    depth: usize,
    attributes: Attributes,
}

/// The directory given, and where in it the unpacking is.
pub(crate) struct Place {
    root: OwnedFd,
    owner: Option<(Uid, Gid)>,
    /// The way to the directory that is open.
    way: Vec<OsString>,
    open: Option<OwnedFd>,
    /// On the way, from the root down.
    made: Vec<Made>,
}

impl Place {
    pub(crate) fn new(root: OwnedFd, owner: Option<(u32, u32)>) -> Self {
        let owner = owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid)));
        Self { root, owner, way: Vec::new(), open: None, made: Vec::new() }
    }

    /// Goes to a directory, making what is missing of it. Those that are left are finished: an
    /// archive made depth first does not come back to them.
    pub(crate) fn enter(
        &mut self,
        way: &[OsString],
        problems: &mut Problems,
    ) -> Result<(), Refused> {
        if self.way == way && (self.open.is_some() || way.is_empty()) {
            return Ok(());
        }
        let common = self.way.iter().zip(way).take_while(|(a, b)| a == b).count();
        self.leave(common, problems);
        // If a step fails, this is where we are.
        self.open = None;
        self.way.truncate(common);
        let mut dir = self.walk(&self.way)?;
        for name in &way[common..] {
            let parent = dir.as_ref().unwrap_or(&self.root);
            dir = Some(match step(parent, name) {
                Err(Errno::ENOENT) => make_directory(parent.as_fd(), name, self.owner)?,
                below => below.map_err(not_a_directory)?,
            });
        }
        self.way.extend_from_slice(&way[common..]);
        self.open = dir;
        Ok(())
    }

    /// Finishes every directory.
    pub(crate) fn leave_all(&mut self, problems: &mut Problems) {
        self.leave(0, problems);
    }

    fn leave(&mut self, depth: usize, problems: &mut Problems) {
        while let Some(Made { depth: own, attributes }) =
            self.made.pop_if(|made| made.depth > depth)
        {
            let way = &self.way[..own];
            let finished = self.walk(way).and_then(|dir| match dir {
                Some(dir) => Ok(finish(dir.as_fd(), attributes)?),
                None => Ok(()),
            });
            if let Err(Refused::Io(error)) = finished {
                let path: PathBuf = way.iter().collect();
                problems.add(sentence(&path, error));
            }
        }
    }

    /// Opens a directory by its way; `None` is the root.
    fn walk(&self, way: &[OsString]) -> Result<Option<OwnedFd>, Refused> {
        let mut dir = None;
        for name in way {
            dir = Some(step(dir.as_ref().unwrap_or(&self.root), name).map_err(not_a_directory)?);
        }
        Ok(dir)
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.open.as_ref().unwrap_or(&self.root).as_fd()
    }

    /// Makes a directory. One that is there stays as it is.
    pub(crate) fn directory(
        &mut self,
        name: &OsStr,
        attributes: Attributes,
    ) -> Result<(), Refused> {
        match step(self.here(), name) {
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => {
                let dir = make_directory(self.here(), name, self.owner)?;
                self.open = Some(dir);
                self.way.push(name.to_owned());
                self.made.push(Made { depth: self.way.len(), attributes });
                Ok(())
            }
            Err(error) => Err(not_a_directory(error)),
        }
    }

    /// Makes a file of what `fill` writes to it, in place of what has the name.
    pub(crate) fn file(
        &mut self,
        name: &OsStr,
        attributes: Attributes,
        fill: impl FnOnce(&mut File) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let mut staged = Staged::create(self.here())?;
        fill(staged.file())?;
        if let Some((uid, gid)) = self.owner {
            fchown(staged.file().as_fd(), Some(uid), Some(gid))?;
        }
        finish(staged.file().as_fd(), attributes)?;
        staged.publish(name).map_err(a_directory)
    }

    /// Makes a symlink, in place of what has the name.
    pub(crate) fn symlink(
        &mut self,
        name: &OsStr,
        target: &OsStr,
        attributes: Attributes,
    ) -> Result<(), Refused> {
        let dir = self.here();
        let own = unguessable()?;
        symlinkat(target, dir, own.as_os_str())?;
        let made = || -> nix::Result<()> {
            if let Some((uid, gid)) = self.owner {
                let no_follow = AtFlags::AT_SYMLINK_NOFOLLOW;
                fchownat(dir, own.as_os_str(), Some(uid), Some(gid), no_follow)?;
            }
            let (now, then) = times(attributes);
            let no_follow = UtimensatFlags::NoFollowSymlink;
            utimensat(dir, own.as_os_str(), &now, &then, no_follow)?;
            renameat(dir, own.as_os_str(), dir, name)
        };
        made().map_err(|error| {
            // Whoever removed it was first.
            unlinkat(dir, own.as_os_str(), UnlinkatFlags::NoRemoveDir).ok();
            a_directory(error.into())
        })
    }
}

/// Opens a directory in another one; a symlink is none.
fn step(dir: impl AsFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn make_directory(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    owner: Option<(Uid, Gid)>,
) -> Result<OwnedFd, Refused> {
    mkdirat(parent, name, Mode::S_IRWXU)?;
    let dir = step(parent, name)?;
    // For directories about which the archive says nothing; whatever the umask.
    fchmod(&dir, Mode::from_bits_truncate(0o755))?;
    if let Some((uid, gid)) = owner {
        fchown(&dir, Some(uid), Some(gid))?;
    }
    Ok(dir)
}

fn finish(file: BorrowedFd<'_>, attributes: Attributes) -> nix::Result<()> {
    fchmod(file, Mode::from_bits_truncate(attributes.mode))?;
    let (now, then) = times(attributes);
    futimens(file, &now, &then)
}

/// Access and modification.
fn times(attributes: Attributes) -> (TimeSpec, TimeSpec) {
    let seconds = i64::try_from(attributes.mtime).unwrap_or(i64::MAX);
    (TimeSpec::UTIME_NOW, TimeSpec::new(seconds, 0))
}

fn not_a_directory(error: Errno) -> Refused {
    match error {
        Errno::ENOTDIR | Errno::ELOOP => {
            Refused::Problem("there is something here that is no directory")
        }
        error => Refused::Io(error.into()),
    }
}

fn a_directory(error: io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::IsADirectory => Refused::Problem("there is a directory of that name"),
        _ => Refused::Io(error),
    }
}
