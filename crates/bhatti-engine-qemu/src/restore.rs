//! Bringing a machine back: everything that can be refused is refused before a process starts,
//! then memory, then devices, then the size of its disk.
//!
//! ```text
//!  manifest fits? state whole? template ──▶ VMM, waiting ──▶ pages ──▶ devices ──▶ stands
//! ```

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{BootSpec, EngineError, RestoreSpec};
use camino::Utf8PathBuf;
use tokio::time::timeout;

use crate::engine::Inner;
use crate::launch::{Origin, Started};
use crate::vm::QemuVm;
use bhatti_vmm::manifest::{Manifest, Wanted};
use bhatti_vmm::memory::{Anonymous, chain, of_process, template::InUse};
use bhatti_vmm::process::Status;
use bhatti_vmm::vmm_log::VmmLog;
use bhatti_vmm::{blocking, nameless};

/// How long a VMM whose connection has broken may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// A snapshot that fits, and what it takes to load it.
struct Ready {
    /// The state of the devices, checked, in a file without a name.
    devices: File,
    template: Option<Arc<InUse>>,
    /// What is put over the template.
    pages: Option<Utf8PathBuf>,
    /// The disk is larger than the machine remembers: its size now.
    grown_to: Option<u64>,
}

impl Inner {
    /// See [`bhatti_engine::Engine::restore`].
    pub(crate) async fn restore(
        self: Arc<Self>,
        spec: RestoreSpec,
    ) -> Result<Arc<QemuVm>, EngineError> {
        let RestoreSpec { machine, snapshot, base } = spec;
        let this = Arc::clone(&self);
        let (machine, mut ready) = blocking(move || {
            let ready = this.prepare(&machine, &snapshot, base)?;
            Ok((machine, ready))
        })
        .await?;
        let origin = Origin::Snapshot(ready.template.take());
        let mut started = self.start(machine, origin).await?;
        match started.load(ready).await {
            Ok(()) => Ok(started.watch(&self)),
            Err(cause) => Err(started.give_up(cause).await),
        }
    }

    fn prepare(
        &self,
        machine: &BootSpec,
        snapshot: &Utf8PathBuf,
        base: Option<Utf8PathBuf>,
    ) -> Result<Ready, EngineError> {
        let manifest = Manifest::read(snapshot)?;
        let itself = base.as_ref() == Some(snapshot);
        let disk_bytes = machine.root.bytes.unwrap_or(manifest.disk_bytes);
        let wanted = Wanted {
            vcpus: machine.shape.vcpus(),
            memory: machine.shape.memory,
            disk_bytes,
            base: base.as_deref().filter(|_| !itself),
        };
        manifest.admits(&self.host, wanted)?;
        let devices = nameless(&manifest.state(snapshot)?)?;
        // Huge pages are shared with nobody, so a clone on them has all its memory loaded.
        let shared = base.filter(|_| !(machine.hugepages && itself));
        if machine.hugepages && shared.is_some() {
            let why = "a machine on huge pages shares no memory with a base".to_owned();
            return Err(EngineError::Unusable { why });
        }
        let template = shared.map(|base| self.templates.get(&[base], machine.shape.memory.bytes()));
        let template = template.transpose()?.map(Arc::new);
        let pages = (!itself || template.is_none()).then(|| snapshot.clone());
        let grown_to = (disk_bytes > manifest.disk_bytes).then_some(disk_bytes);
        Ok(Ready { devices, template, pages, grown_to })
    }
}

impl Started {
    /// Puts a snapshot into the waiting machine, which stands afterwards.
    async fn load(&mut self, ready: Ready) -> Result<(), EngineError> {
        let Ready { devices, template: _, pages, grown_to } = ready;
        if let Some(dir) = pages {
            self.load_pages(dir).await?;
        }
        if let Err(error) = self.qmp.load_devices(&devices).await {
            let ended = timeout(END_PATIENCE, self.process.ended()).await;
            let status = ended.ok().and_then(Result::ok);
            return Err(why_not(error, status, &self.log));
        }
        if let Some(bytes) = grown_to {
            let node = self.qmp.disk().await?.node;
            self.qmp.resize(&node, bytes).await?;
        }
        Ok(())
    }

    async fn load_pages(&mut self, dir: Utf8PathBuf) -> Result<(), EngineError> {
        let memory = self.record.memory.unwrap_or(bhatti_types::Mib(0));
        let mapping = of_process(&self.process, self.record.pid, memory.bytes(), Anonymous::Not)?;
        let template = self.template();
        let load = move || Ok(chain::load(&dir, template.as_ref().map(|used| &***used), &mapping)?);
        blocking(load).await
    }
}

/// Why a device state could not be loaded, of a VMM that has ended so or has not ended.
///
/// QEMU ends by itself when it cannot use a state, and its log says why: then no other attempt will
/// do better. One that was ended, by a host without memory or by a person, says nothing of what it
/// was to load; whoever took that for the state's fault would lose a memory that is whole.
fn why_not(error: EngineError, status: Option<Status>, log: &VmmLog) -> EngineError {
    match (error, status) {
        (EngineError::Control { .. }, Some(Status::Code(_))) => {
            EngineError::Unusable { why: format!("the VMM refuses it: {}", log.tail()) }
        }
        (EngineError::Control { .. }, Some(status)) => {
            EngineError::DiedEarly { log: format!("{}; {}", status.describe(), log.tail()) }
        }
        (error, _) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_a_vmm_that_ends_by_itself_blames_the_snapshot() {
        let log = VmmLog::create().unwrap();
        log.for_child().unwrap().write_all(b"no such device\n").unwrap();
        let why = |status| {
            let (command, message) = ("read".to_owned(), "closed".to_owned());
            why_not(EngineError::Control { command, message }, status, &log)
        };
        match why(Some(Status::Code(1))) {
            EngineError::Unusable { why } => assert!(why.contains("no such device"), "{why}"),
            other => panic!("{other:?}"),
        }
        // Killed, as a host without memory does it; and collected by somebody else.
        for status in [Status::Signal(libc::SIGKILL), Status::Unknown] {
            let error = why(Some(status));
            assert!(matches!(error, EngineError::DiedEarly { .. }), "{error:?}");
        }
        // It lives, and has refused a command.
        assert!(matches!(why(None), EngineError::Control { .. }));
        let (action, seconds) = ("load a device state", 20);
        let late = why_not(EngineError::Timeout { action, seconds }, Some(Status::Code(1)), &log);
        assert!(matches!(late, EngineError::Timeout { .. }));
    }
}
