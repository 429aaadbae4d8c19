//! Watches one VMM: alone declares its machine ended, after its traces are gone.
//!
//! Firecracker ends when its guest does. If nobody watches just then, what the guest has printed goes
//! with it: unlike QEMU it cannot be told to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bhatti_engine::Exit;
use bhatti_types::EngineId;
use bhatti_vmm::cgroup::Group;
use bhatti_vmm::machine_dir::{CONSOLE_LOG, MachineDir};
use bhatti_vmm::process::{Process, Status};
use bhatti_vmm::vmm_log::VmmLog;
use tokio::sync::watch;

use crate::counters::Counters;

/// How many of its complaints people are shown, and as much of each.
const COMPLAINTS: usize = 3;
const SHOWN: usize = 300;

/// What a watcher is made of.
pub(crate) struct Watcher {
    pub id: EngineId,
    pub process: Arc<Process>,
    pub group: Group,
    pub dir: Arc<MachineDir>,
    pub console: Option<Arc<VmmLog>>,
    pub log: Option<VmmLog>,
    pub counters: Option<Arc<Counters>>,
    /// Set before the process is killed by us.
    pub killed: Arc<AtomicBool>,
}

impl Watcher {
    /// Watches until the machine has ended and its traces are gone.
    pub(crate) async fn run(self, exit: watch::Sender<Option<Exit>>) {
        let counters = self.counters.clone();
        let collecting = async {
            if let Some(counters) = counters {
                counters.collect().await;
            }
            std::future::pending().await
        };
        let ended = tokio::select! {
            ended = self.process.ended() => ended,
            never = collecting => never,
        };
        let status = ended.unwrap_or_else(|error| {
            tracing::error!(%error, dir = %self.dir.path(), "cannot collect a VMM");
            Status::Unknown
        });
        let killed = self.killed.load(Ordering::Acquire);
        let detail = self.finish(status).await;
        exit.send_replace(Some(match status {
            _ if killed => Exit::Killed,
            // It says so of a guest that has reset itself, which is how one powers off here.
            Status::Code(0) => Exit::Guest,
            _ => Exit::Died { detail },
        }));
    }

    /// Keeps the console and removes the traces of the ended process; a sentence about its end.
    async fn finish(self, status: Status) -> String {
        let mut detail = status.describe();
        if self.group.ran_out_of_memory() {
            detail.push_str("; the kernel says it ran out of its memory limit");
        }
        if let Some(log) = &self.log {
            detail.push_str("; its log ends: ");
            detail.push_str(&log.tail());
        }
        if let Some(console) = &self.console {
            for complaint in complaints(&console.all(), &self.id) {
                detail.push_str("; it said: ");
                detail.push_str(&complaint);
            }
        }
        let clear = move || {
            if let Some(console) = &self.console
                && let Err(error) = self.dir.write(CONSOLE_LOG, &console.all())
            {
                tracing::warn!(%error, dir = %self.dir.path(), "cannot save a console");
            }
            if let Err(error) = self.group.clear() {
                tracing::error!(%error, dir = %self.dir.path(), "cannot remove a control group");
            }
            self.dir.remove_traces();
        };
        if let Err(error) = tokio::task::spawn_blocking(clear).await {
            // Only when the runtime is going down; the next start sweeps.
            tracing::debug!(%error, "traces left for the next start");
        }
        detail
    }
}

/// The last lines of Firecracker's own log, which it writes between what its guest prints:
/// `2026-11-23T03:28:21.123456789 [ID:main] Failed to …`. A guest could print the same, so it is worth no
/// more than anything else a guest says, and cut like that.
fn complaints(console: &[u8], id: &EngineId) -> Vec<String> {
    let text = String::from_utf8_lossy(console);
    let mark = format!(" [{id}:");
    let said = text.lines().rev().filter_map(|line| {
        let (_, rest) = line.split_once(&mark)?;
        let (_thread, complaint) = rest.split_once("] ")?;
        Some(complaint.chars().filter(|c| !c.is_control()).take(SHOWN).collect())
    });
    let mut last: Vec<String> = said.take(COMPLAINTS).collect();
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_log_is_found_between_what_a_guest_prints() {
        let id = EngineId::random();
        let mut console = format!(
            "[    0.1] Linux\nlogin: 2026-11-23T03:28:21.1 [{id}:fc_vcpu 0] Unexpected \x1b[1mexit\n\
             2026-11-23T03:28:22.1 [other:main] no\n2026-11-23T03:28:23.1 [{id}:main] {}\n",
            "x".repeat(1000)
        );
        let found = complaints(console.as_bytes(), &id);
        assert_eq!(found, ["Unexpected [1mexit".to_owned(), "x".repeat(SHOWN)]);
        (0..9).for_each(|n| console.push_str(&format!("t [{id}:main] {n}\n")));
        assert_eq!(complaints(console.as_bytes(), &id), ["6", "7", "8"]);
        assert_eq!(complaints(b"\xff [", &id), [""; 0]);
    }
}
