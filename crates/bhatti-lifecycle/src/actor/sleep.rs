//! Falling asleep: when the policy says so, and when somebody asks for it.

use std::time::Duration;

use bhatti_guest_client::GuestError;
use bhatti_store::{Change, Generation};
use bhatti_types::{EventKind, Phase};
use serde_json::json;
use tokio::time::Instant;

use super::Actor;
use crate::disk;
use crate::freeze;
use crate::idle::{self, Next, Quiet};
use crate::machine::to_json;
use crate::{Op, WakeError, admit};

/// What came of asking the guest whether it works.
#[derive(Clone, Copy, Default)]
pub(super) struct Asked {
    /// For which time of quiet, told apart by its beginning.
    since: Option<Instant>,
    /// How often in a row it did not answer.
    silent: u32,
}

/// After so many unanswered questions a guest is put to sleep without an answer.
const PATIENCE: u32 = 3;

impl Actor {
    /// What the policy wants next.
    pub(super) fn next(&self) -> Next {
        let phase = self.phase();
        if self.machine.is_none() {
            return Next::Nothing;
        }
        if self.half_sealed {
            return Next::Look(SETTLE_AGAIN);
        }
        let last = self.pins.last_use();
        let quiet = Quiet {
            phase,
            keep_hot: self.keep_hot,
            in_use: self.pins.in_use(),
            since: last.elapsed(),
            baseline: self.asked.since == Some(last),
        };
        idle::next(self.world.settings.thermal, quiet)
    }

    pub(super) async fn fall_asleep(&mut self) {
        if self.half_sealed {
            return self.settle_and_go_on().await;
        }
        match self.next() {
            Next::Nothing | Next::Look(_) => {}
            Next::Baseline => {
                let _nothing_decided = self.ask().await;
                self.asked.since = Some(self.pins.last_use());
            }
            Next::Decide => match self.ask().await {
                Answer::Idle(reason) => self.cool(&reason).await,
                Answer::Working(why) => {
                    tracing::debug!(why, "stays hot");
                    self.pins.touch();
                }
            },
            Next::Freeze => {
                if let Err(error) = self.freeze_idle("nobody used it for the time set").await {
                    tracing::error!(error = crate::chain(&error), "failed to freeze; trying again");
                    self.pins.touch();
                }
            }
        }
    }

    /// Asks the guest what it does.
    async fn ask(&mut self) -> Answer {
        let Some(machine) = &mut self.machine else { return Answer::Idle(String::new()) };
        let quiet = self.pins.last_use().elapsed().as_secs();
        let report =
            async { Ok::<_, WakeError>(machine.guest(&self.world).await?.activity().await?) };
        match report.await {
            Ok(report) => {
                self.asked.silent = 0;
                match idle::work(&report) {
                    Some(work) => Answer::Working(work),
                    None => Answer::Idle(format!("idle for {quiet} s")),
                }
            }
            // An agent of before there was the question.
            Err(WakeError::Guest(GuestError::Unsupported(_))) => {
                Answer::Idle(format!("unused for {quiet} s"))
            }
            Err(error) => {
                self.asked.silent += 1;
                if self.asked.silent < PATIENCE {
                    return Answer::Working(format!("did not say: {}", error.public()));
                }
                Answer::Idle(format!("unused for {quiet} s, and its agent does not answer"))
            }
        }
    }

    /// Pauses the machine, or freezes it where there is no warm state.
    async fn cool(&mut self, reason: &str) {
        let silent = self.asked.silent;
        let idle = self.idle_seconds();
        let result = if self.world.settings.thermal.warm_after.is_none() {
            self.freeze_idle(reason).await
        } else {
            let paused = self.pause(reason).await;
            if paused.is_ok() && silent < PATIENCE {
                let meta = json!({ "sandbox": self.name(), "idle_s": idle });
                self.tell(EventKind::ThermalPause, meta);
            }
            paused
        };
        if result.is_ok() && silent >= PATIENCE {
            let meta = json!({ "sandbox": self.name(), "consecutive_failures": silent });
            self.tell(EventKind::ThermalForcePause, meta);
        }
        self.asked = Asked::default();
        if let Err(error) = result {
            tracing::error!(error = crate::chain(&error), "failed to put a sandbox to sleep");
            self.pins.touch();
        }
    }

