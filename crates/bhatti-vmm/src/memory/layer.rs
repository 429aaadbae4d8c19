//! One layer: a file that says what some of a machine's pages hold.
//!
//! ```text
//!  0      header: what this is, how much follows, hashes of the index and of itself
//!  4096   page data, in ascending order of pages
//!  …      index: one entry a page, ascending: its number, where its data is, its hash
//! ```
//!
//! The header is written last, so a layer that was not finished is none. The file is exactly as
//! long as the header says. A reader trusts nothing it has not checked: the header and the index
//! by their hashes and by what they say, each page by its hash when it is read. What is allocated
//! is bounded by the length of the file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use xxhash_rust::xxh3::xxh3_128;

use super::MemoryError;
use super::pages::{MOST_PAGES, PAGE, ZERO};

const MAGIC: [u8; 8] = *b"bhattiML";
const VERSION: u32 = 1;
/// Of the header, without the hash that ends it.
const HEADER: usize = 96;
const ENTRY: usize = 24;
/// In the place of a slot: the page is zero and has no data.
const NO_SLOT: u32 = u32::MAX;

/// What a page holds, or rather enough to say whether two hold the same: its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content([u64; 2]);

impl Content {
    /// Of a page of zeros. No data has this hash: that is as unlikely as any collision, and would
    /// be found as damage when it is loaded.
    pub(crate) const ZERO: Self = Self([0; 2]);

    pub(crate) fn of(page: &[u8]) -> Self {
        if page == ZERO { Self::ZERO } else { Self::from_hash(xxh3_128(page)) }
    }

    fn from_hash(hash: u128) -> Self {
        Self([hash as u64, (hash >> 64) as u64])
    }
}

/// What a layer says about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) page: u32,
    /// Which of the layer's pages of data it is; none if it is zero.
    slot: u32,
    pub(crate) content: Content,
}

impl Entry {
    /// Where its data is; `None` if it is zero.
    pub(crate) fn slot(&self) -> Option<u32> {
        (self.slot != NO_SLOT).then_some(self.slot)
    }
}

/// What a layer is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Of the machine's memory.
    pub(crate) pages: u32,
    /// Which layer of its chain this is, from 0.
    pub(crate) ordinal: u32,
    /// Drawn at random.
    pub(crate) id: u128,
    /// The id of the layer below; zero for the lowest.
    pub(crate) below: u128,
    /// The id of the newest layer of the base; zero if the chain stands on nothing.
    pub(crate) base: u128,
}

/// A finished layer, its index checked.
#[derive(Debug)]
pub(crate) struct Layer {
    file: File,
    path: Utf8PathBuf,
    pub(crate) place: Place,
    /// Ascending by page.
    pub(crate) entries: Vec<Entry>,
    /// How many of the entries have data.
    pub(crate) data_pages: u32,
}

impl Place {
    /// Reads what a layer is part of, and nothing else of it.
    pub(crate) fn read(path: &Utf8Path) -> Result<Self, MemoryError> {
        let (file, length) = open(path)?;
        Ok(Header::read(&file, path, length)?.place)
    }
}

impl Layer {
    /// Opens a layer and checks everything but its pages.
    pub(crate) fn open(path: &Utf8Path) -> Result<Self, MemoryError> {
        let (file, length) = open(path)?;
        let header = Header::read(&file, path, length)?;
        let mut index = vec![0; header.entries as usize * ENTRY];
        read_at(&file, path, &mut index, offset_of(header.data_pages))?;
        if xxh3_128(&index) != header.index_hash {
            return Err(damaged(path, "its index does not match its hash"));
        }
        let entries = parse_index(&index, &header).map_err(|why| damaged(path, why))?;
        let (place, data_pages) = (header.place, header.data_pages);
        Ok(Self { file, path: path.to_owned(), place, entries, data_pages })
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        offset_of(self.data_pages) + (self.entries.len() * ENTRY) as u64
    }

