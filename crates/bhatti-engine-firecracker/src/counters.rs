//! How often its limits have held a machine back, as Firecracker counts it.
//!
//! It says what came since it said so last, once a minute and when it is asked to: a line of JSON of a
//! few kilobytes, into a pipe that it holds open at both ends. So what it said while no daemon ran is still
//! there for the next, as much as a pipe holds; what does not fit is lost. Nothing is ever written to a disk.
//!
//! Only these numbers are taken from it: what else it counts, the kernel says of every process.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bhatti_engine::HeldBack;
use bhatti_vmm::machine_dir::MachineDir;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::config::METRICS_PIPE;

/// More than a line has, and as much as a pipe holds.
const MOST: usize = 64 << 10;
/// How long nobody listens after something was said: a VMM that does not stop talking costs little.
const PAUSE: Duration = Duration::from_secs(1);

/// The numbers of one machine.
#[derive(Debug)]
pub(crate) struct Counters {
    pipe: AsyncFd<File>,
    heard: Mutex<Heard>,
}

/// What was said so far.
#[derive(Debug, Default)]
struct Heard {
    /// The beginning of a line whose end is still to come.
    line: Vec<u8>,
    /// The line that is coming is longer than one can be.
    too_long: bool,
    sum: HeldBack,
}

/// What is read of a line: what has come since the one before.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    block: Block,
    net: Net,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Block {
    rate_limiter_throttled_events: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Net {
    rx_rate_limiter_throttled: u64,
    tx_rate_limiter_throttled: u64,
}

impl Counters {
    /// Listens at a pipe that does not block.
    pub(crate) fn of(pipe: File) -> io::Result<Self> {
        // SAFETY: a `File` stays the same open descriptor until it is dropped, and `AsyncFd`
        // deregisters it before that.
        let pipe = unsafe { AsyncFd::register_with_interest(pipe, Interest::READABLE) }?;
        Ok(Self { pipe, heard: Mutex::default() })
    }

    /// Those of a machine that a former daemon started, from now on; `None`: it had nothing to count.
    pub(crate) fn found(dir: &MachineDir) -> Option<Self> {
        match dir.open_pipe(METRICS_PIPE).and_then(Self::of) {
            Ok(counters) => Some(counters),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, dir = %dir.path(), "a machine's limits cannot be counted");
                None
            }
        }
    }

    /// Takes what comes, so that there is room for more. Ends when nobody can say anything any more.
    /// Cancel-safe.
    pub(crate) async fn collect(&self) {
        while let Ok(mut ready) = self.pipe.readable().await {
            match ready.try_io(|_| self.take()) {
                Ok(Ok(1..)) => sleep(PAUSE).await,
                Ok(Ok(0) | Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }

    /// What has come until now.
    pub(crate) fn sum(&self) -> HeldBack {
        // What cannot be read now is heard later, or never was said.
        drop(self.take());
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).sum
    }

    fn take(&self) -> io::Result<usize> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said = vec![0; MOST];
        let count = self.pipe.get_ref().read(&mut said)?;
        heard.hear(&said[..count]);
        Ok(count)
    }
}

impl Heard {
    fn hear(&mut self, said: &[u8]) {
        for part in said.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() > MOST {
                self.too_long = true;
                self.line.clear();
            }
            if !self.too_long {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                self.add();
                self.line.clear();
                self.too_long = false;
            }
        }
    }

    /// What is no such line adds nothing: the end of one may have found no room.
    fn add(&mut self) {
        let Line { block, net } = serde_json::from_slice(&self.line).unwrap_or_default();
        let HeldBack { disk, sent, received } = &mut self.sum;
        *disk = disk.saturating_add(block.rate_limiter_throttled_events);
        *sent = sent.saturating_add(net.tx_rate_limiter_throttled);
        *received = received.saturating_add(net.rx_rate_limiter_throttled);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{LineWriter, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use camino::Utf8Path;
    use tokio::time::timeout;

    use super::*;

    /// Of Firecracker 1.15.1, shortened.
    const SAID: &[u8] = br#"{"utc_timestamp_ms":1764000000000,"api_server":{"process_startup_time_us":9},"block_root":{"rate_limiter_throttled_events":3},"block":{"activate_fails":0,"rate_limiter_throttled_events":3},"net_eth0":{"rx_rate_limiter_throttled":5},"net":{"rx_rate_limiter_throttled":5,"tx_rate_limiter_throttled":7},"seccomp":{"num_faults":0}}
"#;

    fn times(times: u64) -> HeldBack {
        HeldBack { disk: 3 * times, sent: 7 * times, received: 5 * times }
    }

    #[test]
    fn lines_add_up_however_they_come_and_rubbish_adds_nothing() {
        let mut heard = Heard::default();
        SAID.chunks(7).for_each(|part| heard.hear(part));
        assert_eq!(heard.sum, times(1));
        heard.hear(&[SAID, SAID].concat());
        assert_eq!(heard.sum, times(3));
        heard.hear(b"\n{}\nnull\n[1\n\xff\n{\"block\":{\"rate_limiter_throttled_events\":-1}}\n");
        assert_eq!(heard.sum, times(3));
        (0..99).for_each(|_| heard.hear(&[b' '; 4096]));
        assert!(heard.line.len() <= MOST, "{} bytes are kept", heard.line.len());
        heard.hear(SAID);
        assert_eq!(heard.sum, times(3), "the end of a line that was too long");
        heard.hear(SAID);
        assert_eq!(heard.sum, times(4));
        heard.hear(b"{\"block\":{\"rate_limiter_throttled_events\":18446744073709551615}}\n");
        assert_eq!(heard.sum.disk, u64::MAX);
    }

    /// Needs root.
    #[tokio::test]
    async fn what_was_said_to_nobody_is_there_for_the_next_and_what_does_not_fit_is_lost() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = MachineDir::open(Utf8Path::from_path(scratch.path()).unwrap()).unwrap();
        assert!(Counters::found(&dir).is_none());
        let owner = dir.owner().unwrap();
        let first = Counters::of(dir.make_pipe(METRICS_PIPE, owner).unwrap()).unwrap();
        // As Firecracker does it.
        let mut vmm = std::fs::OpenOptions::new();
        let path = scratch.path().join(METRICS_PIPE);
        let vmm = vmm.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let mut vmm = vmm.open(path).unwrap();
        vmm.write_all(SAID).unwrap();
        assert_eq!(first.sum(), times(1));
        drop(first);
        vmm.write_all(SAID).unwrap();
        let next = Counters::found(&dir).unwrap();
        assert_eq!(next.sum(), times(1), "what came after");

        // More than fits: the rest is lost, and the beginning of a line is put before the next one.
        let mut vmm = LineWriter::new(vmm);
        let mut kept = 0;
        while vmm.write_all(SAID).is_ok() {
            kept += 1;
        }
        assert!(kept > 0);
        let before = next.sum();
        assert!(before.disk >= times(kept).disk, "{before:?} of {kept} lines");
        (0..3).for_each(|_| vmm.write_all(SAID).unwrap());
        let after = next.sum();
        assert!(after.disk >= before.disk + times(2).disk, "{before:?}, then {after:?}");
        drop(vmm);
        let collected = next.collect();
        // It ends, because nobody holds the pipe any more.
        timeout(Duration::from_secs(20), collected).await.unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_pipe_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = MachineDir::open(Utf8Path::from_path(scratch.path()).unwrap()).unwrap();
        let path = scratch.path().join(METRICS_PIPE);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(Counters::found(&dir).is_none());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, SAID).unwrap();
        assert!(Counters::found(&dir).is_none(), "no pipe");
    }
}
