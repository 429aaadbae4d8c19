//! Waking, by whatever way loses least.

use bhatti_guest_client::Guest;
use bhatti_store::{Change, SandboxRow};
use bhatti_types::Phase;
use tokio::time::Instant;

use super::create::start_init;
use super::sleep::Asked;
use super::{Actor, Lease, Standing};
use crate::dial::Dialer;
use crate::disk::{self, base_dir, blocking};
use crate::freeze::{self, Attempt};
use crate::machine::{self, Frozen, Machine, to_json};
use crate::{Op, WakeError, admit};

impl Actor {
    /// A guest that answers. Costs nothing while there is one already.
    pub(super) async fn make_usable(&mut self, force: bool) -> Result<Lease, WakeError> {
        let phase = self.phase();
        admit(phase, Op::Use)?;
        // From here on, so that nothing sleeps between the wake and the answer.
        let pin = self.pins.pin();
        self.settle_disk().await?;
        let guest = match &mut self.machine {
            Some(machine) => {
                let guest = machine.guest(&self.world).await;
                if phase == Phase::Warm && !machine.stands {
                    self.owe(Phase::Hot, "used");
                }
                guest?
            }
            None if phase == Phase::Cold => self.wake(force).await?,
            None => self.boot_again().await?,
        };
        let dialer = Dialer::new(guest, self.route.clone());
        Ok(Lease { dialer, _pin: pin })
    }

    /// The way to a guest that is usable as it is: nothing would be done for whoever asked.
    pub(super) fn way(&self) -> Option<Dialer> {
        let machine = self.machine.as_ref().filter(|machine| !machine.stands)?;
        if self.phase() != Phase::Hot || self.half_sealed {
            return None;
        }
        // What could not be recorded or removed is tried again after every use.
        if self.owed.is_some() || self.untidy {
            return None;
        }
        Some(Dialer::new(machine.link()?, self.route.clone()))
    }

    /// Continues a cold sandbox from its newest generation, or from what it can.
    async fn wake(&mut self, force: bool) -> Result<Guest, WakeError> {
        let mut row = self.row().await?;
        let begun = Instant::now();
        let newest = row.generations.first().cloned().ok_or_else(no_generation)?;
        row = freeze::finish(&self.world, row, &newest).await?;
        let mut failed = Vec::new();
        let attempts = freeze::attempts(row.generations.len(), force);
        for (at, attempt) in attempts.iter().enumerate() {
            let error = match self.attempt(&row, *attempt).await {
                Ok((machine, change)) => {
                    let reason = freeze::outcome(*attempt, &row.generations, &failed);
                    if !failed.is_empty() {
                        tracing::error!(reason, "a sandbox did not wake as it was");
                    }
                    let guest = self.is_up(&[Phase::Cold], machine, &reason, change).await?;
                    tracing::info!(millis = begun.elapsed().as_millis(), "woken from cold");
                    return Ok(guest);
                }
                Err(error) => error,
            };
            self.clear_machine_dir(&row).await;
            if at + 1 == attempts.len() || !freeze::goes_on(&error, force) {
                return Err(if freeze::is_the_hosts(&error) {
                    error
                } else {
                    WakeError::NotAsItWas { name: row.name, cause: Box::new(error) }
                });
            }
            tracing::warn!(error = crate::chain(&error), ?attempt, "a wake failed");
            failed.push(error.public());
        }
        Err(no_generation())
    }

