//! What the daemon adds to a machine that boots: create, exec, memory, beside the bare engine.

use anyhow::{Context as _, Result};
use camino::Utf8Path;

use crate::bare::Bench;
use crate::memory::{self, Footprint};
use crate::report::{Budget, Part, Table};
use crate::rounds::{Boots, Execs, Starts};
use crate::same::SameMachine;
use crate::stats::Series;
use crate::subject::{self, MEMORY_MIB, RESIDENT, Subject};
use crate::{Size, log};

/// What `create` may take, over the bare boot.
const CREATE_RATIO: f64 = 1.15;
/// What `exec` over the API may take more than over the bare link, in milliseconds.
const EXEC_EXTRA_MS: f64 = 2.0;

/// Everything about booted machines.
pub(crate) struct Booted {
    boots: Boots,
    execs: Execs,
    /// Not in a short run.
    longer: Option<(SameMachine, Starts)>,
    memory: Vec<Held>,
    /// What the agent wrote about its boot, of the resident.
    phases: String,
    /// What the daemon says of its boots.
    parts: String,
}

/// The parts of a boot in the daemon's log: the message, what it measured, what that is.
const PARTS: [(&str, &str, &str); 4] = [
    ("disk and network are there", "disk_ms", "disk"),
    ("disk and network are there", "network_ms", "network, at the same time"),
    ("machine is up", "vmm_ms", "VMM until its machine runs"),
    ("machine is up", "guest_ms", "guest until it has its identity"),
];

/// The median of each part.
fn parts_of_boots(log: &Utf8Path) -> Result<String> {
    let part = |(message, name, what): &(&str, &str, &str)| {
        let mut found = log::numbers(log, message, name)?;
        found.sort_unstable();
        let median = found.get(found.len() / 2).with_context(|| format!("no {name} in the log"))?;
        Ok(format!("{what}: {median} ms"))
    };
    Ok(PARTS.iter().map(part).collect::<Result<Vec<_>>>()?.join("\n"))
}

/// What a process holds.
struct Held {
    what: &'static str,
    all: Footprint,
    /// Of a VMM: what is not its guest's.
    beside: Option<f64>,
}

impl Held {
    fn by_vmm(what: &'static str, pid: i32) -> Result<Self> {
        let beside = Some(memory::overhead(pid, MEMORY_MIB)?);
        Ok(Self { what, all: Footprint::of(pid)?, beside })
    }
}

impl Booted {
    pub(crate) async fn measure(
        subject: &mut Subject,
        bench: &Bench,
        Size { runs, short }: Size,
    ) -> Result<Self> {
        let machine = subject.resident_pid()?;
        let serve = subject::newest_daemon(&[])?;
        // Each takes seconds.
        let boots = Boots::measure(subject, bench, runs.div_ceil(2)).await?;
        let idle = Held::by_vmm("VMM of a sandbox, idle since its boot", machine)?;
        let (bare, _) = bench.boot().await?;
        let execs = Execs::measure(subject, &bare, runs * 10).await?;
        let memory = vec![
            Held { what: "`bhatti serve`, one sandbox", all: Footprint::of(serve)?, beside: None },
            idle,
            Held::by_vmm("the same after the execs", machine)?,
            Held::by_vmm("VMM by hand after the execs", bare.pid()?)?,
        ];
        subject::connect(&subject.client).await?;
        let phases =
            subject::exec(&subject.client, RESIDENT, "cat /run/bhatti/boot-timing.txt").await?;
        drop(bare);
        let parts = parts_of_boots(&subject.daemon.log_file())?;
        let longer = match short {
            true => None,
            false => {
                let starts = Starts::measure(subject, runs * 5)?;
                Some((SameMachine::measure(subject, runs * 10).await?, starts))
            }
        };
        Ok(Self { boots, execs, longer, memory, phases, parts })
    }

    pub(crate) fn part(&self) -> Result<Part> {
        let Self { boots, execs, longer, memory, phases, parts } = self;
        let mut boot = Table::of_series("boot", "over bare, by round");
        boot.ratios(&boots.makes.bare, boots.all(), 0)?;
        let mut exec = Table::of_series("exec", "over bare, by round");
        exec.differences(&execs.bare, execs.all())?;
        if let Some((same, starts)) = longer {
            exec.differences(&same.link, same.all())?;
            for series in starts.all() {
                exec.series(series, 2, [String::new()]);
            }
        }
        let columns = ["memory", "RSS MiB", "PSS MiB", "beside the guest's own, MiB"];
        let mut held = Table::new(&columns);
        for Held { what, all: Footprint { rss, pss, .. }, beside } in memory {
            let beside = beside.map_or_else(String::new, |beside| format!("{beside:.1}"));
            let cells = [(*what).to_owned(), format!("{rss:.1}"), format!("{pss:.1}"), beside];
            held.row(cells.into());
        }
        Ok(Part {
            tables: vec![boot, exec, held],
            notes: vec![
                format!("boot phases, by the guest's clock:\n{phases}"),
                format!("parts of a create that boots, medians, by the daemon's log:\n{parts}"),
            ],
            budgets: self.budgets(),
        })
    }

    fn budgets(&self) -> Vec<Budget> {
        let Self { boots, longer, .. } = self;
        let ratio = |series: &Series| series.percentile(50) / boots.makes.bare.percentile(50);
        let mut budgets = vec![
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
        ];
        if let Some((same, _)) = longer {
            budgets.push(Budget::at_most(
                "exec by API - bare link, same machine, p50",
                same.api.percentile(50) - same.link.percentile(50),
                EXEC_EXTRA_MS,
                " ms",
            ));
        }
        budgets
    }
}
