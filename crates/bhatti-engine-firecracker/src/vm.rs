//! One running machine: a task that watches it, and the handle others hold.
//!
//! Requests go to the VMM directly, one at a time and to their end; a caller that goes away loses the
//! answer only. Dropping the handle stops the watching, not the machine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{
    Carrier, EngineError, Exit, HeldBack, Private, RootDisk, Save, Saved, Vm, VmRecord,
};
use bhatti_vmm::blocking;
use bhatti_vmm::cgroup::Group;
use bhatti_vmm::fingerprint::Host;
use bhatti_vmm::former::told_of_the_end;
use bhatti_vmm::machine_dir::{CONSOLE_LOG, MachineDir};
use bhatti_vmm::process::Process;
use bhatti_vmm::vmm_log::VmmLog;
use camino::{Utf8Path, Utf8PathBuf};
use hyper::Method;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::config::{self, Action, ActionType, InstanceInfo, InstanceState, VmState};
use crate::counters::Counters;
use crate::launch::Ground;
use crate::link::{self, Closer};
use crate::watcher::Watcher;
use crate::{disk, saving};

/// As much of a console as anybody is given.
const CONSOLE_BYTES: usize = 64 << 10;
/// How long it may take to say what it has counted. Short, for its next request waits for that.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// The handle of a machine.
pub(crate) struct FirecrackerVm {
    machine: Arc<Shared>,
    console: Option<Arc<VmmLog>>,
    counters: Option<Arc<Counters>>,
    killed: Arc<AtomicBool>,
    watcher: JoinHandle<()>,
}

/// What an operation holds on to that runs to its end whether or not anybody waits for it.
pub(crate) struct Shared {
    pub record: VmRecord,
    pub owner: Private,
    pub dir: Arc<MachineDir>,
    pub process: Arc<Process>,
    pub host: Arc<Host>,
    pub api: Api,
    /// What its memory stands on, if it was restored by this daemon.
    pub ground: Option<Ground>,
    exit: watch::Receiver<Option<Exit>>,
    /// Who changes whether the machine stands, or depends on it, does it alone.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The link given out last.
    link: Mutex<Option<Closer>>,
    /// As far as we have been told.
    runs: watch::Sender<bool>,
}

/// What a machine is made of once it runs.
pub(crate) struct Parts {
    pub record: VmRecord,
    pub owner: Private,
    pub dir: Arc<MachineDir>,
    pub process: Process,
    pub group: Group,
    pub api: Api,
    /// `None` if it cannot be had any more.
    pub log: Option<VmmLog>,
    /// `None` as well.
    pub console: Option<VmmLog>,
    /// `None` if nobody counts.
    pub counters: Option<Counters>,
    pub ground: Option<Ground>,
    /// Whether it runs, and does not stand.
    pub runs: bool,
}

impl FirecrackerVm {
    /// Starts watching.
    pub(crate) fn watch(parts: Parts, host: Arc<Host>) -> Arc<Self> {
        let Parts { record, owner, dir, process, group, api, log, console, counters, ground, runs } =
            parts;
        let (process, console) = (Arc::new(process), console.map(Arc::new));
        let counters = counters.map(Arc::new);
        let killed = Arc::new(AtomicBool::new(false));
        let (exit_sender, exit) = watch::channel(None);
        let watcher = Watcher {
            id: record.id.clone(),
            process: Arc::clone(&process),
            group,
            dir: Arc::clone(&dir),
            console: console.clone(),
            log,
            counters: counters.clone(),
            killed: Arc::clone(&killed),
        };
        let watcher = tokio::spawn(watcher.run(exit_sender));
        let (turn, link) = (Arc::default(), Mutex::default());
        let runs = watch::Sender::new(runs);
        let machine =
            Shared { record, owner, dir, process, host, api, ground, exit, turn, link, runs };
        Arc::new(Self { machine: Arc::new(machine), console, counters, killed, watcher })
    }
}

impl Shared {
    /// Whether it runs or stands; [`EngineError::Gone`] if there is nothing to ask any more.
    async fn state(&self) -> Result<InstanceState, EngineError> {
        let info: InstanceInfo = self.api.get("/").await?;
        Ok(info.state)
    }

    /// Only a machine that stands has a state that can be kept.
    pub(crate) async fn must_stand(&self, what: &str) -> Result<(), EngineError> {
        match self.state().await? {
            InstanceState::Paused => Ok(()),
            InstanceState::Running | InstanceState::NotStarted => Err(EngineError::Control {
                command: what.to_owned(),
                message: "the machine is not paused".to_owned(),
            }),
        }
    }