    /// Tries one way to wake. What is left of a failed one is in the machine's directory.
    async fn attempt(
        &self,
        row: &SandboxRow,
        attempt: Attempt,
    ) -> Result<(Machine, Change), WakeError> {
        let world = &self.world;
        let (Attempt::Resume(at) | Attempt::Boot(at)) = attempt;
        let generation = row.generations.get(at).ok_or_else(no_generation)?;
        let frozen = Frozen {
            snapshot: world.layout.frozen(&row.engine_id, generation.number),
            base: base_dir(world, generation.golden.as_ref()),
            clone: false,
        };
        if let Attempt::Resume(_) = attempt {
            // Before a disk is made for it that would be of no use.
            world.engine.recognise(&frozen.snapshot).await.map_err(WakeError::Engine)?;
        }
        let below = machine::disk_record(&generation.disk)?;
        let root = disk::new_top(world, row, &below);
        let spec = machine::spec(world, row, self.owner.subnet_index, root).await?;
        let root_disk = Some(to_json("root disk", &spec.root)?);
        match attempt {
            Attempt::Resume(_) => {
                let machine = machine::restore(world, row, spec, frozen, &self.interrupt).await?;
                let change = Change {
                    root_disk,
                    vm: Some(Some(machine.to_json()?)),
                    golden: Some(generation.golden.clone()),
                    // It has been proven; the one before may go.
                    generations: Some(vec![generation.clone()]),
                    ..Change::default()
                };
                Ok((machine, change))
            }
            Attempt::Boot(_) => {
                let mut machine = machine::boot(world, row, spec, &self.interrupt).await?;
                self.init(&mut machine, row).await;
                let change = Change {
                    root_disk,
                    vm: Some(Some(machine.to_json()?)),
                    golden: Some(None),
                    generations: Some(Vec::new()),
                    ..Change::default()
                };
                Ok((machine, change))
            }
        }
    }

    /// Boots from the disk that is there. If it does not work out there is no machine afterwards.
    async fn boot_again(&mut self) -> Result<Guest, WakeError> {
        let row = self.row().await?;
        let root = disk::bootable(&self.world, &row);
        let spec = machine::spec(&self.world, &row, self.owner.subnet_index, root).await?;
        let mut machine = machine::boot(&self.world, &row, spec, &self.interrupt).await?;
        self.init(&mut machine, &row).await;
        let from = &[Phase::Hot, Phase::Warm, Phase::Stopped];
        let change = Change {
            vm: Some(Some(machine.to_json()?)),
            golden: Some(None),
            generations: Some(Vec::new()),
            ..Change::default()
        };
        // Who only ever sees it awake is to see what it has been through.
        let Standing { phase, reason, .. } = self.seen.borrow().clone();
        let reason = match phase {
            Phase::Stopped => format!("booted from its disk on use; before that, {reason}"),
            _ => "booted from its disk on use".to_owned(),
        };
        self.is_up(from, machine, &reason, change).await
    }

    /// Records a machine whose guest has answered. One that cannot be recorded is none.
    async fn is_up(
        &mut self,
        from: &'static [Phase],
        mut machine: Machine,
        reason: &str,
        change: Change,
    ) -> Result<Guest, WakeError> {
        let recorded = match machine.guest(&self.world).await {
            Ok(guest) => self.move_to(from, Phase::Hot, reason, change).await.map(|()| guest),
            Err(error) => Err(error),
        };
        match recorded {
            Ok(guest) => {
                self.machine = Some(machine);
                self.asked = Asked::default();
                self.untidy = true;
                Ok(guest)
            }
            Err(error) => {
                machine::end(&self.world, &machine.vm).await;
                Err(error)
            }
        }
    }

    /// Removes what a failed wake has left. What stays is removed before the next one.
    async fn clear_machine_dir(&self, row: &SandboxRow) {
        let (layout, id) = (self.world.layout.clone(), row.engine_id.clone());
        if let Err(error) = blocking(move || layout.clear_sandbox(&id)).await {
            tracing::warn!(error = crate::chain(&error), "failed to clear up after a wake");
        }
    }

    /// The init script belongs to a boot, not to a sandbox. One that does not start any more must
    /// not lock its owner out of repairing it.
    async fn init(&self, machine: &mut Machine, row: &SandboxRow) {
        let init = async { start_init(&machine.guest(&self.world).await?, &row.init).await };
        if let Err(error) = init.await {
            tracing::warn!(error = crate::chain(&error), "the init script did not start");
        }
    }
}

fn no_generation() -> WakeError {
    WakeError::Record("generations: there is none of a cold sandbox".to_owned())
}