    /// Reads the data of pages that lie one behind the other from `slot` on, and checks it.
    pub(crate) fn read<'a>(
        &self,
        slot: u32,
        entries: impl Iterator<Item = &'a Entry>,
        buffer: &mut [u8],
    ) -> Result<(), MemoryError> {
        read_at(&self.file, &self.path, buffer, offset_of(slot))?;
        for (entry, page) in entries.zip(buffer.chunks_exact(PAGE)) {
            if Content::of(page) != entry.content {
                let why = format!("page {} does not match its hash", entry.page);
                return Err(damaged(&self.path, &why));
            }
        }
        Ok(())
    }

    /// Gives the file a second name.
    pub(crate) fn link(&self, path: &Utf8Path) -> io::Result<()> {
        std::fs::hard_link(&self.path, path)
    }

    /// Tells the kernel that all of it will be read, soon and in order.
    pub(crate) fn will_be_read(&self) {
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL;
        if let Err(error) = nix::fcntl::posix_fadvise(&self.file, 0, 0, advice) {
            tracing::debug!(%error, path = %self.path, "no advice taken");
        }
    }
}

/// Writes a layer. Dropped before [`Writer::finish`], it leaves a file that is no layer.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    path: Utf8PathBuf,
    place: Place,
    entries: Vec<Entry>,
    data_pages: u32,
}

impl Writer {
    /// Makes the file, which must not exist.
    pub(crate) fn create(path: &Utf8Path, place: Place) -> Result<Self, MemoryError> {
        let new = || -> io::Result<File> {
            let mut file = File::options().write(true).create_new(true).mode(0o400).open(path)?;
            // The header's place; reads as zeros until the end.
            io::Seek::seek(&mut file, io::SeekFrom::Start(PAGE as u64))?;
            Ok(file)
        };
        let file = new().map_err(MemoryError::file("create", path))?;
        Ok(Self { file, path: path.to_owned(), place, entries: Vec::new(), data_pages: 0 })
    }

    /// Appends pages, higher than all before, and the data of those that are not zero.
    pub(crate) fn append(
        &mut self,
        pages: &[(u32, Content)],
        data: &[u8],
    ) -> Result<(), MemoryError> {
        for &(page, content) in pages {
            let slot = if content == Content::ZERO { NO_SLOT } else { self.data_pages };
            self.data_pages += u32::from(slot != NO_SLOT);
            self.entries.push(Entry { page, slot, content });
        }
        self.file.write_all(data).map_err(MemoryError::file("write", &self.path))
    }

    /// Whether nothing was appended.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes what makes it a layer. The answer is its length.
    pub(crate) fn finish(mut self) -> Result<u64, MemoryError> {
        let mut index = Vec::with_capacity(self.entries.len() * ENTRY);
        for entry in &self.entries {
            index.extend_from_slice(&entry.page.to_le_bytes());
            index.extend_from_slice(&entry.slot.to_le_bytes());
            let Content([low, high]) = entry.content;
            index.extend_from_slice(&low.to_le_bytes());
            index.extend_from_slice(&high.to_le_bytes());
        }
        let header = Header {
            place: self.place,
            entries: self.entries.len() as u32,
            data_pages: self.data_pages,
            index_hash: xxh3_128(&index),
        };
        self.file
            .write_all(&index)
            .and_then(|()| self.file.write_all_at(&header.encode(), 0))
            .map_err(MemoryError::file("write", &self.path))?;
        Ok(offset_of(self.data_pages) + index.len() as u64)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    place: Place,
    entries: u32,
    data_pages: u32,
    index_hash: u128,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAGE);
        bytes.extend_from_slice(&MAGIC);
        let numbers = [
            VERSION,
            PAGE as u32,
            self.place.pages,
            self.place.ordinal,
            self.entries,
            self.data_pages,
        ];
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        for hash in [self.place.id, self.place.below, self.place.base, self.index_hash] {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        debug_assert_eq!(bytes.len(), HEADER);
        bytes.extend_from_slice(&xxh3_128(&bytes).to_le_bytes());
        bytes.resize(PAGE, 0);
        bytes
    }