    async fn pause(&mut self, reason: &str) -> Result<(), WakeError> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let mut paused = machine.pause().await;
        if paused.is_ok() {
            // The record may say warm already: a wake that could not be recorded.
            let from = &[Phase::Hot, Phase::Warm];
            paused = self.move_to(from, Phase::Warm, reason, Change::default()).await;
        }
        if paused.is_err() {
            self.let_go_on().await;
        }
        paused
    }

    fn idle_seconds(&self) -> u64 {
        self.pins.last_use().elapsed().as_secs()
    }

    /// Freezes what nobody uses, and tells so.
    async fn freeze_idle(&mut self, reason: &str) -> Result<(), WakeError> {
        let (idle, up) = (self.idle_seconds(), self.machine.is_some());
        let frozen = self.freeze(reason).await;
        let name = self.name();
        match &frozen {
            Ok(()) if up => {
                self.failed_freezes = 0;
                let meta = json!({ "sandbox": name, "idle_s": idle });
                self.tell(EventKind::ThermalSnapshot, meta);
                let meta = json!({ "name": name, "reason": "thermal" });
                self.tell(EventKind::SandboxStopped, meta);
            }
            Ok(()) => {}
            Err(error) => {
                self.failed_freezes = self.failed_freezes.saturating_add(1);
                let attempt = self.failed_freezes;
                let error = error.public();
                let meta = json!({ "sandbox": name, "error": error, "attempt": attempt });
                self.tell(EventKind::ThermalSnapshotFailed, meta);
            }
        }
        frozen
    }

    pub(super) async fn stop(&mut self, reason: &str) -> Result<(), WakeError> {
        admit(self.phase(), Op::Stop)?;
        self.freeze(reason).await
    }

    /// Brings memory and disk to files and ends the machine. If that fails it goes on as before.
    async fn freeze(&mut self, reason: &str) -> Result<(), WakeError> {
        if self.machine.is_none() {
            return Ok(());
        }
        self.settle_disk().await?;
        let was_hot = self.phase() == Phase::Hot;
        // One that is warm goes on for these few milliseconds: it has not been held.
        self.quiesce().await;
        let frozen = self.write_generation(reason).await;
        match frozen {
            Ok(generation) => self.finish_freeze(&generation).await,
            Err(error) => {
                if was_hot {
                    self.let_go_on().await;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Only for the case that its memory is lost: a guest that cannot is frozen all the same, and
    /// loses nothing.
    async fn quiesce(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        let quiesced = async {
            let guest = machine.guest(&self.world).await?;
            guest.quiesce(freeze::QUIESCE).await.map_err(WakeError::from)
        };
        if let Err(error) = quiesced.await {
            tracing::warn!(error = crate::chain(&error), "frozen without a sync");
        }
    }

    /// The part of a freeze that can fail: until it has been recorded, the machine stands.
    async fn write_generation(&mut self, reason: &str) -> Result<Generation, WakeError> {
        let begun = Instant::now();
        let Some(machine) = &mut self.machine else { return Err(WakeError::Gone) };
        // While the guest can still hear of it: in what it wakes from they would be open for ever.
        self.route.end_all();
        machine.hold_and_pause().await?;
        self.merge_layers().await;
        let row = self.row().await?;
        let Some(machine) = &mut self.machine else { return Err(WakeError::Gone) };
        let generation = freeze::write(&self.world, &row, &*machine.vm).await?;
        let change = Change {
            generations: Some(freeze::with(generation.clone(), &row.generations)),
            // Its process is still there.
            vm: Some(row.vm.clone()),
            ..Change::default()
        };
        let from = &[Phase::Hot, Phase::Warm];
        if let Err(error) = self.move_to(from, Phase::Cold, reason, change).await {
            freeze::discard(&self.world, &row, generation.number).await;
            return Err(error);
        }
        tracing::info!(
            millis = begun.elapsed().as_millis(),
            written = generation.written,
            bytes = generation.bytes,
            "frozen"
        );
        Ok(generation)
    }

    /// Merges layers of the paused machine's disk if it has many: every wake adds one. One that
    /// cannot be merged now is as good as before, through all its layers.
    pub(super) async fn merge_layers(&mut self) {
        let Some(machine) = &self.machine else { return };
        let merged = async {
            let disk = disk::current(&self.row().await?)?;
            let Some(keep) = disk::worth_merging(&disk).await? else { return Ok(None) };
            let begun = Instant::now();
            let merged = machine.vm.merge_disk(&disk, keep).await.map_err(WakeError::Engine)?;
            // From here on layers may be removed whose content is nowhere else.
            disk::sync_top(&merged).await?;
            let (before, after) = (disk.layers.len(), merged.layers.len());
            let millis = begun.elapsed().as_millis();
            tracing::info!(before, after, millis, "merged layers of a disk");
            Ok::<_, WakeError>(Some(to_json("root disk", &merged)?))
        };
        match merged.await {
            // The next record of anything says it. Until then the longer list is right too.
            Ok(Some(disk)) => self.unrecorded_disk = Some(disk),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = crate::chain(&error), "failed to merge layers of a disk");
            }
        }
    }

    /// The part of a freeze that is made up for if it fails: by the next wake, or the next start.
    async fn finish_freeze(&mut self, generation: &Generation) {
        let Some(machine) = self.machine.take() else { return };
        if let Err(error) = machine.vm.kill().await {
            tracing::warn!(error = crate::chain(&error), "a frozen machine does not end");
        }
        let finished = async { freeze::finish(&self.world, self.row().await?, generation).await };
        match finished.await {
            Ok(_) => self.untidy = true,
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "failed to clear up after a freeze");
            }
        }
    }

    async fn settle_and_go_on(&mut self) {
        if self.phase() == Phase::Hot {
            self.let_go_on().await;
        } else if let Err(error) = self.settle_disk().await {
            tracing::error!(error = crate::chain(&error), "it is not known what came of a sealing");
        }
    }

    /// A machine that was to sleep and does not goes on, with the right time. If that does not
    /// work out, the next use tries again.
    pub(super) async fn let_go_on(&mut self) {
        if let Err(error) = self.settle_disk().await {
            tracing::error!(
                error = crate::chain(&error),
                "a machine stands until its disk is known"
            );
            return;
        }
        let Some(machine) = &mut self.machine else { return };
        if let Err(error) = machine.guest(&self.world).await {
            // If it died, its end is told next.
            tracing::warn!(error = crate::chain(&error), "a paused machine does not go on");
        }
    }
}

/// How soon it is tried again to find out what came of a sealing: meanwhile the machine stands.
const SETTLE_AGAIN: Duration = Duration::from_secs(2);

/// What a guest says of itself.
enum Answer {
    /// It does nothing; the sentence is the reason to put it to sleep.
    Idle(String),
    /// It works, and on what.
    Working(String),
}
