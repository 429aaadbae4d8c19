//! The group of one machine: who is in it, and its end.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use super::write;
use crate::process;

/// How long the kernel may take to empty a group whose processes were killed.
const EMPTY_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// The group of one machine.
#[derive(Clone, Debug)]
pub struct Group {
    pub(super) places: Vec<PathBuf>,
}

impl Group {
    /// Of a host without control groups.
    pub fn nowhere() -> Self {
        Self { places: Vec::new() }
    }

    /// Its directories, for the machine's record.
    pub fn paths(&self) -> Vec<Utf8PathBuf> {
        // Hierarchies are mounted by people and named by the kernel: it is all plain text.
        self.places.iter().filter_map(|p| Utf8PathBuf::from_path_buf(p.clone()).ok()).collect()
    }

    /// Processes in it, in any hierarchy. KVM has a thread of the kernel's own for each machine in
    /// there too: nobody can end that, and it goes with the machine.
    pub fn processes(&self) -> Vec<Member> {
        let mut found = std::collections::BTreeSet::new();
        for place in &self.places {
            let procs = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().filter_map(Member::parse));
        }
        found.into_iter().filter(|member| !member.is_the_kernels()).collect()
    }

    /// Whether the kernel has ended a process in it for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        self.places.iter().any(|place| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = fs::read_to_string(place.join(file)).unwrap_or_default();
                text.lines().any(|line| {
                    line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0")
                })
            })
        })
    }

    /// Ends whatever is in it and removes it. Tells whether there was a process.
    ///
    /// Blocks until the kernel has emptied it, at most ten seconds.
    pub fn clear(&self) -> io::Result<Cleared> {
        let deadline = Instant::now() + EMPTY_DEADLINE;
        let mut cleared = Cleared::Empty;
        loop {
            let processes = self.processes();
            if processes.is_empty() && self.remove_directories() {
                return Ok(cleared);
            }
            if !processes.is_empty() {
                cleared = Cleared::Killed;
                self.kill(&processes);
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // The kernel has no event for "empty" that both versions know.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends all that is in it, by way of the group where the kernel can (version 2, from 5.14), which
    /// reaches also who has no number here and confuses nobody with anybody.
    pub(super) fn kill(&self, processes: &[Member]) {
        let by_group = |place: &PathBuf| write(place, "cgroup.kill", "1").is_ok();
        if !self.places.is_empty() && self.places.iter().all(by_group) {
            return;
        }
        for member in processes {
            let Member::Pid(pid) = *member else { continue };
            // SAFETY: a system call on integers. The pid was read from our own group a moment ago;
            // only the kernel's reuse of it within that moment could mislead us.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    /// True if nothing is left.
    fn remove_directories(&self) -> bool {
        self.places.iter().all(|place| match fs::remove_dir(place) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }
}

/// Who is in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// Somebody of another PID namespace, such as a former container of ours. The kernel shows a 0,
    /// which to `kill` would mean our own process group.
    Stranger,
    Pid(i32),
}

impl Member {
    /// A line of `cgroup.procs`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        match line.parse::<i32>().ok()? {
            0 => Some(Self::Stranger),
            pid => (pid > 0).then_some(Self::Pid(pid)),
        }
    }

    /// Whether this is a thread of the kernel's own.
    fn is_the_kernels(self) -> bool {
        matches!(self, Self::Pid(pid) if process::is_the_kernels(pid))
    }
}

/// What [`Group::clear`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleared {
    /// At least one process was ended.
    Killed,
    /// There was none.
    Empty,
}
