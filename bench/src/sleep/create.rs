//! Creating from a golden snapshot, beside continuing a saved machine by hand, and beside a boot.

use std::time::Instant;

use anyhow::Result;

use super::fleet::{Fleet, Keep, Made, USERS};
use crate::bare::{Bench, Saved};
use crate::makes::{ByHand, Makes};
use crate::report::{Budget, Part, Table};
use crate::stats::{Series, order};
use crate::subject;

/// What `create` may take, over the bare restore.
const RATIO: f64 = 1.5;
/// How much faster than a boot it is at least.
const FASTER: f64 = 8.0;

pub(super) struct Creates {
    makes: Makes,
    boot: Series,
}

impl Creates {
    /// Every account has a sandbox already, and the golden snapshot is there.
    pub(super) async fn measure(
        fleet: &mut Fleet,
        bench: &Bench,
        saved: &Saved,
        runs: usize,
    ) -> Result<Self> {
        let mut creates = Self {
            makes: Makes::new([
                "bare restore: its disk and first reply",
                "bare restore: first reply",
                "bare restore: configured",
                "bare restore: first `true` done",
            ]),
            boot: Series::new("bare boot: first reply"),
        };
        for round in 0..runs {
            for contender in order(round, 4) {
                let account = round % USERS;
                match contender {
                    0 => creates.by_hand(bench, saved).await?,
                    1 => creates.through_api(fleet, account).await?,
                    2 => creates.through_cli(fleet, account).await?,
                    _ => creates.boot.push(bench.boot().await?.1.first_reply),
                }
            }
            eprintln!("creates: round {} of {runs}", round + 1);
        }
        Ok(creates)
    }

    async fn by_hand(&mut self, bench: &Bench, saved: &Saved) -> Result<()> {
        let ready = bench.ready(saved).await?;
        let (bare, times) = bench.restore(ready, saved).await?;
        bare.configure().await?;
        let configured = times.started.elapsed();
        bare.exec_true().await?;
        let (disk, first_reply) = (times.disk, times.first_reply);
        let first_exec = times.started.elapsed();
        self.makes.by_hand(&ByHand { disk, first_reply, configured, first_exec });
        Ok(())
    }

    async fn through_api(&mut self, fleet: &mut Fleet, account: usize) -> Result<()> {
        let Made { sandbox, took } = fleet.create(account, Keep::Hot).await?;
        let after = Instant::now();
        fleet.exec_true(&sandbox).await?;
        self.makes.through_api(took, took + after.elapsed());
        fleet.destroy(&sandbox).await
    }

    async fn through_cli(&mut self, fleet: &mut Fleet, account: usize) -> Result<()> {
        let (name, mut command) = fleet.create_command(account).await?;
        let started = Instant::now();
        subject::run(&mut command)?;
        self.makes.cli.push(started.elapsed());
        fleet.destroy_named(account, &name).await
    }

    pub(super) fn part(&self) -> Result<Part> {
        let mut table = Table::of_series("create from a golden snapshot", "over bare, by round");
        table.ratios(&self.makes.bare, self.makes.all().chain([&self.boot]), 1)?;
        let p50 = |series: &Series| series.percentile(50);
        let (api, bare) = (p50(&self.makes.api), p50(&self.makes.bare));
        Ok(Part {
            tables: vec![table],
            notes: Vec::new(),
            budgets: vec![
                Budget::at_most(
                    "create by API / bare restore to first reply, p50",
                    api / bare,
                    RATIO,
                    "x",
                ),
                Budget::at_least(
                    "bare boot to first reply / create by API, p50",
                    p50(&self.boot) / api,
                    FASTER,
                    "x",
                ),
            ],
        })
    }
}
