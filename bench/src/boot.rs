//! What the daemon adds to a machine that boots: create, exec, memory, beside the bare engine.

use anyhow::Result;

use crate::bare::Bench;
use crate::memory::Footprint;
use crate::report::{Budget, Part, Table};
use crate::rounds::{Boots, Execs, Starts};
use crate::same::SameMachine;
use crate::stats::Series;
use crate::subject::{self, RESIDENT, Subject};

/// What `create` may take, over the bare boot.
const CREATE_RATIO: f64 = 1.15;
/// What `exec` over the API may take more than over the bare link, in milliseconds.
const EXEC_EXTRA_MS: f64 = 2.0;

/// Everything about booted machines.
pub(crate) struct Booted {
    boots: Boots,
    execs: Execs,
    same: SameMachine,
    starts: Starts,
    memory: Vec<(&'static str, Footprint)>,
    /// What the agent wrote about its boot, of the resident.
    phases: String,
}

impl Booted {
    pub(crate) async fn measure(subject: &mut Subject, bench: &Bench, runs: usize) -> Result<Self> {
        let machine = subject.resident_pid()?;
        let serve = subject::newest_daemon(&[])?;
        // Each takes seconds.
        let boots = Boots::measure(subject, bench, runs.div_ceil(2)).await?;
        let idle = Footprint::of(machine)?;
        let (bare, _) = bench.boot().await?;
        let execs = Execs::measure(subject, &bare, runs * 10).await?;
        let starts = Starts::measure(subject, runs * 5)?;
        let memory = vec![
            ("`bhatti serve`, one sandbox", Footprint::of(serve)?),
            ("VMM of a sandbox, idle since its boot", idle),
            ("the same after the execs", Footprint::of(machine)?),
            ("QEMU by hand after the execs", Footprint::of(bare.pid()?)?),
        ];
        subject::connect(&subject.client).await?;
        let phases =
            subject::exec(&subject.client, RESIDENT, "cat /run/bhatti/boot-timing.txt").await?;
        drop(bare);
        let same = SameMachine::measure(subject, runs * 10).await?;
        Ok(Self { boots, execs, same, starts, memory, phases })
    }

    pub(crate) fn part(&self) -> Result<Part> {
        let Self { boots, execs, same, starts, memory, phases } = self;
        let mut boot = Table::of_series("boot", "over bare, by round");
        boot.ratios(&boots.makes.bare, boots.all(), 0)?;
        let mut exec = Table::of_series("exec", "over bare, by round");
        exec.differences(&execs.bare, execs.all())?;
        exec.differences(&same.link, same.all())?;
        for series in starts.all() {
            exec.series(series, 2, [String::new()]);
        }
        let mut held = Table::new(&["memory", "RSS MiB", "PSS MiB"]);
        for (name, Footprint { rss, pss, .. }) in memory {
            held.row(vec![(*name).to_owned(), format!("{rss:.1}"), format!("{pss:.1}")]);
        }
        Ok(Part {
            tables: vec![boot, exec, held],
            notes: vec![format!("boot phases, by the guest's clock:\n{phases}")],
            budgets: self.budgets(),
        })
    }

    fn budgets(&self) -> Vec<Budget> {
        let Self { boots, same, .. } = self;
        let ratio = |series: &Series| series.percentile(50) / boots.makes.bare.percentile(50);
        let extra = same.api.percentile(50) - same.link.percentile(50);
        vec![
            Budget::at_most(
                "create by CLI that boots / bare first reply, p50",
                ratio(&boots.makes.cli),
                CREATE_RATIO,
                "x",
            ),
            Budget::at_most(
                "create by API that boots / bare first reply, p50",
                ratio(&boots.makes.api),
                CREATE_RATIO,
                "x",
            ),
            Budget::at_most(
                "exec by API - bare link, same machine, p50",
                extra,
                EXEC_EXTRA_MS,
                " ms",
            ),
        ]
    }
}
