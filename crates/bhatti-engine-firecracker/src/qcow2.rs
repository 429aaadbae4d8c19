//! Reading what another engine has left: qcow2 layers over a raw image, as one whole disk.
//!
//! ```text
//!  header ─▶ L1 table ─▶ L2 tables ─▶ clusters of 64 KiB       0: ask the layer below
//! ```
//!
//! A layer was written by a VMM, so whatever stands in it may be a lie. It can name no other file:
//! what lies below is told by the caller, and a header that asks for anything else is refused. Every
//! offset is checked against the file before it is used, and memory is taken for one table and one
//! cluster at a time, whatever the header says. Counts of references are not looked at: a lie in
//! there costs whoever wrote it his own data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What the other engine makes and what QEMU leaves as it is.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// What one L2 table describes: it has entries of 8 bytes and fills a cluster.
const GROUP: u64 = CLUSTER as u64 * (CLUSTER as u64 / 8);
/// Offset of a table or of a cluster in an entry; the other bits are flags.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROS: u64 = 1;
/// Not closed in order, and marked as corrupt: neither concerns who only reads.
const HARMLESS: u64 = 0b11;
const HEADER: usize = 104;

/// One layer, open for reading.
#[derive(Debug)]
pub(crate) struct Layer {
    file: File,
    file_bytes: u64,
    /// Of the device.
    bytes: u64,
    l1: Vec<u64>,
}

/// What a layer says of a cluster.
enum Cluster {
    Below,
    Zeros,
    At(u64),
}

impl Layer {
    /// Reads the header and the first table.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return refuse("not a regular file");
        }
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        if header[..8] != *b"QFI\xfb\0\0\0\x03" {
            return refuse("not a qcow2 file of version 3");
        }
        if word(16) != 0 {
            return refuse("its header names a backing file");
        }
        if word(20) != CLUSTER_BITS {
            return refuse("its clusters have another size than they are made with");
        }
        if word(32) != 0 {
            return refuse("its header says it is encrypted");
        }
        if long(72) & !HARMLESS != 0 {
            return refuse("its header asks for an unusual feature");
        }
        let (bytes, entries, at) = (long(24), u64::from(word(36)), long(40));
        // Each entry covers 512 MiB, so this bounds the table by the device.
        if entries != bytes.div_ceil(GROUP) {
            return refuse("its first table has not the length its device asks for");
        }
        let file_bytes = metadata.len();
        let end = entries.checked_mul(8).and_then(|length| at.checked_add(length));
        if end.is_none_or(|end| end > file_bytes) {
            return refuse("its first table lies outside the file");
        }
        // Its length has just been found to be less than the file's.
        let mut table = vec![0; usize::try_from(entries * 8).map_err(io::Error::other)?];
        file.read_exact_at(&mut table, at)?;
        Ok(Self { file, file_bytes, bytes, l1: entries_of(&table) })
    }

    /// The size of the device in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The most that is written when it becomes part of a whole disk.
    pub(crate) fn allocated(&self) -> u64 {
        self.file_bytes
    }

    /// The second table for a group of clusters; `None` if there is none.
    fn table(&self, group: u64) -> io::Result<Option<Vec<u64>>> {
        let entry = usize::try_from(group).ok().and_then(|at| self.l1.get(at));
        match entry.map_or(0, |entry| entry & OFFSET) {
            0 => Ok(None),
            at => Ok(Some(entries_of(&self.cluster(at)?))),
        }
    }

    fn cluster(&self, at: u64) -> io::Result<Vec<u8>> {
        let mut content = vec![0; CLUSTER];
        let inside = at.checked_add(CLUSTER as u64).is_some_and(|end| end <= self.file_bytes);
        if inside {
            self.file.read_exact_at(&mut content, at)?;
            return Ok(content);
        }
        if at >= self.file_bytes {
            return refuse("it points outside the file");
        }
        // The last cluster of a file need not be written to its end.
        let rest = usize::try_from(self.file_bytes - at).map_err(io::Error::other)?;
        self.file.read_exact_at(&mut content[..rest], at)?;
        Ok(content)
    }
}

/// Writes over `whole`, which holds the raw image below all layers and zeros behind it and is as
/// large as the topmost or larger, what the layers hold. The lowest comes first; none is smaller
/// than what it lies on.
pub(crate) fn flatten(layers: &[Layer], whole: &File) -> io::Result<()> {
    let bytes = layers.last().map_or(0, Layer::bytes);
    for group in 0..bytes.div_ceil(GROUP) {
        let tables: Vec<_> =
            layers.iter().map(|layer| layer.table(group)).collect::<io::Result<_>>()?;
        if tables.iter().all(Option::is_none) {
            continue;
        }
        let group_bytes = GROUP.min(bytes - group * GROUP);
        for slot in 0..usize::try_from(group_bytes.div_ceil(CLUSTER as u64)).unwrap_or(0) {
            let at = group * GROUP + (slot * CLUSTER) as u64;
            // The topmost that has it.
            let tables = tables.iter().map(|table| table.as_ref()?.get(slot).copied());
            for (layer, entry) in layers.iter().zip(tables).rev() {
                let mut content = match said(entry.unwrap_or(0))? {
                    Cluster::Below => continue,
                    Cluster::Zeros => vec![0; CLUSTER],
                    Cluster::At(place) => layer.cluster(place)?,
                };
                // Beyond the end of its device a layer holds nothing.
                let own = usize::try_from(layer.bytes.saturating_sub(at)).unwrap_or(CLUSTER);
                content[own.min(CLUSTER)..].fill(0);
                let room = usize::try_from(bytes - at).unwrap_or(CLUSTER).min(CLUSTER);
                put(whole, at, &content[..room])?;
                break;
            }
        }
    }
    Ok(())
}

/// Writes a cluster; one of zeros takes no room where the file system can do without.
fn put(whole: &File, at: u64, content: &[u8]) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    if content.iter().all(|byte| *byte == 0) {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
        let (from, length) = (i64::try_from(at), i64::try_from(content.len()));
        if let (Ok(from), Ok(length)) = (from, length)
            && fallocate(whole, hole, from, length).is_ok()
        {
            return Ok(());
        }
    }
    whole.write_all_at(content, at)
}

fn said(entry: u64) -> io::Result<Cluster> {
    match entry {
        _ if entry & COMPRESSED != 0 => refuse("it holds compressed data"),
        _ if entry & READS_AS_ZEROS != 0 => Ok(Cluster::Zeros),
        _ => match entry & OFFSET {
            0 => Ok(Cluster::Below),
            at => Ok(Cluster::At(at)),
        },
    }
}

fn entries_of(table: &[u8]) -> Vec<u64> {
    let entry = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    table.chunks_exact(8).map(entry).collect()
}

fn refuse<T>(why: &'static str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

#[cfg(test)]
#[path = "qcow2/tests.rs"]
mod tests;
