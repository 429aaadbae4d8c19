//! Watches one VMM: alone declares its machine ended, after its traces are gone.
//!
//! Firecracker ends when its guest does. If nobody watches just then, what the guest has printed goes
//! with it: unlike QEMU it cannot be told to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bhatti_engine::Exit;
use bhatti_vmm::cgroup::Group;
use bhatti_vmm::machine_dir::{CONSOLE_LOG, MachineDir};
use bhatti_vmm::process::{Process, Status};
use bhatti_vmm::vmm_log::VmmLog;
use tokio::sync::watch;

/// What a watcher is made of.
pub(crate) struct Watcher {
    pub process: Arc<Process>,
    pub group: Group,
    pub dir: Arc<MachineDir>,
    pub console: Option<Arc<VmmLog>>,
    pub log: Option<VmmLog>,
    /// Set before the process is killed by us.
    pub killed: Arc<AtomicBool>,
}

impl Watcher {
    /// Watches until the machine has ended and its traces are gone.
    pub(crate) async fn run(self, exit: watch::Sender<Option<Exit>>) {
        let status = self.process.ended().await.unwrap_or_else(|error| {
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
