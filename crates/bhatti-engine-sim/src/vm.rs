//! The handle of a pretended machine.

use std::sync::Mutex;
use std::sync::PoisonError;

use async_trait::async_trait;
use bhatti_engine::{Carrier, EngineError, Exit, RootDisk, Save, Saved, Vm, VmRecord};
use camino::Utf8Path;
use tokio::sync::{oneshot, watch};

use crate::fault::{Call, Fault, failure};
use crate::host::SimHost;

/// How much a side may write before the other must read; about what virtio-serial holds.
const LINK_BUFFER: usize = 64 * 1024;

pub(crate) struct SimVm {
    host: SimHost,
    record: VmRecord,
    exit: watch::Receiver<Option<Exit>>,
    /// The console as it was when last seen, for after the end.
    console: Mutex<Vec<u8>>,
}

impl SimVm {
    pub(crate) fn new(
        host: SimHost,
        record: VmRecord,
        exit: watch::Receiver<Option<Exit>>,
    ) -> Self {
        let console = host.room().machines.get(&record.id).map(|m| m.console.clone());
        Self { host, record, exit, console: Mutex::new(console.unwrap_or_default()) }
    }

    /// Meets the fault that waits for this call.
    async fn enter(&self, call: Call) -> Result<(), EngineError> {
        match self.host.enter(call).await {
            Some(Fault::Fail(message)) => Err(failure(call, message)),
            Some(Fault::Die(detail)) => {
                self.host.crash(&self.record.id, &detail);
                Ok(())
            }
            Some(Fault::Slow(_) | Fault::Hang) | None => Ok(()),
        }
    }
}

#[async_trait]
impl Vm for SimVm {
    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    async fn open_link(&self) -> Result<Carrier, EngineError> {
        self.enter(Call::OpenLink).await?;
        let (closer, mut closed) = oneshot::channel::<()>();
        match self.host.room().machines.get_mut(&self.record.id) {
            // Dropping the former closer ends the former link.
            Some(machine) => machine.link = Some(closer),
            None => return Err(EngineError::Gone),
        }
        let (ours, mut near) = tokio::io::duplex(LINK_BUFFER);
        let (mut far, guests) = tokio::io::duplex(LINK_BUFFER);
        // A cable between the two that can be cut.
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = &mut closed => {}
                // How it ended is seen at both ends.
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            }
        });
        (self.host.guest())(self.record.id.clone(), guests);
        Ok(Carrier::Single(Box::new(ours)))
    }

    async fn pause(&self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn save(&self, _save: Save) -> Result<Saved, EngineError> {
        Ok(Saved::default())
    }

    async fn seal_disk(
        &self,
        disk: &RootDisk,
        _sealed: &Utf8Path,
    ) -> Result<RootDisk, EngineError> {
        Ok(disk.clone())
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.enter(Call::Kill).await?;
        self.host.end(&self.record.id, Exit::Killed);
        Ok(())
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let seen = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
        let lost = || Exit::Died { detail: "the host was restarted".to_owned() };
        seen.ok().flatten().unwrap_or_else(lost)
    }

    async fn console(&self) -> Vec<u8> {
        let now = self.host.room().machines.get(&self.record.id).map(|m| m.console.clone());
        let mut last = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = now {
            *last = now;
        }
        last.clone()
    }
}
