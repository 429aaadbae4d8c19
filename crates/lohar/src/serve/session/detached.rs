//! Detached commands that run, for whoever asks what goes on in this machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bhatti_wire::message::{SessionInfo, SessionKind};

use super::table::{command_text, unix_seconds};

/// The longest path of an output file that is told.
const MAX_PATH: usize = 2048;

/// By pid.
type Commands = BTreeMap<u32, SessionInfo>;

/// What runs.
#[derive(Debug, Default)]
pub(super) struct DetachedCommands(Arc<Mutex<Commands>>);

/// Keeps a command in the list, as long as this value lives.
#[derive(Debug)]
pub struct Running {
    list: Arc<Mutex<Commands>>,
    pid: u32,
}

impl DetachedCommands {
    pub(super) fn add(&self, pid: u32, argv: &[String], output_file: &str) -> Running {
        let info = SessionInfo {
            // The letter tells it from sessions, which have another.
            id: format!("d{pid}"),
            kind: SessionKind::Detached.into(),
            command: command_text(argv),
            pid,
            exit: None,
            attached: false,
            created_at: unix_seconds(),
            output_file: if output_file.len() <= MAX_PATH { output_file } else { "" }.to_owned(),
        };
        lock(&self.0).insert(pid, info);
        Running { list: Arc::clone(&self.0), pid }
    }

    pub(super) fn list(&self) -> Vec<SessionInfo> {
        lock(&self.0).values().cloned().collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.list).remove(&self.pid);
    }
}

fn lock(list: &Mutex<Commands>) -> MutexGuard<'_, Commands> {
    // Nothing panics while holding it, and PID 1 must not die of a poisoned lock.
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
