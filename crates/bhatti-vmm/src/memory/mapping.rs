//! The guest memory of one VMM, found and reached through `/proc/PID`.
//!
//! The kernel marks each page of a private mapping: "file page" (or "not there") means the page
//! is still what the mapping started with, anything else has been changed. That is the whole of
//! dirty tracking, and it costs a running machine nothing.
//!
//! Everything read here is about the VMM's own address space. The descriptors belong to the
//! address space that was there at [`Mapping::find`], not to the pid: they can never come to mean
//! another process, and answer nothing once the VMM has ended.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bhatti_engine::Piece;
use camino::Utf8PathBuf;

use super::MemoryError;
use super::maps::{NotFound, guest_memory, laid_out};
use super::pages::{PAGE, PageSet, Run, pages_in};

pub use super::maps::{Anonymous, Ground, TEMPLATE_NAME, ZERO_NAME};

/// `/proc/PID/pagemap`: eight bytes a page. Read 256 KiB at a time, which is 128 MiB of memory.
const PAGEMAP_CHUNK: usize = 32 << 10;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;

/// The guest memory of one living VMM.
#[derive(Debug)]
pub struct Mapping {
    pid: i32,
    mem: File,
    pagemap: File,
    /// In the guest's order. Never none, each a whole number of pages.
    pieces: Vec<Piece>,
    pages: u32,
    ground: Ground,
    /// Pages that the VMM has given back: they are over nothing, and not over the ground.
    given_back: PageSet,
}

impl Mapping {
    /// Finds the guest memory of a VMM: the one private mapping of exactly `bytes`, or the parts of
    /// one file that together are.
    ///
    /// A pid is not an identity. The caller holds a pidfd of the process it means and checks,
    /// after this has returned, that it still lives: then these descriptors are that process's,
    /// for ever.
    pub fn find(pid: i32, bytes: u64, anonymous: Anonymous<'_>) -> Result<Self, MemoryError> {
        let maps = open(pid, "maps", OpenFor::Read)?;
        let mut found =
            guest_memory(maps, bytes, anonymous).map_err(|error| not_found(pid, error))?;
        if let Anonymous::InTwo { at, holds, .. } = anonymous {
            let mem = open(pid, "mem", OpenFor::Read)?;
            let mut there = vec![0; holds.len()];
            found.retain(|(pieces, _)| {
                let address = pieces.first().map_or(0, |first| first.start + at);
                mem.read_exact_at(&mut there, address).is_ok() && there == holds
            });
            if found.is_empty() {
                return Err(no_mapping("nothing in it says which of its parts comes first"));
            }
        }
        match (found.pop(), found.pop()) {
            (Some((pieces, ground)), None) => Self::over(pid, pieces, ground, &[]),
            _ => Err(no_mapping(format!("there are several mappings of {bytes} bytes"))),
        }
    }

    /// Guest memory of which is known where it is and whether it was a template's, also if the VMM has
    /// given parts of it back, or all. About the pid, see [`Self::find`].
    pub fn at(pid: i32, pieces: Vec<Piece>, of_template: bool) -> Result<Self, MemoryError> {
        let maps = open(pid, "maps", OpenFor::Read)?;
        let (ground, given_back) =
            laid_out(maps, &pieces, of_template).map_err(|error| not_found(pid, error))?;
        Self::over(pid, pieces, ground, &given_back)
    }

    fn over(
        pid: i32,
        pieces: Vec<Piece>,
        ground: Ground,
        given_back: &[Piece],
    ) -> Result<Self, MemoryError> {
        let bytes = pieces.iter().try_fold(0, |sum: u64, piece| {
            let whole = piece.bytes > 0 && (piece.start | piece.bytes).is_multiple_of(PAGE as u64);
            piece.start.checked_add(piece.bytes)?;
            sum.checked_add(piece.bytes).filter(|_| whole)
        });
        let Some(pages) = bytes.and_then(pages_in) else {
            return Err(no_mapping(format!("no machine has {pieces:?} for memory")));
        };
        let mem = open(pid, "mem", OpenFor::ReadAndWrite)?;
        let pagemap = open(pid, "pagemap", OpenFor::Read)?;
        let given_back = pages_of(&pieces, given_back, pages);
        Ok(Self { pid, mem, pagemap, pieces, pages, ground, given_back })
    }

    /// Where in the VMM it lies, in the guest's order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many pages of memory the machine has.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// What an unchanged page holds.
    pub fn ground(&self) -> Ground {
        self.ground
    }

    /// The pages that may differ from what the mapping started with. Every page that does is there, if
    /// the machine is paused; some may be there that do not. Of what was given back, every page that the
    /// machine has looked at since is there: what it has not is whatever it was, to it.
    pub fn changed(&self) -> Result<PageSet, MemoryError> {
        let mut set = PageSet::new(self.pages);
        let mut chunk = vec![0; PAGEMAP_CHUNK * 8];
        let mut page = 0;
        while page < self.pages {
            let (address, bytes) = self.whereabouts(page);
            let count = PAGEMAP_CHUNK.min(bytes as usize / PAGE);
            let chunk = &mut chunk[..count * 8];
            self.pagemap
                .read_exact_at(chunk, address / PAGE as u64 * 8)
                .map_err(|error| self.error("read", "pagemap", error))?;
            for (entry, page) in chunk.as_chunks().0.iter().zip(page..) {
                let alone = self.ground == Ground::Huge || self.given_back.contains(page);
                if is_changed(u64::from_ne_bytes(*entry), alone) {
                    set.insert(page);
                }
            }
            page += count as u32;
        }
        Ok(set)
    }

