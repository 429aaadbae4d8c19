//! Creating from a golden snapshot, beside continuing a saved machine by hand, and beside a boot.

use std::time::Instant;

use anyhow::Result;

use super::fleet::{Fleet, Keep, Made, USERS};
use crate::bare::{Bench, Saved};
use crate::report::{Budget, Part, Table};
use crate::stats::{Series, order};
use crate::subject;

/// What `create` may take, over the bare restore.
const RATIO: f64 = 1.5;
/// How much faster than a boot it is at least.
const FASTER: f64 = 8.0;

pub(super) struct Creates {
    bare: Series,
    bare_configured: Series,
    bare_first_exec: Series,
    api: Series,
    api_first_exec: Series,
    cli: Series,
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
            bare: Series::new("bare restore: first reply"),
            bare_configured: Series::new("bare restore: configured"),
            bare_first_exec: Series::new("bare restore: first `true` done"),
            api: Series::new("create, API"),
            api_first_exec: Series::new("create, API: first `true` done"),
            cli: Series::new("create, CLI"),
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
        self.bare.push(times.first_reply);
        bare.configure().await?;
        self.bare_configured.push(times.started.elapsed());
        bare.exec_true().await?;
        self.bare_first_exec.push(times.started.elapsed());
        Ok(())
    }

    async fn through_api(&mut self, fleet: &mut Fleet, account: usize) -> Result<()> {
        let Made { sandbox, took } = fleet.create(account, Keep::Hot).await?;
        let after = Instant::now();
        fleet.exec_true(&sandbox).await?;
        self.api.push(took);
        self.api_first_exec.push(took + after.elapsed());
        fleet.destroy(&sandbox).await
    }

    async fn through_cli(&mut self, fleet: &mut Fleet, account: usize) -> Result<()> {
        let (name, mut command) = fleet.create_command(account).await?;
        let started = Instant::now();
        subject::run(&mut command)?;
        self.cli.push(started.elapsed());
        fleet.destroy_named(account, &name).await
    }

    pub(super) fn part(&self) -> Result<Part> {
        let mut table = Table::of_series("create from a golden snapshot", "over bare, by round");
        let all = [
            &self.bare,
            &self.bare_configured,
            &self.bare_first_exec,
            &self.api,
            &self.api_first_exec,
            &self.cli,
            &self.boot,
        ];
        for series in all {
            let ratio = series.median_ratio(&self.bare)?;
            table.series(series, 1, [format!("{ratio:.2}x")]);
        }
        let p50 = |series: &Series| series.percentile(50);
        Ok(Part {
            tables: vec![table],
            notes: Vec::new(),
            budgets: vec![
                Budget::at_most(
                    "create by API / bare restore to first reply, p50",
                    p50(&self.api) / p50(&self.bare),
                    RATIO,
                    "x",
                ),
                Budget::at_least(
                    "bare boot to first reply / create by API, p50",
                    p50(&self.boot) / p50(&self.api),
                    FASTER,
                    "x",
                ),
            ],
        })
    }
}
