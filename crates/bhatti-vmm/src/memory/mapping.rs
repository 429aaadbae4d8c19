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
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use camino::Utf8PathBuf;

use super::MemoryError;
use super::pages::{PAGE, PageSet, Run, pages_in};

/// The name a template's memfd has, and so a clone's memory in `/proc/PID/maps`.
pub const TEMPLATE_NAME: &str = "bhatti-memory";

/// The name of a memfd that holds nothing and never will: memory over it starts as zero.
pub const ZERO_NAME: &str = "bhatti-zero";

/// A VMM has some hundred mappings; one that was broken into may make 65 530 with long names.
const MOST_MAPS: u64 = 16 << 20;

/// `/proc/PID/pagemap`: eight bytes a page. Read 256 KiB at a time, which is 128 MiB of memory.
const PAGEMAP_CHUNK: usize = 32 << 10;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;

/// What the pages of a mapping were before anybody wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Zero.
    Zero,
    /// Zero, in huge pages, where a page that was only read looks like one that was written.
    Huge,
    /// A template's.
    Template,
}

/// Whether a mapping without any name can be guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// It is told from others by its size: the VMM has no other one of that size.
    Counts,
    Not,
}

/// The guest memory of one living VMM.
#[derive(Debug)]
pub struct Mapping {
    pid: i32,
    mem: File,
    pagemap: File,
    start: u64,
    pages: u32,
    ground: Ground,
}

impl Mapping {
    /// Finds the guest memory of a VMM: its one private mapping of exactly `bytes`.
    ///
    /// A pid is not an identity. The caller holds a pidfd of the process it means and checks,
    /// after this has returned, that it still lives: then these descriptors are that process's,
    /// for ever.
    pub fn find(pid: i32, bytes: u64, anonymous: Anonymous) -> Result<Self, MemoryError> {
        let Some(pages) = pages_in(bytes) else {
            return Err(no_mapping(format!("no machine has {bytes} bytes of memory")));
        };
        let mem = open(pid, "mem", OpenFor::ReadAndWrite)?;
        let pagemap = open(pid, "pagemap", OpenFor::Read)?;
        let maps = open(pid, "maps", OpenFor::Read)?;
        let (start, ground) =
            guest_memory(maps, bytes, anonymous).map_err(|error| match error {
                NotFound::Io(source) => {
                    MemoryError::File { action: "read", path: path(pid, "maps"), source }
                }
                NotFound::Why(why) => no_mapping(why),
            })?;
        Ok(Self { pid, mem, pagemap, start, pages, ground })
    }

    /// How many pages of memory the machine has.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// What an unchanged page holds.
    pub fn ground(&self) -> Ground {
        self.ground
    }

    /// The pages that may differ from what the mapping started with. Every page that does is
    /// there, if the machine is paused; some may be there that do not.
    pub fn changed(&self) -> Result<PageSet, MemoryError> {
        let mut set = PageSet::new(self.pages);
        let mut chunk = vec![0; PAGEMAP_CHUNK * 8];
        let mut first = 0;
        while first < self.pages {
            let count = PAGEMAP_CHUNK.min((self.pages - first) as usize);
            let chunk = &mut chunk[..count * 8];
            let offset = (self.start / PAGE as u64 + u64::from(first)) * 8;
            self.pagemap
                .read_exact_at(chunk, offset)
                .map_err(|error| self.error("read", "pagemap", error))?;
            for (entry, page) in chunk.as_chunks().0.iter().zip(first..) {
                if is_changed(u64::from_ne_bytes(*entry), self.ground) {
                    set.insert(page);
                }
            }
            first += count as u32;
        }
        Ok(set)
    }

    /// Reads a run of pages into `buffer`, which is as long as they are.
    pub fn read(&self, run: Run, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let offset = self.offset(run, buffer.len())?;
        self.mem.read_exact_at(buffer, offset).map_err(|error| self.error("read", "mem", error))
    }

    /// Writes pages, from `first` on.
    pub fn write(&self, first: u32, content: &[u8]) -> Result<(), MemoryError> {
        let count = u32::try_from(content.len() / PAGE).unwrap_or(u32::MAX);
        let offset = self.offset(Run { first, count }, content.len())?;
        self.mem.write_all_at(content, offset).map_err(|error| self.error("write", "mem", error))
    }

