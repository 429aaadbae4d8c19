//! What one sandbox has to hold, and what it may hold where nobody said "done".
//!
//! A write that was acknowledged is there afterwards, whatever happened but a crash of the
//! machine. One that was not (the daemon was killed under it) may have happened or not. A crash
//! of the machine takes the memory, and leaves of each file a version no older than the last one
//! that was synced. This file knows that and nothing of how it is brought about.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Bytes in one block of the worker's memory.
const BLOCK: usize = 64 << 10;
/// Files on the root disk and on tmpfs, and their sizes.
pub(crate) const DISK_FILES: [usize; 3] = [60, 64 << 10, 1 << 20];
pub(crate) const MEMORY_FILES: [usize; 2] = [4 << 10, 512 << 10];

/// One place that holds one generation after the other.
#[derive(Clone, Debug)]
struct Cell {
    /// What it may hold now; one entry unless a write is in doubt.
    may: Vec<u32>,
    /// What it may hold after a crash of the machine: the last synced one and all since.
    durable: Vec<u32>,
}

impl Cell {
    fn new() -> Self {
        Self { may: vec![0], durable: vec![0] }
    }

    fn write(&mut self, generation: u32, fate: Fate, synced: bool) {
        match fate {
            Fate::Acknowledged => self.may = vec![generation],
            Fate::InDoubt => self.may.push(generation),
        }
        match (fate, synced) {
            (Fate::Acknowledged, true) => self.durable = vec![generation],
            _ => self.durable.push(generation),
        }
    }

    fn observed(&mut self, generation: u32) {
        self.may = vec![generation];
        // A write in doubt that is not to be seen did not happen, and no longer will.
        self.durable.retain(|kept| *kept <= generation);
    }
}

/// Whether a write was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Acknowledged,
    InDoubt,
}

/// One change to everything a sandbox holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) block: usize,
    pub(crate) disk_file: usize,
    pub(crate) memory_file: usize,
    /// Whether the guest is told to `sync` before it answers.
    pub(crate) sync: bool,
    pub(crate) generation: u32,
}

/// What was found in a sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// The guest's clock, in seconds since 1970.
    pub(crate) clock: Option<f64>,
    /// Ticks, answers on the kept connection, and whether that broke.
    pub(crate) ticks: Option<[u64; 3]>,
    /// Digest of the worker's memory.
    pub(crate) memory: Option<String>,
    /// Digests of files, by their short names.
    pub(crate) files: BTreeMap<String, String>,
}

/// What a sandbox has to hold.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// Written into every byte on disk.
    pub(crate) disk_label: String,
    /// Written into every byte in memory; a new one after each loss of the memory.
    pub(crate) memory_label: String,
    losses: u32,
    blocks: Vec<Cell>,
    disk: Vec<Cell>,
    memory: Vec<Cell>,
    /// The least the counter shows from now on.
    ticks: u64,
    generation: u32,
}

