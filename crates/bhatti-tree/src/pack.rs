//! A file or a tree as a tar archive, written while it is read.
//!
//! Regular files, directories, symlinks; FIFOs and devices by name only; no sockets. Two names of
//! one file are two files. What cannot be read is left out, and told in the archive (see
//! [`crate::Problems`]); a file that shrinks while it is read is filled up with zeros, and that is
//! told too.
//!
//! What the kernel only pretends to be files (`/proc`, `/sys`) is an empty directory to whoever
//! packs what is around it: there is no end to it, `/proc/kcore` alone has 128 TiB.

use std::ffi::OsStr;
use std::fs::{DirEntry, File, FileType, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{self, FsType, fstatfs};
use tar::{EntryType, Header};

use crate::problem;
use crate::tally::Tally;

/// How deep a tree may be: each level is an open directory.
pub(crate) const MAX_DEPTH: usize = 128;

/// Bytes of a file moved at a time.
const CHUNK: usize = 128 * 1024;

/// A tar archive is made of these.
const BLOCK: usize = 512;

/// The root of what is to be packed.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    meta: Metadata,
}

impl Source {
    /// Opens a regular file or a directory; a symlink is followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true);
        // Nothing is opened but a handle, until it is known what it is.
        let handle = crate::handle(path)?;
        let meta = handle.metadata()?;
        if !meta.is_file() && !meta.is_dir() {
            let text = "neither a regular file nor a directory";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let fd = handle.as_raw_fd();
        let file = options.custom_flags(WARY.bits()).open(format!("/proc/self/fd/{fd}"))?;
        Ok(Self { path: path.to_owned(), file, meta })
    }

    /// What it is.
    pub fn metadata(&self) -> &Metadata {
        &self.meta
    }

    /// Writes it as an archive in which it is called `name`. `tally` counts along.
    ///
    /// An error is `out`'s; `out` is not flushed.
    pub fn pack<W: Write>(self, name: &OsStr, out: W, tally: &Tally) -> io::Result<()> {
        let buffer = vec![0; CHUNK].into_boxed_slice();
        let mut packer = Packer { out, tally, buffer };
        let Self { path, file, meta } = self;
        let mut at = At { name: PathBuf::from(name), path, depth: 0, device: meta.dev() };
        if meta.is_dir() {
            packer.tree(&mut at, &file, &meta)?;
        } else {
            packer.content(&at, file, &meta)?;
        }
        packer.out.write_all(&[0; 2 * BLOCK])
    }
}

/// What `path` is called in an archive of it: its last name, or `.` if that has none.
pub fn root_name(path: &Path) -> &OsStr {
    // A trailing `.` counts: it asks for what is in a directory.
    let bytes = path.as_os_str().as_bytes();
    let trimmed = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let ends_in_dot = bytes[..trimmed] == *b"." || bytes[..trimmed].ends_with(b"/.");
    match path.components().next_back() {
        Some(Component::Normal(name)) if !ends_in_dot => name,
        _ => OsStr::new("."),
    }
}

/// For opening what may be anything: no side effects, no waiting.
const WARY: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Where the walk is.
struct At {
    /// In the archive.
    name: PathBuf,
    /// On the disk, for people.
    path: PathBuf,
    depth: usize,
    /// What the root is on.
    device: u64,
}

struct Packer<'a, W> {
    out: W,
    tally: &'a Tally,
    buffer: Box<[u8]>,
}

