//! The memory of a stopped machine, as its kernel sees it from outside: which pages it has
//! changed, and what is in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, bail};

const PAGE: u64 = 4096;
/// The longest piece that is copied at once, in pages.
const MOST_RUN: u64 = 256;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Of the file that is mapped, so unchanged.
const FILE: u64 = 1 << 61;

/// Copies every page that the process has changed of its `bytes` of guest memory to the same
/// place in `to`. Returns how many bytes these were.
pub(super) fn copy_changed(pid: i32, bytes: u64, to: &File) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let start = private_mapping(&maps, bytes)?;
    let mut entries = vec![0; usize::try_from(bytes / PAGE * 8)?];
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    pagemap.read_exact_at(&mut entries, start / PAGE * 8).context("cannot read a page map")?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut buffer = vec![0; usize::try_from(MOST_RUN * PAGE)?];
    let mut copied = 0;
    for (first, count) in changed(&entries) {
        let part = &mut buffer[..usize::try_from(count * PAGE)?];
        memory.read_exact_at(part, start + first * PAGE).context("cannot read guest memory")?;
        to.write_all_at(part, first * PAGE).context("cannot write guest memory down")?;
        copied += count * PAGE;
    }
    Ok(copied)
}

/// Where the one private writable mapping of `bytes` begins.
fn private_mapping(maps: &str, bytes: u64) -> Result<u64> {
    let fitting = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        (rest.starts_with("rw-p") && end.checked_sub(start)? == bytes).then_some(start)
    });
    match fitting.collect::<Vec<_>>()[..] {
        [start] => Ok(start),
        ref other => bail!("{} mappings look like guest memory", other.len()),
    }
}

/// Runs of changed pages: number of the first, and how many.
fn changed(entries: &[u8]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (page, entry) in (0..).zip(entries.as_chunks().0) {
        let entry = u64::from_ne_bytes(*entry);
        if entry & SWAPPED == 0 && (entry & PRESENT == 0 || entry & FILE != 0) {
            continue;
        }
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page && *count < MOST_RUN => *count += 1,
            _ => runs.push((page, 1)),
        }
    }
    runs
}

/// From now on nobody can change the file, which is one in memory.
pub(super) fn seal(file: &File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_the_private_mapping_of_its_size() {
        let maps = "7f0000000000-7f0000400000 rw-p 00000000 00:01 77 /dev/zero\n\
            7f0000400000-7f0000800000 rw-s 00000000 00:01 78 /memfd:x\n\
            7f0001000000-7f0001800000 rw-p 00000000 00:00 0\n";
        assert_eq!(private_mapping(maps, 4 << 20).unwrap(), 0x7f00_0000_0000);
        assert_eq!(private_mapping(maps, 8 << 20).unwrap(), 0x7f00_0100_0000);
        assert!(private_mapping(maps, 2 << 20).is_err(), "none");
        assert!(private_mapping(&maps.repeat(2), 4 << 20).is_err(), "two");
    }

    #[test]
    fn changed_pages_are_what_is_there_and_not_the_files() {
        let entries = [0, PRESENT, PRESENT, PRESENT | FILE, SWAPPED, 0, PRESENT];
        let bytes: Vec<u8> = entries.iter().flat_map(|entry: &u64| entry.to_ne_bytes()).collect();
        assert_eq!(changed(&bytes), [(1, 2), (4, 1), (6, 1)]);
        let many = PRESENT.to_ne_bytes().repeat(300);
        assert_eq!(changed(&many), [(0, 256), (256, 44)], "bounded");
    }
}