    /// Reads and checks the header of a file of that length.
    fn read(file: &File, path: &Utf8Path, length: u64) -> Result<Self, MemoryError> {
        if length < PAGE as u64 {
            return Err(damaged(path, "it is shorter than a header"));
        }
        let mut bytes = [0; HEADER + 16];
        read_at(file, path, &mut bytes, 0)?;
        let header = Self::parse(&bytes).map_err(|why| damaged(path, why))?;
        let expected = offset_of(header.data_pages) + u64::from(header.entries) * ENTRY as u64;
        if length != expected {
            return Err(damaged(path, &format!("it has {length} bytes instead of {expected}")));
        }
        Ok(header)
    }

    fn parse(bytes: &[u8; HEADER + 16]) -> Result<Self, &'static str> {
        let number = |at: usize| u32::from_le_bytes(array(bytes, at));
        let wide = |at: usize| u128::from_le_bytes(array(bytes, at));
        if bytes[..8] != MAGIC {
            return Err("it is not a memory layer, or was never finished");
        }
        if wide(HEADER) != xxh3_128(&bytes[..HEADER]) {
            return Err("its header does not match its hash");
        }
        if number(8) != VERSION || number(12) != PAGE as u32 {
            return Err("it was written by another version");
        }
        let header = Self {
            place: Place {
                pages: number(16),
                ordinal: number(20),
                id: wide(32),
                below: wide(48),
                base: wide(64),
            },
            entries: number(24),
            data_pages: number(28),
            index_hash: wide(80),
        };
        if header.place.pages > MOST_PAGES
            || header.entries > header.place.pages
            || header.data_pages > header.entries
        {
            return Err("its header counts more pages than there can be");
        }
        Ok(header)
    }
}

fn parse_index(index: &[u8], header: &Header) -> Result<Vec<Entry>, &'static str> {
    let mut entries: Vec<Entry> = Vec::with_capacity(header.entries as usize);
    let mut next_slot = 0;
    for bytes in index.as_chunks::<ENTRY>().0 {
        let page = u32::from_le_bytes(array(bytes, 0));
        let slot = u32::from_le_bytes(array(bytes, 4));
        if page >= header.place.pages || entries.last().is_some_and(|last| last.page >= page) {
            return Err("its index is not in order");
        }
        let content = Content::from_hash(u128::from_le_bytes(array(bytes, 8)));
        // Data lies in the order of pages, so there is only one right place.
        let right = if content == Content::ZERO { NO_SLOT } else { next_slot };
        if slot != right {
            return Err("its index points to the wrong places");
        }
        next_slot += u32::from(slot != NO_SLOT);
        entries.push(Entry { page, slot, content });
    }
    if next_slot != header.data_pages {
        return Err("its index does not account for its data");
    }
    Ok(entries)
}

/// `N` bytes of `bytes`, which has them.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn offset_of(slot: u32) -> u64 {
    (1 + u64::from(slot)) * PAGE as u64
}

fn open(path: &Utf8Path) -> Result<(File, u64), MemoryError> {
    let opened = File::open(path).and_then(|file| {
        let length = file.metadata()?.len();
        Ok((file, length))
    });
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged(path, "it is missing"),
        _ => MemoryError::file("open", path)(error),
    })
}

fn read_at(
    file: &File,
    path: &Utf8Path,
    buffer: &mut [u8],
    offset: u64,
) -> Result<(), MemoryError> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(path, "it ends early"),
        _ => MemoryError::file("read", path)(error),
    })
}

fn damaged(path: &Utf8Path, why: &str) -> MemoryError {
    MemoryError::damaged(format!("{path} is damaged: {why}"))
}

#[cfg(test)]
mod tests;