    /// Where a run lies in the VMM, if it lies within the guest's memory at all.
    fn offset(&self, run: Run, bytes: usize) -> Result<u64, MemoryError> {
        let fits = run.first.checked_add(run.count).is_some_and(|end| end <= self.pages);
        if !fits || bytes != run.count as usize * PAGE {
            let why = format!("{} pages from {} of {}", run.count, run.first, self.pages);
            return Err(no_mapping(why));
        }
        Ok(self.start + u64::from(run.first) * PAGE as u64)
    }

    fn error(&self, action: &'static str, name: &str, source: io::Error) -> MemoryError {
        // The kernel reads and writes nothing in an address space that is gone.
        match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => MemoryError::Gone,
            _ => MemoryError::File { action, path: path(self.pid, name), source },
        }
    }
}

fn is_changed(entry: u64, ground: Ground) -> bool {
    let kept = entry & FILE == 0 || ground == Ground::Huge;
    entry & SWAPPED != 0 || (entry & PRESENT != 0 && kept)
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

enum NotFound {
    Io(io::Error),
    Why(String),
}

/// A mapping that may be guest memory.
#[derive(Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    ground: Ground,
    /// Device and inode: what it maps.
    file: String,
    named: bool,
}

impl Area {
    /// Whether both are parts of one mapping. Neighbours without a name need have nothing to do with
    /// each other; the kernel shows as one what is.
    fn goes_on_with(&self, next: &Self) -> bool {
        self.named && self.end == next.start && self.file == next.file
    }
}

/// Finds the one private mapping of `bytes` in the text of `/proc/PID/maps`.
fn guest_memory(
    maps: impl Read,
    bytes: u64,
    anonymous: Anonymous,
) -> Result<(u64, Ground), NotFound> {
    let mut reader = BufReader::with_capacity(64 << 10, maps.take(MOST_MAPS));
    let mut areas: Vec<Area> = Vec::new();
    let (mut line, mut seen) = (Vec::new(), 0);
    while reader.read_until(b'\n', &mut line).map_err(NotFound::Io)? != 0 {
        seen += line.len() as u64;
        if let Some(area) = parse(&String::from_utf8_lossy(&line), anonymous) {
            match areas.last_mut() {
                Some(last) if last.goes_on_with(&area) => {
                    last.end = area.end;
                }
                _ => areas.push(area),
            }
        }
        line.clear();
    }
    if seen >= MOST_MAPS {
        return Err(NotFound::Why("it has too many mappings".to_owned()));
    }
    let mut fitting = areas.iter().filter(|area| area.end - area.start == bytes);
    match (fitting.next(), fitting.next()) {
        (Some(area), None) => Ok((area.start, area.ground)),
        (Some(_), Some(_)) => {
            Err(NotFound::Why(format!("there are several mappings of {bytes} bytes")))
        }
        (None, _) => {
            let there: Vec<u64> = areas.iter().take(8).map(|area| area.end - area.start).collect();
            Err(NotFound::Why(format!("none of {there:?} bytes is {bytes} bytes long")))
        }
    }
}

