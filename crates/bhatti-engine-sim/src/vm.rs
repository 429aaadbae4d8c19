//! The handle of a pretended machine.

use std::sync::Mutex;
use std::sync::PoisonError;

use async_trait::async_trait;
use bhatti_engine::{Carrier, DiskFormat, EngineError, Exit, RootDisk, Save, Saved, Vm, VmRecord};
use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::{oneshot, watch};

use crate::engine::{create_disk, merge_disks};
use crate::fault::{Call, Fault, failure};
use crate::host::{Machine, SimHost};
use crate::snapshot::{self, Contents};
use crate::{cable, file_error};

/// How much a side may write before the other must read; about what virtio-serial holds.
const LINK_BUFFER: usize = 64 * 1024;

pub(crate) struct SimVm {
    host: SimHost,
    record: VmRecord,
    exit: watch::Receiver<Option<Exit>>,
    /// The console as it was when last seen, for after the end.
    console: Mutex<Vec<u8>>,
    /// Of the engine that made this handle.
    fingerprint: String,
}

impl SimVm {
    pub(crate) fn new(
        host: SimHost,
        record: VmRecord,
        exit: watch::Receiver<Option<Exit>>,
        fingerprint: String,
    ) -> Self {
        let console = host.room().machines.get(&record.id).map(|m| m.console.clone());
        Self { host, record, exit, console: Mutex::new(console.unwrap_or_default()), fingerprint }
    }

    /// Does something with the machine, if it still runs.
    fn with<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> Result<T, EngineError> {
        self.host.room().machines.get_mut(&self.record.id).map(act).ok_or(EngineError::Gone)
    }

    fn set_paused(&self, paused: bool) -> Result<(), EngineError> {
        self.with(|machine| {
            machine.paused.send_replace(paused);
        })
    }

    /// What only a stopped machine can be asked for.
    fn while_paused<T>(
        &self,
        call: Call,
        act: impl FnOnce(&mut Machine) -> T,
    ) -> Result<T, EngineError> {
        let done = self.with(|machine| {
            let paused = *machine.paused.borrow();
            paused.then(|| act(machine))
        });
        done?.ok_or_else(|| failure(call, "the machine is not paused".to_owned()))
    }

    /// Meets the fault that waits for this call.
    async fn enter(&self, call: Call) -> Result<(), EngineError> {
        self.meet(call, self.host.enter(call).await)
    }

    fn meet(&self, call: Call, fault: Option<Fault>) -> Result<(), EngineError> {
        match fault {
            Some(Fault::Fail(message) | Fault::Unheard(message) | Fault::Refuse(message)) => {
                Err(failure(call, message))
            }
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
        let running = self.with(|machine| {
            // Dropping the former closer ends the former link.
            machine.link = Some(closer);
            machine.paused.subscribe()
        })?;
        let (ours, near) = tokio::io::duplex(LINK_BUFFER);
        let (far, guests) = tokio::io::duplex(LINK_BUFFER);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = &mut closed => {}
                () = cable::carry(near, far, running) => {}
            }
        });
        (self.host.guest())(self.record.id.clone(), guests);
        Ok(Carrier::Single(Box::new(ours)))
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.enter(Call::Pause).await?;
        self.set_paused(true)?;
        give_way().await;
        Ok(())
    }

    async fn resume(&self) -> Result<(), EngineError> {
        self.enter(Call::Resume).await?;
        self.set_paused(false)?;
        give_way().await;
        Ok(())
    }

    async fn save(&self, save: Save) -> Result<Saved, EngineError> {
        if let Err(error) = self.enter(Call::Save).await {
            snapshot::write_rubbish(&save);
            return Err(error);
        }
        let contents = self.while_paused(Call::Save, |machine| Contents {
            fingerprint: self.fingerprint.clone(),
            shape: machine.shape,
            base: machine.base.clone(),
            memory: machine.memory.clone(),
        })?;
        let saved = snapshot::write(&save, &contents)?;
        give_way().await;
        Ok(saved)
    }

    async fn seal_disk(&self, disk: &RootDisk, sealed: &Utf8Path) -> Result<RootDisk, EngineError> {
        let heard = match self.host.enter(Call::SealDisk).await {
            Some(Fault::Unheard(message)) => Err(failure(Call::SealDisk, message)),
            fault => {
                self.meet(Call::SealDisk, fault)?;
                Ok(())
            }
        };
        self.while_paused(Call::SealDisk, |_| ())?;
        let mut after = disk.clone();
        after.layers.push(sealed.to_owned());
        if disk.format == DiskFormat::Raw {
            // The layer is a copy, and the machine goes on with its file.
            std::fs::copy(&disk.file, sealed).map_err(file_error("seal", sealed))?;
            give_way().await;
            return heard.map(|()| after);
        }
        // As in earnest: the second name first, then the step that counts, then the first name.
        // `sealed` replaces nothing, and no name of a top is used twice.
        std::fs::hard_link(&disk.file, sealed).map_err(file_error("seal", sealed))?;
        let fresh = next_top(&disk.file, disk.layers.len());
        if let Err(error) = create_disk(&fresh) {
            // The error says more than a second one would.
            std::fs::remove_file(sealed).ok();
            return Err(error);
        }
        self.with(|machine| machine.top.clone_from(&fresh))?;
        std::fs::remove_file(&disk.file).map_err(file_error("remove", &disk.file))?;
        give_way().await;
        heard?;
        Ok(RootDisk { file: fresh, ..after })
    }

    async fn merge_disk(&self, disk: &RootDisk, keep: usize) -> Result<RootDisk, EngineError> {
        self.enter(Call::MergeDisk).await?;
        self.while_paused(Call::MergeDisk, |_| ())?;
        let mut after = disk.clone();
        if disk.format == DiskFormat::Qcow2 {
            merge_disks(&disk.file, after.layers.get(keep..).unwrap_or_default())?;
        }
        give_way().await;
        after.layers.truncate(keep);
        Ok(after)
    }

    async fn disk_top(&self) -> Result<Utf8PathBuf, EngineError> {
        self.enter(Call::DiskTop).await?;
        self.with(|machine| machine.top.clone())
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.enter(Call::Kill).await?;
        self.host.end(&self.record.id, Exit::Killed);
        give_way().await;
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

/// Lets others run after the effect of a call: who polls a daemon's tasks can stop there.
pub(crate) async fn give_way() {
    tokio::task::yield_now().await;
}

/// The name of a machine's next top: none that it or a machine before it in that directory used.
fn next_top(file: &Utf8Path, layers: usize) -> Utf8PathBuf {
    file.with_file_name(format!("root-{}.sim", layers + 1))
}
