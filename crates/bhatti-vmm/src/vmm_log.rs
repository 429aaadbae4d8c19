//! What a VMM prints, kept where it cannot fill a disk.
//!
//! A hostile VMM may print for ever. So it does not print into a file of ours but into memory of
//! a fixed size: a sealed memfd, which outlives the daemon with the VMM and counts as the VMM's
//! memory. What does not fit is lost; the beginning is what explains a failure to start. It is
//! lost too when the VMM ends while no daemon runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// As much as it holds.
const CAPACITY: u64 = 64 * 1024;
/// As much of its end as people are shown.
const SHOWN: usize = 2048;
/// QEMU complains that `/dev/zero` has no length, each time, and goes on.
const NOT_NEWS: &str = "ftruncate: Invalid argument";

/// The log of one VMM.
#[derive(Debug)]
pub struct VmmLog(File);

impl VmmLog {
    /// An empty one.
    pub fn create() -> io::Result<Self> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a constant that ends with a zero byte.
        let fd = unsafe { libc::memfd_create(c"vmm.log".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(CAPACITY)?;
        let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: a system call on integers.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(file))
    }

    /// That of a running VMM, through its standard error. It may have put something else there:
    /// whatever it is, it is something the VMM had open, and we only read a bounded part of it.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        Self::of_descriptor(pid, libc::STDERR_FILENO)
    }

    /// The same for another of its descriptors.
    pub fn of_descriptor(pid: i32, fd: i32) -> io::Result<Self> {
        let path = format!("/proc/{pid}/fd/{fd}");
        if !std::fs::metadata(&path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        Ok(Self(std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?))
    }

    /// The same log for a child to print into.
    pub fn for_child(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    /// Whether nothing has been said.
    pub fn is_empty(&self) -> bool {
        self.content().is_ok_and(|content| content.first().is_none_or(|byte| *byte == 0))
    }

    /// All of it, as it was said.
    pub fn all(&self) -> Vec<u8> {
        let mut content = self.content().unwrap_or_default();
        let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        content.truncate(end);
        content
    }

    /// What was said last, for people; at most 2 KiB. Touches no position a writer uses.
    pub fn tail(&self) -> String {
        let Ok(text) = self.content() else { return "its log cannot be read".to_owned() };
        let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let text = String::from_utf8_lossy(&text[..end]);
        let told: Vec<&str> = text.lines().filter(|line| !line.ends_with(NOT_NEWS)).collect();
        let told = told.join("\n");
        let mut start = told.len().saturating_sub(SHOWN);
        while !told.is_char_boundary(start) {
            start += 1;
        }
        let text = told[start..].trim().to_owned();
        if text.is_empty() { "it printed nothing".to_owned() } else { text }
    }

    fn content(&self) -> io::Result<Vec<u8>> {
        // Opened again: a duplicate would share the position the VMM writes at.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.0));
        let file = File::open(path)?;
        let mut content = Vec::new();
        file.take(CAPACITY).read_to_end(&mut content)?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_flood_ends_at_the_capacity_and_cannot_be_widened() {
        let log = VmmLog::create().unwrap();
        assert_eq!(log.tail(), "it printed nothing");
        let mut writer = log.for_child().unwrap();
        writer.write_all(b"qemu: no disk\n").unwrap();
        assert_eq!(log.tail(), "qemu: no disk");
        writer.write_all(b"twice\n").unwrap();
        assert_eq!(log.tail(), "qemu: no disk\ntwice", "reading moves no position");

        let block = [b'x'; 4096];
        let mut written = 0;
        while let Ok(count @ 1..) = writer.write(&block) {
            written += count as u64;
            assert!(written <= CAPACITY);
        }
        assert_eq!(log.tail().len(), SHOWN);
        assert!(writer.set_len(CAPACITY * 2).is_err());
        assert!(writer.set_len(0).is_err());
        assert_eq!(writer.metadata().unwrap().len(), CAPACITY);
    }
}
