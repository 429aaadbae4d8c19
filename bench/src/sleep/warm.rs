//! Waking from warm: the first byte of a command on a sandbox whose CPUs stand, beside the same on
//! one that is hot.
//!
//! A wake costs less than what two machines may differ by, or one that was just used from one that
//! was not. So each takes both parts in turn, and before a round all have been unused for as long as
//! it takes to go warm.

use std::time::Instant;

use anyhow::Result;

use super::fleet::{ECHO, Fleet, Keep, Sandbox, USERS};
use crate::bare::{Bare, Bench, Saved};
use crate::report::{Budget, Part, Table};
use crate::stats::{Series, order};

/// How many there are, half of them warm in a round.
const SANDBOXES: usize = 6;
/// What a wake may add, in milliseconds.
const EXTRA_MS: f64 = 2.0;

pub(super) struct Warm {
    hot: Series,
    warm: Series,
    bare_hot: Series,
    bare_warm: Series,
}

impl Warm {
    /// About twice `runs` samples through the API.
    pub(super) async fn measure(
        fleet: &mut Fleet,
        bench: &Bench,
        saved: &Saved,
        runs: usize,
    ) -> Result<Self> {
        let mut found = Self {
            hot: Series::new("hot, API"),
            warm: Series::new("warm, API"),
            bare_hot: Series::new("running, bare link"),
            bare_warm: Series::new("stopped, gone on by hand, bare link"),
        };
        let mut sandboxes = Vec::new();
        for number in 0..SANDBOXES {
            let made = fleet.create(number % USERS, Keep::Hot).await?;
            fleet.first_byte(&made.sandbox).await?; // translates code
            sandboxes.push(made.sandbox);
        }
        let mut bares = Vec::new();
        for _ in 0..2 {
            let ready = bench.ready(saved).await?;
            let (bare, _) = bench.restore(ready, saved).await?;
            bare.first_byte(Instant::now(), &ECHO).await?;
            bares.push(bare);
        }
        let rounds = (runs * 4).div_ceil(SANDBOXES).next_multiple_of(2);
        for round in 0..rounds {
            found.round(fleet, &sandboxes, &mut bares, round).await?;
            eprintln!("warm wakes: round {} of {rounds}", round + 1);
        }
        for sandbox in &sandboxes {
            fleet.destroy(sandbox).await?;
        }
        Ok(found)
    }

    async fn round(
        &mut self,
        fleet: &mut Fleet,
        sandboxes: &[Sandbox],
        bares: &mut [Bare],
        round: usize,
    ) -> Result<()> {
        let sleeps = |number: usize| (number + round) % 2 == 1;
        for (number, sandbox) in sandboxes.iter().enumerate() {
            fleet.keep(sandbox, if sleeps(number) { Keep::Free } else { Keep::Hot }).await?;
        }
        for (number, bare) in bares.iter_mut().enumerate() {
            if sleeps(number) {
                bare.pause().await?;
            }
        }
        let numbered = sandboxes.iter().enumerate();
        let asleep: Vec<_> =
            numbered.filter(|(number, _)| sleeps(*number)).map(|(_, it)| it.clone()).collect();
        fleet.until_warm(&asleep).await?;
        for place in order(round, sandboxes.len() + bares.len()) {
            if let Some(sandbox) = sandboxes.get(place) {
                let took = fleet.first_byte(sandbox).await?;
                let series = if sleeps(place) { &mut self.warm } else { &mut self.hot };
                series.push(took);
                continue;
            }
            let number = place - sandboxes.len();
            let bare = &mut bares[number];
            let started = Instant::now();
            let series = if sleeps(number) {
                bare.go_on().await?;
                &mut self.bare_warm
            } else {
                &mut self.bare_hot
            };
            series.push(bare.first_byte(started, &ECHO).await?);
        }
        Ok(())
    }

    pub(super) fn part(&self) -> Result<Part> {
        let mut table = Table::of_series("exec to first byte", "over hot, by round");
        table.differences(&self.hot, [&self.hot, &self.warm])?;
        table.differences(&self.bare_hot, [&self.bare_hot, &self.bare_warm])?;
        let extra = self.warm.percentile(50) - self.hot.percentile(50);
        let budget =
            Budget::at_most("first byte from warm - from hot, API, p50", extra, EXTRA_MS, " ms");
        Ok(Part { tables: vec![table], notes: Vec::new(), budgets: vec![budget] })
    }
}