impl<W: Write> Packer<'_, W> {
    /// Packs a directory and all in it, depth first.
    fn tree(&mut self, at: &mut At, dir: &File, meta: &Metadata) -> io::Result<()> {
        self.header(EntryType::Directory, at, meta, 0, &[])?;
        if at.depth == MAX_DEPTH {
            let text = format!("more than {MAX_DEPTH} directories deep");
            return self.problem(at, text);
        }
        // The path could lead elsewhere by now; this leads to what is open.
        let entries = match std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())) {
            Ok(entries) => entries,
            Err(error) => return self.problem(at, error),
        };
        at.depth += 1;
        for entry in entries {
            match entry {
                Ok(entry) => {
                    at.name.push(entry.file_name());
                    at.path.push(entry.file_name());
                    self.entry(at, dir, &entry)?;
                    at.name.pop();
                    at.path.pop();
                }
                Err(error) => {
                    self.problem(at, error)?;
                    break;
                }
            }
        }
        at.depth -= 1;
        Ok(())
    }

    fn entry(&mut self, at: &mut At, dir: &File, entry: &DirEntry) -> io::Result<()> {
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            Err(error) => return self.lost(at, error),
        };
        let kind = meta.file_type();
        if kind.is_dir() {
            match open(dir, entry, OFlag::O_DIRECTORY) {
                Ok((below, meta)) if meta.dev() != at.device && is_kernels_own(&below) => {
                    self.header(EntryType::Directory, at, &meta, 0, &[])
                }
                Ok((below, meta)) => self.tree(at, &below, &meta),
                Err(error) => self.lost(at, error),
            }
        } else if kind.is_file() {
            match open(dir, entry, OFlag::empty()) {
                Ok((file, meta)) if meta.is_file() => self.content(at, file, &meta),
                // It was exchanged for something else just now.
                Ok(_) => Ok(()),
                Err(error) => self.lost(at, error),
            }
        } else if kind.is_symlink() {
            match readlinkat(dir, entry.file_name().as_os_str()) {
                Ok(target) => {
                    self.header(EntryType::Symlink, at, &meta, 0, target.as_os_str().as_bytes())
                }
                Err(error) => self.lost(at, error.into()),
            }
        } else {
            match special(kind) {
                Some(kind) => self.header(kind, at, &meta, 0, &[]),
                // Means nothing without the program that listens.
                None => Ok(()),
            }
        }
    }

    fn content(&mut self, at: &At, mut file: File, meta: &Metadata) -> io::Result<()> {
        if meta.len() == 0 {
            return self.unsized_content(at, &mut file, meta);
        }
        let size = meta.len();
        self.header(EntryType::Regular, at, meta, size, &[])?;
        let mut left = size;
        let mut broken = None;
        while left > 0 {
            let want = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let n = match file.read(&mut self.buffer[..want]) {
                Ok(n @ 1..) if broken.is_none() => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                end => {
                    // The archive has promised that much.
                    broken.get_or_insert_with(|| match end {
                        Err(error) => error.to_string(),
                        Ok(_) => format!("became shorter while it was read, by {left} bytes"),
                    });
                    self.buffer[..want].fill(0);
                    want
                }
            };
            self.out.write_all(&self.buffer[..n])?;
            self.tally.add_bytes(n);
            left -= n as u64;
        }
        self.pad(size)?;
        self.tally.add_file();
        match broken {
            Some(text) => self.problem(at, text),
            None => Ok(()),
        }
    }

    /// A file that is empty, or one of the kernel's own, which do not know their size: as much as
    /// fits the buffer, which is far more than they have.
    fn unsized_content(&mut self, at: &At, file: &mut File, meta: &Metadata) -> io::Result<()> {
        let mut size = 0;
        while size < CHUNK {
            match file.read(&mut self.buffer[size..]) {
                Ok(0) => break,
                Ok(n) => size += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.problem(at, error),
            }
        }
        if size == CHUNK {
            return self.problem(at, "does not say how long it is");
        }
        self.header(EntryType::Regular, at, meta, size as u64, &[])?;
        self.out.write_all(&self.buffer[..size])?;
        self.tally.add_bytes(size);
        self.pad(size as u64)?;
        self.tally.add_file();
        Ok(())
    }

    /// Something could not be read. What is not there any more was not there.
    fn lost(&mut self, at: &At, error: io::Error) -> io::Result<()> {
        if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { self.problem(at, error) }
    }

    fn problem(&mut self, at: &At, what: impl std::fmt::Display) -> io::Result<()> {
        let header = problem::header(&problem::sentence(&at.path, what));
        self.extension(EntryType::XGlobalHeader, &header)
    }

    fn header(
        &mut self,
        kind: EntryType,
        at: &At,
        meta: &Metadata,
        size: u64,
        target: &[u8],
    ) -> io::Result<()> {
        let mut name = at.name.as_os_str().as_bytes().to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(meta.mode() & 0o7777);
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        let fields = header.as_old_mut();
        if !fits(&name, &mut fields.name) {
            self.long(EntryType::GNULongName, name)?;
        }
        if !fits(target, &mut fields.linkname) {
            self.long(EntryType::GNULongLink, target.to_vec())?;
        }
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    /// What has not room in a header comes before it, in an entry of its own.
    fn long(&mut self, kind: EntryType, mut text: Vec<u8>) -> io::Result<()> {
        text.push(0);
        self.extension(kind, &text)
    }

    fn extension(&mut self, kind: EntryType, content: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        fits(b"././@LongLink", &mut header.as_old_mut().name);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(content)?;
        self.pad(content.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK][over..]) }
    }
}

/// Opens an entry without following it, and looks at what it really is.
fn open(dir: &File, entry: &DirEntry, more: OFlag) -> io::Result<(File, Metadata)> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | WARY | more;
    let file = File::from(openat(dir, entry.file_name().as_os_str(), flags, Mode::empty())?);
    let meta = file.metadata()?;
    Ok((file, meta))
}

/// Whether a directory is on a file system that holds no files.
fn is_kernels_own(dir: &File) -> bool {
    const KERNELS_OWN: [FsType; 9] = [
        statfs::PROC_SUPER_MAGIC,
        statfs::SYSFS_MAGIC,
        statfs::CGROUP_SUPER_MAGIC,
        statfs::CGROUP2_SUPER_MAGIC,
        statfs::DEVPTS_SUPER_MAGIC,
        statfs::DEBUGFS_MAGIC,
        statfs::TRACEFS_MAGIC,
        statfs::SECURITYFS_MAGIC,
        statfs::BPF_FS_MAGIC,
    ];
    fstatfs(dir).is_ok_and(|statfs| KERNELS_OWN.contains(&statfs.filesystem_type()))
}

fn special(kind: FileType) -> Option<EntryType> {
    if kind.is_fifo() {
        Some(EntryType::Fifo)
    } else if kind.is_char_device() {
        Some(EntryType::Char)
    } else if kind.is_block_device() {
        Some(EntryType::Block)
    } else {
        None
    }
}

/// Puts `text` into a field of a header; false if it has not room there with a NUL behind it.
fn fits(text: &[u8], field: &mut [u8]) -> bool {
    let fits = text.len() < field.len();
    let length = if fits { text.len() } else { field.len() - 1 };
    field[..length].copy_from_slice(&text[..length]);
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_makes_up_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let is = |path: &Path| is_kernels_own(&File::open(path).unwrap());
        assert!(is(Path::new("/proc")) && is(Path::new("/proc/self/fd")));
        assert!(is(Path::new("/sys")));
        assert!(!is(dir.path()));
    }
}