impl Life {
    pub(crate) fn new(label: &str, blocks: usize) -> Self {
        Self {
            disk_label: label.to_owned(),
            memory_label: format!("{label}.0"),
            losses: 0,
            blocks: vec![Cell::new(); blocks],
            disk: vec![Cell::new(); DISK_FILES.len()],
            memory: vec![Cell::new(); MEMORY_FILES.len()],
            ticks: 0,
            generation: 0,
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The next change: to the places that `pick` modulo their number gives.
    pub(crate) fn next_write(&mut self, pick: usize, sync: bool) -> Write {
        self.generation += 1;
        Write {
            block: pick % self.blocks.len(),
            disk_file: pick % DISK_FILES.len(),
            memory_file: pick % MEMORY_FILES.len(),
            sync,
            generation: self.generation,
        }
    }

    pub(crate) fn written(&mut self, write: &Write, fate: Fate) {
        self.blocks[write.block].write(write.generation, fate, false);
        self.disk[write.disk_file].write(write.generation, fate, write.sync);
        self.memory[write.memory_file].write(write.generation, fate, false);
        if write.sync && fate == Fate::Acknowledged {
            // A sync is for everything.
            for cell in &mut self.disk {
                cell.durable = cell.may.clone();
            }
        }
    }

    /// The machine crashed and said so: memory begins anew, of the files what was synced counts.
    pub(crate) fn memory_is_lost(&mut self) {
        self.losses += 1;
        self.memory_label = format!("{}.{}", self.disk_label, self.losses);
        self.blocks.fill(Cell::new());
        self.memory.fill(Cell::new());
        self.ticks = 0;
        for cell in &mut self.disk {
            cell.may = cell.durable.clone();
        }
    }

    /// What it has to hold, in a few lines.
    pub(crate) fn summary(&self) -> String {
        let cells = |name: char, cells: &[Cell]| {
            let written = cells.iter().enumerate().filter(|(_, cell)| cell.durable != [0]);
            let shown = written.map(|(number, Cell { may, durable })| {
                format!("  {name}{number}: generation {may:?}, after a crash {durable:?}\n")
            });
            shown.collect::<String>()
        };
        let Self { disk_label, memory_label, blocks, disk, memory, ticks, .. } = self;
        format!(
            "files of {disk_label}, memory of {memory_label} in {} blocks, at least {ticks} ticks, \
             generation 0 but for\n{}{}{}",
            blocks.len(),
            cells('b', blocks),
            cells('d', disk),
            cells('t', memory)
        )
    }

    /// Everything that is not as it has to be, one sentence each; what was in doubt is settled.
    pub(crate) fn judge(&mut self, seen: &Seen) -> Vec<String> {
        let mut wrong = self.judge_disk(seen);
        match &seen.memory {
            None => wrong.push("the worker does not answer: its memory is gone".to_owned()),
            Some(digest) => match self.memory_that_gives(digest) {
                Some(held) => {
                    for (cell, generation) in self.blocks.iter_mut().zip(held) {
                        cell.observed(generation);
                    }
                }
                None => wrong.push(format!("the worker's memory has digest {digest}")),
            },
        }
        let files = self.memory.iter_mut().zip(MEMORY_FILES).enumerate();
        for (number, (cell, size)) in files {
            judge_file(&format!("t{number}"), &self.memory_label, size, cell, seen, &mut wrong);
        }
        match seen.ticks {
            None => wrong.push("the worker does not say how far it counted".to_owned()),
            Some([ticks, echoes, broken]) => {
                if ticks < self.ticks {
                    wrong.push(format!("the counter fell from {} to {ticks}", self.ticks));
                }
                if broken != 0 {
                    wrong.push(format!("the kept connection broke after {echoes} answers"));
                }
                self.ticks = self.ticks.max(ticks);
            }
        }
        wrong
    }

    /// The same for the files on disk alone.
    pub(crate) fn judge_disk(&mut self, seen: &Seen) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, (cell, size)) in self.disk.iter_mut().zip(DISK_FILES).enumerate() {
            judge_file(&format!("d{number}"), &self.disk_label, size, cell, seen, &mut wrong);
        }
        wrong
    }

    /// The generations of all blocks that have this digest together.
    fn memory_that_gives(&self, digest: &str) -> Option<Vec<u32>> {
        // At most one write is ever in doubt, so there are at most two of them.
        let first = self.blocks.iter().map(|cell| cell.may[0]).collect();
        let last = self.blocks.iter().map(|cell| cell.may[cell.may.len() - 1]).collect();
        [last, first].into_iter().find(|held: &Vec<u32>| self.memory_digest(held) == digest)
    }

    fn memory_digest(&self, held: &[u32]) -> String {
        let mut hash = Sha256::new();
        for (number, generation) in held.iter().enumerate() {
            hash.update(pattern(&block_line(&self.memory_label, number, *generation), BLOCK));
        }
        hex(&hash.finalize())
    }
}

fn judge_file(
    name: &str,
    label: &str,
    size: usize,
    cell: &mut Cell,
    seen: &Seen,
    wrong: &mut Vec<String>,
) {
    let Some(digest) = seen.files.get(name) else {
        wrong.push(format!("file {name} is missing; generation {:?} is expected", cell.may));
        return;
    };
    let digest_of = |generation: &u32| {
        hex(&Sha256::digest(pattern(&file_line(label, name, *generation), size)))
    };
    match cell.may.iter().copied().find(|generation| digest_of(generation) == *digest) {
        Some(generation) => cell.observed(generation),
        None => wrong.push(format!("file {name} is not generation {:?} of {label}", cell.may)),
    }
}

/// The line that one generation of a file consists of, over and over.
pub(crate) fn file_line(label: &str, name: &str, generation: u32) -> String {
    format!("{label} file {name} generation {generation}")
}

fn block_line(label: &str, number: usize, generation: u32) -> String {
    format!("{label} block {number} generation {generation}")
}

/// The line, over and over, `size` bytes in all.
fn pattern(line: &str, size: usize) -> Vec<u8> {
    line.bytes().chain([b'\n']).cycle().take(size).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