    async fn change(&self, state: VmState) -> Result<(), EngineError> {
        match (state, self.state().await?) {
            (VmState::Paused, InstanceState::Paused) => {}
            (VmState::Resumed, InstanceState::Running) => {}
            (state, _) => self.api.patch("/vm", &config::Vm { state }).await?,
        }
        self.runs.send_replace(matches!(state, VmState::Resumed));
        Ok(())
    }

    /// Ends the link that was given out.
    pub(crate) fn close_link(&self) {
        if let Some(link) = self.link.lock().unwrap_or_else(PoisonError::into_inner).take() {
            link.close();
        }
    }

    fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Does something that must not be left half done, when it is its turn.
    async fn to_its_end<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if self.has_ended() {
            return Err(EngineError::Gone);
        }
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(turn);
            match result {
                // A request to somebody who is dying breaks a moment before he is dead.
                Err(EngineError::Control { .. } | EngineError::File { .. })
                    if this.process.is_ending() =>
                {
                    Err(EngineError::Gone)
                }
                other => other,
            }
        });
        match task.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(EngineError::Gone), // the runtime is going down
            },
        }
    }
}

impl Drop for FirecrackerVm {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

#[async_trait]
impl Vm for FirecrackerVm {
    fn record(&self) -> VmRecord {
        self.machine.record.clone()
    }

    async fn open_link(&self) -> Result<Carrier, EngineError> {
        let machine = &self.machine;
        if machine.has_ended() {
            return Err(EngineError::Gone);
        }
        let (link, closer) =
            link::open(Arc::clone(&machine.dir), machine.owner, machine.runs.subscribe());
        let mut current = machine.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = current.replace(closer) {
            former.close();
        }
        Ok(Carrier::Single(Box::new(link)))
    }

    async fn pause(&self) -> Result<(), EngineError> {
        let machine = Arc::clone(&self.machine);
        self.machine.to_its_end(async move { machine.change(VmState::Paused).await }).await
    }

    async fn resume(&self) -> Result<(), EngineError> {
        let machine = Arc::clone(&self.machine);
        self.machine.to_its_end(async move { machine.change(VmState::Resumed).await }).await
    }

    async fn save(&self, save: Save) -> Result<Saved, EngineError> {
        self.machine.to_its_end(saving::save(Arc::clone(&self.machine), save)).await
    }

    async fn seal_disk(&self, disk: &RootDisk, sealed: &Utf8Path) -> Result<RootDisk, EngineError> {
        let (machine, disk, sealed) = (Arc::clone(&self.machine), disk.clone(), sealed.to_owned());
        let work = async move {
            machine.must_stand("seal").await?;
            let dir = Arc::clone(&machine.dir);
            blocking(move || disk::seal(&disk, &dir, &sealed)).await
        };
        self.machine.to_its_end(work).await
    }

    async fn merge_disk(&self, disk: &RootDisk, keep: usize) -> Result<RootDisk, EngineError> {
        let (machine, mut disk) = (Arc::clone(&self.machine), disk.clone());
        let work = async move {
            machine.must_stand("merge").await?;
            disk::open_own(&disk, &machine.dir)?;
            // The disk's own file is complete: it needs none of them.
            disk.layers.truncate(keep);
            Ok(disk)
        };
        self.machine.to_its_end(work).await
    }

    async fn disk_top(&self) -> Result<Utf8PathBuf, EngineError> {
        if self.machine.has_ended() {
            return Err(EngineError::Gone);
        }
        Ok(self.machine.dir.path().join(config::ROOT_DISK))
    }

    async fn kill(&self) -> Result<(), EngineError> {
        self.killed.store(true, Ordering::Release);
        self.machine.process.kill();
        told_of_the_end(self.machine.exit.clone()).await
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.machine.exit.clone();
        let seen = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
        seen.ok().flatten().unwrap_or_else(|| Exit::Died {
            detail: "nobody watches this machine any more".to_owned(),
        })
    }

    async fn held_back(&self) -> Option<HeldBack> {
        let counters = self.counters.as_ref()?;
        // Who saves or stops the machine is not waited for: it says the rest by itself. Who wants to
        // meanwhile waits a second at most.
        if let Ok(_turn) = self.machine.turn.try_lock() {
            let flush = Action { action_type: ActionType::FlushMetrics };
            let put = self.machine.api.tell(Method::PUT, "/actions", &flush, FLUSH_PATIENCE);
            if let Err(error) = put.await {
                tracing::debug!(%error, "a machine's limits are counted later");
            }
        }
        Some(counters.sum())
    }

    async fn console(&self) -> Vec<u8> {
        match &self.console {
            Some(console) => console.all(),
            None => self.machine.dir.tail(CONSOLE_LOG, CONSOLE_BYTES).unwrap_or_default(),
        }
    }
}
