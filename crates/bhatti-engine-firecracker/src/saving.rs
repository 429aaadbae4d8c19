//! Writing a paused machine down: its devices through the VMM, its memory from outside.
//!
//! Firecracker writes a state file and then a memory file, all of it each time. We want the first and
//! not the second, and memory as it is at the very moment the state is taken: Firecracker may go on
//! serving the network and the link of a machine that stands, into the guest's memory (it does for one
//! that was restored and has not run yet). Both come from giving it a pipe to write the state to:
//!
//! ```text
//!  Firecracker's thread   state taken ─▶ write… (the pipe is full, it waits) ─▶ …end, refuses to sync
//!  we                                    first bytes are there ─▶ read memory ─▶ drain the pipe
//! ```
//!
//! A pipe cannot be synced, so the request ends in an error before there is any memory file. That very
//! error is what we wait for; any other, and a state that would have fit into the pipe, is a failure.
//!
//! Taking the state resets the guest's vsock connections (it learns of it when it goes on), so
//! the link that was given out is closed.

use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{EngineError, Save, Saved};
use bhatti_vmm::blocking;
use bhatti_vmm::manifest::{self, Facts, MOST_STATE};
use bhatti_vmm::memory::{Anonymous, chain, known, of_process};
use hyper::Method;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use crate::api::Outcome;
use crate::arch::Arch;
use crate::config::{MachineConfig, NO_MEMORY_FILE, STATE_PIPE, SnapshotCreate, SnapshotType};
use crate::disk;
use crate::launch::Ground;
use crate::vm::Shared;

/// As little as a pipe can hold. A state has some ten times that.
const PIPE_BYTES: usize = 4096;
/// What Firecracker says of a pipe it was to sync.
const CANNOT_SYNC: &str = "sync_all on the snapshot backing file";
/// How long the request may take, with all of the memory being read in between.
const REQUEST_PATIENCE: Duration = Duration::from_secs(600);
/// How long Firecracker may take to take the state, and then to hand it over.
const STATE_PATIENCE: Duration = Duration::from_secs(30);

const CREATE: &str = "/snapshot/create";

/// See [`bhatti_engine::Vm::save`].
pub(crate) async fn save(machine: Arc<Shared>, save: Save) -> Result<Saved, EngineError> {
    machine.must_stand("save").await?;
    let MachineConfig { vcpu_count, .. } = machine.api.get("/machine-config").await?;
    let made = machine.dir.make_pipe(STATE_PIPE, machine.owner);
    let pipe = made.map_err(|e| machine.dir.error("make", STATE_PIPE, e))?;
    let result = through(&machine, pipe, save, vcpu_count).await;
    if let Err(error) = machine.dir.remove(STATE_PIPE) {
        tracing::warn!(%error, dir = %machine.dir.path(), "cannot remove a pipe");
    }
    machine.close_link();
    result
}

async fn through(
    machine: &Arc<Shared>,
    pipe: std::fs::File,
    save: Save,
    vcpus: u32,
) -> Result<Saved, EngineError> {
    let failed = |action, error| machine.dir.error(action, STATE_PIPE, error);
    let size = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
    size.map_err(|error| failed("narrow", error.into()))?;
    let mut pipe = Receiver::from_file(pipe).map_err(|error| failed("use", error))?;
    let request = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: STATE_PIPE,
        mem_file_path: NO_MEMORY_FILE,
    };
    let answer = machine.api.tell(Method::PUT, CREATE, &request, REQUEST_PATIENCE);
    tokio::pin!(answer);

    let mut state = vec![0; 1];
    let first = timeout(STATE_PATIENCE, pipe.read_exact(&mut state));
    tokio::select! {
        biased;
        first = first => { first.map_err(late)?.map_err(|error| failed("read", error))?; }
        answer = &mut answer => return Err(answer?.done(CREATE).err().unwrap_or_else(too_short)),
    }
    // From here until the pipe is drained the VMM's thread stands in its write.
    let (mut saved, into, base) = {
        let machine = Arc::clone(machine);
        blocking(move || read_memory(&machine, save)).await?
    };
    let mut pipe = pipe.take(MOST_STATE + 1);
    let rest = timeout(STATE_PATIENCE, pipe.read_to_end(&mut state));
    rest.await.map_err(late)?.map_err(|error| failed("read", error))?;
    drop(pipe);
    match answer.await? {
        Outcome::Refused(message) if message.contains(CANNOT_SYNC) => {}
        other => return Err(other.done(CREATE).err().unwrap_or_else(too_short)),
    }
    if state.len() <= PIPE_BYTES || state.len() as u64 > MOST_STATE {
        return Err(too_short());
    }
    let machine = Arc::clone(machine);
    blocking(move || {
        let memory = machine.record.memory.unwrap_or(bhatti_types::Mib(0));
        let file = machine.dir.open_file(crate::config::ROOT_DISK);
        let file = file.map_err(|e| machine.dir.error("open", crate::config::ROOT_DISK, e))?;
        let disk_bytes = disk::check(&file)
            .map_err(|e| machine.dir.error("use", crate::config::ROOT_DISK, e))?;
        let host = (*machine.host).clone();
        let bytes =
            manifest::write(&into, Facts { host, vcpus, memory, disk_bytes, base }, &state)?;
        saved.written += bytes;
        saved.total += bytes;
        Ok(saved)
    })
    .await
}

/// The blocking part: all pages that have changed.
fn read_memory(
    machine: &Shared,
    save: Save,
) -> Result<(Saved, camino::Utf8PathBuf, Option<camino::Utf8PathBuf>), EngineError> {
    let memory = machine.record.memory.ok_or_else(|| EngineError::Control {
        command: "save".to_owned(),
        message: "its record does not say how much memory it has".to_owned(),
    })?;
    let (process, pid) = (&machine.process, machine.record.pid);
    let mapping = match &machine.record.memory_at[..] {
        // From before that was written down. A machine that was booted, or has huge pages, has memory
        // of no file; every other of one of ours.
        [] => of_process(process, pid, memory.bytes(), Anonymous::Not).or_else(|_| {
            of_process(process, pid, memory.bytes(), Arch::HOST.booted_memory(memory))
        })?,
        pieces => known(process, pid, pieces, save.base.is_some())?,
    };
    let Save { into, since, base } = save;
    let saved = chain::save(&mapping, &into, since.as_deref(), base.as_deref())?;
    if let Some(Ground::Zero(zero)) = &machine.ground
        && let Err(error) = zero.forget()
    {
        tracing::debug!(%error, "empty pages stay for now");
    }
    Ok((saved, into, base))
}

fn late(_: tokio::time::error::Elapsed) -> EngineError {
    EngineError::Timeout { action: "hand over its state", seconds: STATE_PATIENCE.as_secs() }
}

/// The VMM was not held while its memory was read, so the two may not belong together.
fn too_short() -> EngineError {
    EngineError::Control {
        command: CREATE.to_owned(),
        message: "it handed over a state of no possible size".to_owned(),
    }
}
