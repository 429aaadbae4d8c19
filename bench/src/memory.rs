//! What processes hold in memory, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::iter::Sum;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Of one process or several, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Footprint {
    /// Every resident page, shared ones in full.
    pub(crate) rss: f64,
    /// Shared pages divided among those who share them.
    pub(crate) pss: f64,
    /// The part of it that is no file's: a process has it alone.
    pub(crate) anonymous: f64,
}

impl Sum for Footprint {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            rss: sum.rss + one.rss,
            pss: sum.pss + one.pss,
            anonymous: sum.anonymous + one.anonymous,
        })
    }
}

impl Footprint {
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(Self {
            rss: mib(text, "Rss")?,
            pss: mib(text, "Pss")?,
            anonymous: mib(text, "Pss_Anon")?,
        })
    }
}

/// What a VMM holds beside the memory of its guest, of which it has at least `guest_mib`, in MiB: the
/// proportional set size of all its smaller mappings.
pub(crate) fn overhead(pid: i32, guest_mib: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    beside(&text, u64::from(guest_mib) << 20)
}

fn beside(smaps: &str, guest_bytes: u64) -> Result<f64> {
    let (mut sum, mut is_guests, mut seen) = (0.0, false, false);
    for line in smaps.lines() {
        if let Some(length) = length_of_mapping(line) {
            is_guests = length >= guest_bytes;
            seen |= is_guests;
        } else if line.starts_with("Pss:") && !is_guests {
            sum += mib(line, "Pss")?;
        }
    }
    ensure!(seen, "no mapping is as large as the guest's memory");
    Ok(sum)
}

/// Of a line that begins a mapping.
fn length_of_mapping(line: &str) -> Option<u64> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    hex(end)?.checked_sub(hex(start)?)
}

/// A field of one of the kernel's tables, in MiB.
fn mib(text: &str, name: &str) -> Result<f64> {
    let value = field(text, name).with_context(|| format!("the kernel tells no {name}"))?;
    let kib = value.strip_suffix(" kB").with_context(|| format!("{name} is not in kB"))?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

/// What the host could still give to processes, in MiB.
pub(crate) fn available() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    mib(&text, "MemAvailable")
}

/// What the files in memory take that a process holds open under such a name, in MiB.
pub(crate) fn memory_files(pid: i32, name: &str) -> Result<f64> {
    // One file may be open more than once.
    let mut found = BTreeMap::new();
    let dir = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
        let path = entry?.path();
        // It may have been closed meanwhile.
        let Ok(target) = fs::read_link(&path) else { continue };
        if !target.to_string_lossy().starts_with(&format!("/memfd:{name} ")) {
            continue;
        }
        if let Ok(metadata) = fs::metadata(&path) {
            found.insert(metadata.ino(), metadata.blocks() * 512);
        }
    }
    Ok(found.values().sum::<u64>() as f64 / f64::from(1 << 20))
}

/// The children of this process whose first argument is `word`.
pub(crate) fn children_told_to(word: &str) -> Result<Vec<i32>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = pid_of(&path) else { continue };
        // It may have ended meanwhile.
        let read = |name| fs::read(path.join(name)).unwrap_or_default();
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        let argument = read("cmdline").split(|byte| *byte == 0).nth(1).map(<[u8]>::to_vec);
        if field(&status, "PPid") == Some(&own) && argument.as_deref() == Some(word.as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn pid_of(path: &Path) -> Option<i32> {
    path.file_name()?.to_str()?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_read() {
        let text = "55 - 7f [rollup]\nRss:     2048 kB\nPss:     1536 kB\nPss_Dirty:  1 kB\n";
        assert!(Footprint::parse(text).is_err(), "half of it");
        let one = Footprint::parse(&format!("{text}Pss_Anon:   512 kB\n")).unwrap();
        assert_eq!(one, Footprint { rss: 2.0, pss: 1.5, anonymous: 0.5 });
        let two: Footprint = [one, one].into_iter().sum();
        assert_eq!(two, Footprint { rss: 4.0, pss: 3.0, anonymous: 1.0 });
    }

    #[test]
    fn what_is_beside_the_guests_memory_is_what_is_smaller() {
        let text = "7f0000000000-7f0000400000 rw-p 00000000 00:01 7  /memfd:x\nRss: 9 kB\n\
            Pss:   4096 kB\nPss_Anon: 1 kB\n7f0001000000-7f0001001000 r-xp 0 00:00 0 \n\
            Pss:   512 kB\nSwapPss: 3 kB\nVmFlags: rd\n";
        assert_eq!(beside(text, 4 << 20).unwrap(), 0.5);
        assert!(beside(text, 8 << 20).is_err(), "this is another process");
        let own = i32::try_from(std::process::id()).unwrap();
        let all = Footprint::of(own).unwrap().pss;
        let some = fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(beside(&some, 1).is_ok_and(|beside| beside < all));
    }

    #[test]
    fn this_process_has_a_footprint() {
        let own = Footprint::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.rss > 0.0 && own.anonymous > 0.0, "{own:?}");
        assert!(own.anonymous <= own.pss && own.pss <= own.rss, "{own:?}");
        assert!(available().unwrap() > 0.0);
    }

    #[test]
    fn files_in_memory_are_counted_once() {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let name = "bench-test";
        let file = fs::File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap());
        std::io::Write::write_all(&mut &file, &[1; 1 << 20]).unwrap();
        let _again = file.try_clone().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(memory_files(own, name).unwrap(), 1.0);
        assert_eq!(memory_files(own, "bench").unwrap(), 0.0, "another name");
    }

    #[test]
    fn a_child_is_found_by_its_argument() {
        let mut child = std::process::Command::new("sleep").arg("61.25").spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            // Until it has executed its program it has our arguments.
            let found = children_told_to("61.25").unwrap();
            if !found.is_empty() || std::time::Instant::now() > deadline {
                break found;
            }
            std::thread::yield_now();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [i32::try_from(child.id()).unwrap()]);
        assert_eq!(children_told_to("do nothing of the kind").unwrap(), [0; 0]);
    }
}