    /// Reads a run of pages into `buffer`, which is as long as they are.
    pub fn read(&self, run: Run, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check(run, buffer.len())?;
        let (mut page, mut rest) = (run.first, buffer);
        while !rest.is_empty() {
            let (address, bytes) = self.whereabouts(page);
            let (now, later) = rest.split_at_mut(rest.len().min(bytes as usize));
            let read = self.mem.read_exact_at(now, address);
            read.map_err(|error| self.error("read", "mem", error))?;
            page += (now.len() / PAGE) as u32;
            rest = later;
        }
        Ok(())
    }

    /// Writes pages, from `first` on.
    pub fn write(&self, first: u32, content: &[u8]) -> Result<(), MemoryError> {
        let count = u32::try_from(content.len() / PAGE).unwrap_or(u32::MAX);
        self.check(Run { first, count }, content.len())?;
        let (mut page, mut rest) = (first, content);
        while !rest.is_empty() {
            let (address, bytes) = self.whereabouts(page);
            let (now, later) = rest.split_at(rest.len().min(bytes as usize));
            let written = self.mem.write_all_at(now, address);
            written.map_err(|error| self.error("write", "mem", error))?;
            page += (now.len() / PAGE) as u32;
            rest = later;
        }
        Ok(())
    }

    /// Has the kernel give the guest all of the huge pages it was promised, now. Reading one is
    /// enough for that, also of a machine that runs.
    ///
    /// Fails where there are none left, which the guest would die of.
    pub fn populate(&self, page_bytes: u64) -> Result<(), MemoryError> {
        for piece in &self.pieces {
            for address in (piece.start..piece.start + piece.bytes).step_by(page_bytes as usize) {
                let read = self.mem.read_exact_at(&mut [0], address);
                read.map_err(|error| self.error("read", "mem", error))?;
            }
        }
        Ok(())
    }

    /// Whether a run, of that length, lies within the guest's memory at all.
    fn check(&self, run: Run, bytes: usize) -> Result<(), MemoryError> {
        let fits = run.first.checked_add(run.count).is_some_and(|end| end <= self.pages);
        if fits && bytes == run.count as usize * PAGE {
            return Ok(());
        }
        Err(no_mapping(format!("{} pages from {} of {}", run.count, run.first, self.pages)))
    }

    /// Where a page of the guest's lies in the VMM, and how many bytes are there from it on.
    fn whereabouts(&self, page: u32) -> (u64, u64) {
        let mut skip = u64::from(page) * PAGE as u64;
        for piece in &self.pieces {
            if skip < piece.bytes {
                return (piece.start + skip, piece.bytes - skip);
            }
            skip -= piece.bytes;
        }
        unreachable!("checked by whoever asks")
    }

    fn error(&self, action: &'static str, name: &str, source: io::Error) -> MemoryError {
        // The kernel reads and writes nothing in an address space that is gone.
        match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => MemoryError::Gone,
            _ => MemoryError::File { action, path: path(self.pid, name), source },
        }
    }
}

/// Which of a memory's pages lie in these parts of its pieces.
fn pages_of(pieces: &[Piece], parts: &[Piece], pages: u32) -> PageSet {
    let mut set = PageSet::new(pages);
    let mut before = 0;
    for piece in pieces {
        for part in parts.iter().filter(|part| (piece.start..piece.end()).contains(&part.start)) {
            // Of a whole number of pages, as all mappings are, and no more than `pages`.
            let first = before + (part.start - piece.start) / PAGE as u64;
            let behind = first + part.bytes / PAGE as u64;
            (first..behind).filter_map(|page| u32::try_from(page).ok()).for_each(|page| {
                set.insert(page);
            });
        }
        before += piece.bytes / PAGE as u64;
    }
    set
}

fn not_found(pid: i32, error: NotFound) -> MemoryError {
    match error {
        NotFound::Io(source) => {
            MemoryError::File { action: "read", path: path(pid, "maps"), source }
        }
        NotFound::Why(why) => no_mapping(why),
    }
}

/// `alone`: nothing lies below the page, so if it is there at all, it may be anything. Some kernels say of
/// a huge page of zeros that it is of a file.
fn is_changed(entry: u64, alone: bool) -> bool {
    entry & SWAPPED != 0 || (entry & PRESENT != 0 && (alone || entry & FILE == 0))
}

enum OpenFor {
    Read,
    ReadAndWrite,
}

fn open(pid: i32, name: &str, purpose: OpenFor) -> Result<File, MemoryError> {
    let path = path(pid, name);
    let write = matches!(purpose, OpenFor::ReadAndWrite);
    File::options().read(true).write(write).open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MemoryError::Gone,
        _ if source.raw_os_error() == Some(libc::ESRCH) => MemoryError::Gone,
        _ => MemoryError::File { action: "open", path, source },
    })
}

fn path(pid: i32, name: &str) -> Utf8PathBuf {
    format!("/proc/{pid}/{name}").into()
}

fn no_mapping(why: impl Into<String>) -> MemoryError {
    MemoryError::NoMapping { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_marks_decides() {
        for (entry, alone, expected) in [
            (0, false, false),
            (PRESENT | FILE, false, false),
            (PRESENT, false, true),
            (SWAPPED, false, true),
            (SWAPPED | FILE, false, true),
            (PRESENT | FILE, true, true),
            (0, true, false),
        ] {
            assert_eq!(is_changed(entry, alone), expected, "{entry:x} {alone}");
        }
    }
}
