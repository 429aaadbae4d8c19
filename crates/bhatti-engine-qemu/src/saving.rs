//! Writing a paused machine down: its devices through the VMM, its memory from outside.
//!
//! The VMM writes the devices into its own directory, the only place it can write; from there
//! they are copied, bounded, to where it cannot reach. The manifest comes last.

use std::sync::Arc;

use bhatti_engine::{EngineError, Save, Saved};

use crate::vm::Shared;
use crate::watcher::{Command, Devices};
use bhatti_vmm::blocking;
use bhatti_vmm::manifest::{self, Facts, MOST_STATE};
use bhatti_vmm::memory::chain;
use bhatti_vmm::memory::{Anonymous, of_process};

/// Where the VMM writes, in its own directory. Removed as soon as it has been copied.
const DEVICES: &str = "devices.state";

/// See [`bhatti_engine::Vm::save`].
pub(crate) async fn save(machine: Arc<Shared>, save: Save) -> Result<Saved, EngineError> {
    let memory = machine.record.memory.ok_or_else(|| EngineError::Control {
        command: "save".to_owned(),
        message: "it was started by a version that did not note its memory".to_owned(),
    })?;
    let devices = machine.ask(|reply| Command::SaveDevices(DEVICES, reply)).await?;
    blocking(move || {
        let state = machine.dir.take(DEVICES, MOST_STATE);
        let state = state.map_err(|e| machine.dir.error("read", DEVICES, e))?;
        let mapping =
            of_process(&machine.process, machine.record.pid, memory.bytes(), Anonymous::Not)?;
        let Save { into, since, base } = save;
        let mut saved = chain::save(&mapping, &into, since.as_deref(), base.as_deref())?;
        let Devices { vcpus, disk } = devices;
        let host = (*machine.host).clone();
        let facts = Facts { host, vcpus, memory, disk_bytes: disk.bytes, base };
        let bytes = manifest::write(&into, facts, &state)?;
        saved.written += bytes;
        saved.total += bytes;
        Ok(saved)
    })
    .await
}
