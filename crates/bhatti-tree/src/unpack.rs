//! A tar archive of a stranger, put beneath a directory.
//!
//! Every step down is taken from an open directory and follows no symlink, so nothing in the
//! archive, and nobody who works beside us, leads out of the directory that was given. Names,
//! links and extensions are bounded where they are read; contents pass through.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use crate::pack::MAX_DEPTH;
use crate::pax;
use crate::place::{Attributes, Place};
use crate::problem::{Problems, sentence, told};
use crate::tally::Tally;

/// The longest name and the longest target of a link, in bytes.
const MAX_PATH: usize = 4096;

/// The largest extended header, in bytes.
const MAX_EXTENDED: usize = 64 * 1024;

/// Bytes of a file moved at a time: what comes at a time.
const CHUNK: usize = crate::pipe::CHUNK;

const SPARSE: UnpackError = UnpackError::Format("it has sparse files of GNU tar");

/// Which symlinks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// All, wherever they lead.
    Any,
    /// Those that cannot lead out of what is being unpacked.
    Inside,
}

/// How to unpack.
#[derive(Debug)]
pub struct Unpack {
    /// The directory beneath which everything is made.
    pub into: OwnedFd,
    /// The one name in that directory beneath which everything has to be; what is not was not
    /// asked for. `None`: any.
    pub root: Option<OsString>,
    /// Whose everything becomes; `None`: the caller's.
    pub owner: Option<(u32, u32)>,
    pub links: Links,
}

/// The rest of an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the archive cannot be read")]
    Archive(#[source] io::Error),
    #[error("the archive is none that can be unpacked: {0}")]
    Format(&'static str),
    /// The sender has sent what was not asked for.
    #[error("{} was sent, which was not asked for", .0.display())]
    Foreign(PathBuf),
    #[error("failed to write {}", .path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Unpack {
    /// Unpacks `archive`, and reads it to its end. `tally` counts along.
    ///
    /// What was made before an error stays, each file whole. Nothing is synced.
    pub fn run<R: Read>(self, archive: R, tally: &Tally) -> Result<Problems, UnpackError> {
        let Self { into, root, owner, links } = self;
        let mut archive = Archive::new(archive);
        let mut unpacking = Unpacking {
            place: Place::new(into, owner),
            root,
            links,
            tally,
            problems: Problems::default(),
            name: None,
            target: None,
            buffer: vec![0; CHUNK].into_boxed_slice(),
        };
        // Raw: the crate would read names of any length into memory.
        for entry in archive.entries().map_err(UnpackError::Archive)?.raw(true) {
            unpacking.take(entry.map_err(UnpackError::Archive)?)?;
        }
        unpacking.place.leave_all(&mut unpacking.problems);
        // An archive may be filled up behind its end, and whoever sends it waits to be rid of that.
        let mut rest = archive.into_inner();
        while rest.read(&mut unpacking.buffer).map_err(UnpackError::Archive)? > 0 {}
        Ok(unpacking.problems)
    }
}

struct Unpacking<'a> {
    place: Place,
    root: Option<OsString>,
    links: Links,
    tally: &'a Tally,
    problems: Problems,
    /// From an extension, for the next entry.
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    buffer: Box<[u8]>,
}

