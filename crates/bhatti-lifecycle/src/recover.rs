//! After a restart: what should exist against what does, and one sandbox brought back to it.

use bhatti_store::{Change, SandboxRow, Store};
use bhatti_types::{EngineId, EventKind, Phase, SandboxId};
use serde_json::json;

use crate::actor::{Start, destroyed};
use crate::machine::{self, Machine};
use crate::{Sandboxes, ServiceError, WakeError, disk, freeze};

/// What to do about one recorded sandbox, before looking at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// A create or a destroy was cut short: take away what there is.
    Undo,
    /// It should run: find its machine and take it over; without one it is stopped.
    Adopt,
    /// It was frozen: what is left of its machine goes.
    Finish,
    /// Nothing should run; it boots when it is used.
    Keep,
}

/// The plan for one row. Pure; running it twice changes nothing the second time.
pub(crate) fn plan(row: &SandboxRow) -> Plan {
    match row.phase {
        Phase::Creating | Phase::Destroying => Plan::Undo,
        // What could not be told last time may be clear now.
        Phase::Hot | Phase::Warm | Phase::Unknown => Plan::Adopt,
        Phase::Cold => Plan::Finish,
        Phase::Stopped => Plan::Keep,
    }
}

/// Why a sandbox that should run does not.
pub(crate) const LOST: &str = "its machine was gone when the daemon started (host reboot or crash): memory is lost, the disk is kept";

/// Why a sandbox that could not be vouched for runs again.
pub(crate) const FOUND: &str = "its machine was found again when the daemon started";

/// What a restart finds of a sandbox that should run.
enum Found {
    /// Nothing should be there.
    Nothing,
    Machine(Machine),
    Lost,
    /// A generation. `kept`: its former machine could not be ended and must be left alone.
    Frozen {
        kept: bool,
    },
    /// It cannot be told; the reason.
    Doubt(String),
}

impl Sandboxes {
    /// Takes away what an interrupted create or destroy has left.
    pub(crate) async fn undo(&self, row: &SandboxRow) -> Result<(), ServiceError> {
        let world = &self.inner.world;
        let owner = row.owner.clone();
        let owner = world.db.call(move |store| store.user(&owner)).await?;
        match machine::demolish(world, row, None, &owner).await {
            Ok(()) if row.phase == Phase::Destroying => {
                let kind = EventKind::SandboxDestroyed;
                world.events.record(kind, Some(&owner.id), Some(&row.id), destroyed(row));
            }
            Ok(()) => {}
            // Kept for the next start; it is not listed and cannot be used.
            Err(error) => {
                tracing::error!(sandbox = %row.id, error = crate::chain(&error), "failed to undo");
            }
        }
        Ok(())
    }

    /// Returns the machine that must be left alone, if there is one. What is wrong with one
    /// sandbox is that sandbox's matter: only a failing store stops the daemon.
    pub(crate) async fn recover_one(
        &self,
        row: SandboxRow,
    ) -> Result<Option<EngineId>, ServiceError> {
        let world = &self.inner.world;
        let owner = row.owner.clone();
        let owner = world.db.call(move |store| store.user(&owner)).await?;
        let engine_id = row.engine_id.clone();
        let found = match plan(&row) {
            Plan::Keep | Plan::Undo => Found::Nothing,
            Plan::Finish => self.finish_freeze(&row).await,
            Plan::Adopt => self.adopt(&row).await,
        };
        let id = row.id.clone();
        let tell = !matches!(found, Found::Doubt(_));
        let (machine, leave_alone) = match found {
            Found::Nothing => (None, false),
            Found::Machine(machine) => {
                if row.phase == Phase::Unknown {
                    self.record(&row.id, Phase::Hot, FOUND.to_owned()).await?;
                }
                (Some(machine), true)
            }
            Found::Lost => {
                tracing::warn!(sandbox = %row.id, name = %row.name, "machine is gone");
                self.record(&row.id, Phase::Stopped, LOST.to_owned()).await?;
                let meta = json!({ "name": row.name.as_str(), "reason": "lost", "detail": LOST });
                let kind = EventKind::SandboxStopped;
                world.events.record(kind, Some(&owner.id), Some(&row.id), meta);
                (None, false)
            }
            Found::Doubt(why) => {
                tracing::error!(sandbox = %row.id, name = %row.name, why, "cannot vouch for a sandbox");
                self.record(&row.id, Phase::Unknown, why).await?;
                (None, true)
            }
            Found::Frozen { kept } => (None, kept),
        };
        // The phase may have changed: an actor starts from what is recorded.
        let row = world.db.call(move |store| store.sandbox(&id)).await?;
        if tell {
            disk::tidy(world, &row).await;
        }
        self.start_actor(row, owner, Start::Found { machine });
        Ok(leave_alone.then_some(engine_id))
    }