/// A line of `/proc/PID/maps`, if it is about guest memory: private, writable, of a known name.
fn parse(line: &str, anonymous: Anonymous) -> Option<Area> {
    let mut words = line.trim_end().splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    if words.next()? != "rw-p" {
        return None;
    }
    let (_offset, device, rest) = (words.next()?, words.next()?, words.next()?);
    let name = words.next().unwrap_or_default().trim_start();
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let ground = match name.strip_prefix("/memfd:") {
        Some(TEMPLATE_NAME) => Ground::Template,
        Some(ZERO_NAME) => Ground::Zero,
        // What QEMU calls the huge pages it makes by itself.
        Some("memory-backend-memfd") => Ground::Huge,
        // The jail has a root of its own; how much of it the name shows depends on who looks.
        None if name.ends_with("/dev/zero") => Ground::Zero,
        None if name.is_empty() && anonymous == Anonymous::Counts => Ground::Zero,
        _ => return None,
    };
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then(|| Area {
        start,
        end,
        ground,
        file: format!("{device} {rest}"),
        named: !name.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0400000 r--p 00000000 fe:00 1234   /usr/bin/qemu-system-x86_64
7f0000000000-7f0000400000 rw-p 00000000 00:01 77     /memfd:bhatti-memory (deleted)
7f0000400000-7f0000800000 rw-p 00400000 00:01 77     /memfd:bhatti-memory (deleted)
7f0000800000-7f0000900000 rw-p 00000000 00:01 78     /memfd:bhatti-memory (deleted)
7f0001000000-7f0001800000 rw-s 00000000 00:01 79     /memfd:bhatti-memory (deleted)
7f0002000000-7f0002800000 r--p 00000000 00:01 77     /memfd:bhatti-memory (deleted)
7f0003000000-7f0003800000 rw-p 00000000 00:00 0
7f0004000000-7f0004800000 rw-p 00000000 00:05 7      /memfd:other (deleted)
7f0005000000-7f0005200000 rw-p 00000000 00:05 5      /srv/j/dev/zero
7f0006000000-7f0006600000 rw-p 00000000 00:0f 9      /memfd:memory-backend-memfd (deleted)
";

    fn found(maps: &str, bytes: u64) -> Result<(u64, Ground), String> {
        guest_memory(maps.as_bytes(), bytes, Anonymous::Not).map_err(|error| match error {
            NotFound::Io(error) => error.to_string(),
            NotFound::Why(why) => why,
        })
    }

    #[test]
    fn only_a_private_writable_mapping_of_the_right_name_and_length_is_it() {
        assert_eq!(found(MAPS, 8 << 20), Ok((0x7f00_0000_0000, Ground::Template)));
        assert_eq!(found(MAPS, 2 << 20), Ok((0x7f00_0500_0000, Ground::Zero)));
        assert_eq!(found(MAPS, 6 << 20), Ok((0x7f00_0600_0000, Ground::Huge)));
        let why = found(MAPS, 4 << 20).unwrap_err();
        assert_eq!(why, "none of [8388608, 1048576, 2097152, 6291456] bytes is 4194304 bytes long");
    }

    #[test]
    fn memory_without_a_name_is_found_where_it_counts() {
        let found = |anonymous| guest_memory(MAPS.as_bytes(), 8 << 20, anonymous).ok();
        // The one without a name and the template's are of one size.
        assert_eq!(found(Anonymous::Not), Some((0x7f00_0000_0000, Ground::Template)));
        assert_eq!(found(Anonymous::Counts), None);
        let maps = MAPS.replace("bhatti-memory", "other");
        let maps = format!("7f0002ff0000-7f0003000000 rw-p 00000000 00:00 0\n{maps}");
        let found = guest_memory(maps.as_bytes(), 8 << 20, Anonymous::Counts).ok();
        assert_eq!(found, Some((0x7f00_0300_0000, Ground::Zero)));
    }

    #[test]
    fn two_that_fit_are_none() {
        let twice = format!("{MAPS}7f0007000000-7f0007200000 rw-p 0 00:05 5 /dev/zero\n");
        assert!(found(&twice, 2 << 20).unwrap_err().contains("several"));
    }

    #[test]
    fn nonsense_is_not_a_mapping() {
        for line in [
            "",
            "7f00 rw-p 0 0 0 /dev/zero",
            "7f01-7f00 rw-p 0 0:0 0 /dev/zero",
            "ffffffffffffffffff-fffffffffffffffffff rw-p 0 0:0 0 /dev/zero",
            "7f00-7f01 rw-p 0 0:0 0 /memfd:bhatti-memory-not",
        ] {
            assert_eq!(parse(line, Anonymous::Not), None, "{line}");
        }
    }

    #[test]
    fn a_vmm_with_too_many_mappings_is_not_read_to_its_end() {
        let line = b"7f0007000000-7f0007200000 rw-p 0 00:05 5 /dev/zero\n";
        let endless = std::iter::repeat_n(&line[..], 1 << 20).collect::<Vec<_>>().concat();
        let why = found(std::str::from_utf8(&endless).unwrap(), 2 << 20).unwrap_err();
        assert_eq!(why, "it has too many mappings");
    }

    #[test]
    fn what_the_kernel_marks_decides() {
        for (entry, ground, expected) in [
            (0, Ground::Zero, false),
            (PRESENT, Ground::Zero, true),
            (PRESENT | FILE, Ground::Template, false),
            (PRESENT, Ground::Template, true),
            (SWAPPED, Ground::Template, true),
            (SWAPPED | FILE, Ground::Template, true),
            (PRESENT | FILE, Ground::Huge, true),
            (0, Ground::Huge, false),
        ] {
            assert_eq!(is_changed(entry, ground), expected, "{entry:x} {ground:?}");
        }
    }
}