impl Unpacking<'_> {
    fn take<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), UnpackError> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.name = Some(text(&mut entry)?),
            EntryType::GNULongLink => self.target = Some(text(&mut entry)?),
            EntryType::XHeader => self.extended(&mut entry)?,
            EntryType::XGlobalHeader => {
                if let Some(sentence) = told(&bounded(&mut entry, MAX_EXTENDED)?) {
                    self.problems.add(sentence);
                }
            }
            EntryType::GNUSparse => return Err(SPARSE),
            kind => {
                let name = self.name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let target = self.target.take();
                self.member(kind, &name, target, entry)?;
            }
        }
        Ok(())
    }

    /// A POSIX extended header: what it says of the next entry's names counts.
    fn extended<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let content = bounded(entry, MAX_EXTENDED)?;
        let records =
            pax::records(&content).ok_or(UnpackError::Format("an extended header is broken"))?;
        for (key, value) in records {
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                // It says where the next entry is, and only sizes that need no extension agree.
                b"size" => return Err(UnpackError::Format("it has a file of more than 8 GiB")),
                // Looks like a file, and has a map of holes before what is left of its content.
                key if key.starts_with(b"GNU.sparse.") => return Err(SPARSE),
                _ => {}
            }
        }
        Ok(())
    }

    fn member<R: Read>(
        &mut self,
        kind: EntryType,
        name: &[u8],
        target: Option<Vec<u8>>,
        entry: Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let shown = Path::new(OsStr::from_bytes(name));
        let names = match components(name) {
            Ok(names) => names,
            Err(why) => {
                self.problems.add(sentence(shown, why));
                return Ok(());
            }
        };
        if let Some(root) = &self.root
            && names.first() != Some(root)
        {
            return Err(UnpackError::Foreign(shown.to_owned()));
        }
        // The directory that was given stays as it is.
        let Some((last, parents)) = names.split_last() else { return Ok(()) };
        let made = self.make(kind, name, (parents, last), target, entry);
        match made {
            Ok(()) => Ok(()),
            Err(Refused::Problem(why)) => {
                self.problems.add(sentence(shown, why));
                Ok(())
            }
            Err(Refused::Io(source)) if is_fatal(&source) => {
                Err(UnpackError::Disk { path: shown.to_owned(), source })
            }
            Err(Refused::Io(source)) => {
                self.problems.add(sentence(shown, source));
                Ok(())
            }
            Err(Refused::Archive(source)) => Err(UnpackError::Archive(source)),
        }
    }

    fn make<R: Read>(
        &mut self,
        kind: EntryType,
        name: &[u8],
        (parents, last): (&[OsString], &OsStr),
        target: Option<Vec<u8>>,
        mut entry: Entry<'_, R>,
    ) -> Result<(), Refused> {
        let attributes = Attributes {
            mode: entry.header().mode().map_err(Refused::Archive)? & 0o777,
            mtime: entry.header().mtime().map_err(Refused::Archive)?,
        };
        self.place.enter(parents, &mut self.problems)?;
        match kind {
            // Archives of old have no other mark of a directory.
            EntryType::Regular if name.ends_with(b"/") => self.place.directory(last, attributes),
            EntryType::Directory => self.place.directory(last, attributes),
            EntryType::Regular | EntryType::Continuous => {
                let (tally, buffer) = (self.tally, &mut self.buffer);
                let fill = |file: &mut std::fs::File| copy(&mut entry, file, buffer, tally);
                self.place.file(last, attributes, fill)?;
                self.tally.add_file();
                Ok(())
            }
            EntryType::Symlink => {
                let target = target.or_else(|| entry.link_name_bytes().map(|name| name.into()));
                let target = target.unwrap_or_default();
                if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                    return Err(Refused::Problem("a link that leads nowhere"));
                }
                let level = parents.len().checked_sub(usize::from(self.root.is_some()));
                let inside = level.is_some_and(|level| stays_inside(&target, level));
                if self.links == Links::Inside && !inside {
                    let why = "a link that leads out of what was copied";
                    return Err(Refused::Problem(why));
                }
                self.place.symlink(last, OsStr::from_bytes(&target), attributes)
            }
            EntryType::Link => Err(Refused::Problem("a second name of another file")),
            EntryType::Fifo => Err(Refused::Problem("a FIFO")),
            EntryType::Char | EntryType::Block => Err(Refused::Problem("a device")),
            _ => Err(Refused::Problem("something that only another tar knows")),
        }
    }
}

/// Why an entry was not made.
pub(crate) enum Refused {
    /// What it is, which is why.
    Problem(&'static str),
    Io(io::Error),
    /// Its content did not come.
    Archive(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<nix::Error> for Refused {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

/// Whether the next file would fail too.
fn is_fatal(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::StorageFull | K::QuotaExceeded | K::ReadOnlyFilesystem)
}

fn copy<R: Read>(
    entry: &mut Entry<'_, R>,
    file: &mut std::fs::File,
    buffer: &mut [u8],
    tally: &Tally,
) -> Result<(), Refused> {
    let mut left = entry.size();
    while left > 0 {
        match entry.read(buffer) {
            Ok(0) => return Err(Refused::Archive(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => {
                file.write_all(&buffer[..n])?;
                tally.add_bytes(n);
                left -= n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refused::Archive(error)),
        }
    }
    Ok(())
}

/// The content of an extension.
fn bounded<R: Read>(entry: &mut Entry<'_, R>, most: usize) -> Result<Vec<u8>, UnpackError> {
    if entry.size() > most as u64 {
        return Err(UnpackError::Format("it has an extension that is too long"));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(UnpackError::Archive)?;
    Ok(content)
}

/// A long name, without the NUL behind it.
fn text<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, UnpackError> {
    let mut text = bounded(entry, MAX_PATH + 1)?;
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    Ok(text)
}

/// The names on the way from the root of the archive. None: the root itself.
fn components(name: &[u8]) -> Result<Vec<OsString>, &'static str> {
    if name.len() > MAX_PATH {
        return Err("a name that is too long");
    }
    if name.first() == Some(&b'/') {
        return Err("a name that begins at the root");
    }
    if name.contains(&0) {
        return Err("a name that no file can have");
    }
    let mut names = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("a name that leads out"),
            part => names.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    if names.len() > MAX_DEPTH + 1 {
        return Err("too deep");
    }
    Ok(names)
}

/// Whether a link `level` directories below the root cannot lead out of it.
///
/// Steps up are only counted at the beginning, where they start from a directory we made: behind
/// a name that is a link itself they would start from somewhere else.
fn stays_inside(target: &[u8], level: usize) -> bool {
    if target.first() == Some(&b'/') {
        return false;
    }
    let parts: Vec<_> =
        target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    let ups = parts.iter().take_while(|part| **part == b"..").count();
    ups <= level && !parts[ups..].contains(&&b".."[..])
}