    async fn record(&self, id: &SandboxId, to: Phase, why: String) -> Result<(), ServiceError> {
        let id = id.clone();
        let change = if to == Phase::Stopped { disk::lost() } else { Change::default() };
        let moved = move |store: &mut Store| {
            store.set_phase(&id, &[Phase::Hot, Phase::Warm, Phase::Unknown], to, &why, &change)
        };
        Ok(self.inner.world.db.call(moved).await?)
    }

    async fn adopt(&self, row: &SandboxRow) -> Found {
        let world = &self.inner.world;
        let found = match machine::vm_record(row) {
            Ok(Some(record)) => world.engine.adopt(&record).await,
            Ok(None) => Ok(None),
            Err(error) => return Found::Doubt(crate::chain(&error)),
        };
        let vm = match found {
            Ok(vm) => vm,
            Err(error) => return Found::Doubt(crate::chain(&error)),
        };
        // Before it goes on.
        if let Err(error) = disk::put_right(world, row, vm.as_deref()).await {
            return Found::Doubt(crate::chain(&error));
        }
        let Some(vm) = vm else { return Found::Lost };
        tracing::info!(sandbox = %row.id, name = %row.name, "adopted a running machine");
        let mut machine = Machine { vm, guest: None, stands: false };
        // The former daemon may have died in the middle of a pause or a freeze.
        let settled = if row.phase == Phase::Warm {
            machine.pause().await
        } else {
            let resumed = machine.vm.resume().await.map_err(WakeError::Engine);
            machine.stands = resumed.is_err();
            resumed
        };
        if let Err(error) = settled {
            tracing::warn!(sandbox = %row.id, error = crate::chain(&error),
                "an adopted machine does not do as it is told");
        }
        Found::Machine(machine)
    }

    /// Ends what is left of the machine of a sandbox that was being frozen, and seals its disk.
    async fn finish_freeze(&self, row: &SandboxRow) -> Found {
        let Some(newest) = row.generations.first() else { return Found::Nothing };
        match freeze::finish(&self.inner.world, row.clone(), newest).await {
            Ok(_) => Found::Frozen { kept: false },
            Err(error) => {
                // The next wake tries again.
                tracing::error!(sandbox = %row.id, name = %row.name,
                    error = crate::chain(&error), "failed to finish a freeze");
                Found::Frozen { kept: true }
            }
        }
    }

    /// Greets what was found running, and wakes what is to be hot always. One after the other, in
    /// the background: nobody waits.
    ///
    /// The former daemon may have died between holding a guest and pausing its machine, or with
    /// the machine paused: until it is greeted its commands stand and its clock is behind.
    pub(crate) fn wake_what_is_hot(&self) {
        let this = self.clone();
        self.inner.world.tasks.spawn("wake what is hot", |stop| async move {
            let rows = this.inner.world.db.call(|store| store.all_sandboxes()).await;
            let rows = rows.map(|(rows, _)| rows).unwrap_or_default();
            let hot = |row: &SandboxRow| {
                row.phase == Phase::Hot || (row.keep_hot && row.phase.wire().is_some())
            };
            for row in rows.into_iter().filter(hot) {
                let Some(handle) = this.inner.handles().get(&row.id).cloned() else { continue };
                tokio::select! {
                    () = stop.cancelled() => return,
                    woken = handle.start(false, "keep_hot") => if let Err(error) = woken {
                        tracing::warn!(sandbox = %row.id, name = %row.name,
                            error = crate::chain(&error), "does not come to life after a restart");
                    }
                }
            }
        });
    }
}
