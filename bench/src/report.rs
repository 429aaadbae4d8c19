//! What a run found: a table for people, the same with every sample for programs.

use std::fmt::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

use crate::environment::Environment;
use crate::memory::Footprint;
use crate::rounds::{Boots, Execs, Starts};
use crate::same::SameMachine;
use crate::stats::Series;

/// What `create` may take, over the bare boot.
const CREATE_RATIO: f64 = 1.15;
/// What `exec` over the API may take more than over the bare link, in milliseconds.
const EXEC_EXTRA_MS: f64 = 2.0;

/// Everything one run has found.
pub(crate) struct Findings {
    pub(crate) environment: Environment,
    pub(crate) boots: Boots,
    pub(crate) execs: Execs,
    pub(crate) same: SameMachine,
    pub(crate) starts: Starts,
    pub(crate) memory: Vec<(&'static str, Footprint)>,
    /// What the agent wrote about its boot, of the resident.
    pub(crate) boot_phases: String,
}

/// One promise and what this run says about it.
#[derive(Debug, Serialize)]
struct Budget {
    promise: &'static str,
    measured: f64,
    allowed: f64,
    unit: &'static str,
    met: bool,
}

impl Budget {
    fn new(promise: &'static str, measured: f64, allowed: f64, unit: &'static str) -> Self {
        // NaN meets nothing.
        Self { promise, measured, allowed, unit, met: measured <= allowed }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { promise, measured, allowed, unit, met } = self;
        let verdict = if *met { "MET" } else { "NOT MET" };
        write!(f, "{verdict}: {promise}: {measured:.2}{unit} of {allowed:.2}{unit}")
    }
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    n: usize,
    p50_ms: f64,
    p99_ms: f64,
    samples_ms: Vec<f64>,
}

#[derive(Serialize)]
struct Process {
    name: &'static str,
    #[serde(rename = "rss_mib")]
    rss: f64,
    #[serde(rename = "pss_mib")]
    pss: f64,
}

#[derive(Serialize)]
struct Json<'a> {
    environment: &'a Environment,
    series: Vec<Row>,
    memory: Vec<Process>,
    boot_phases: &'a str,
    budgets: Vec<Budget>,
}

impl Findings {
    fn budgets(&self) -> Vec<Budget> {
        let Self { boots, same, .. } = self;
        let ratio = |series: &Series| series.percentile(50) / boots.bare.percentile(50);
        let extra = same.api.percentile(50) - same.link.percentile(50);
        vec![
            Budget::new(
                "create by CLI / bare first reply, p50",
                ratio(&boots.cli),
                CREATE_RATIO,
                "x",
            ),
            Budget::new(
                "create by API / bare first reply, p50",
                ratio(&boots.api),
                CREATE_RATIO,
                "x",
            ),
            Budget::new("exec by API - bare link, same machine, p50", extra, EXEC_EXTRA_MS, " ms"),
        ]
    }

    /// Everything, with every sample in milliseconds.
    pub(crate) fn json(&self) -> Result<String> {
        let all = self.boots.all().into_iter().chain(self.execs.all());
        let all = all.chain(self.same.all()).chain(self.starts.all());
        let row = |series: &Series| Row {
            name: series.name,
            n: series.len(),
            p50_ms: series.percentile(50),
            p99_ms: series.percentile(99),
            samples_ms: series.millis(),
        };
        let process =
            |(name, of): &(&'static str, Footprint)| Process { name, rss: of.rss, pss: of.pss };
        let json = Json {
            environment: &self.environment,
            series: all.map(row).collect(),
            memory: self.memory.iter().map(process).collect(),
            boot_phases: &self.boot_phases,
            budgets: self.budgets(),
        };
        Ok(serde_json::to_string_pretty(&json)?)
    }

    /// Markdown, as `docs/performance.md` has it.
    pub(crate) fn markdown(&self) -> Result<String> {
        let Self { environment: env, boots, execs, starts, .. } = self;
        let mut text = String::new();
        let [before, after] = env.load;
        writeln!(text, "{}, commit {}", env.date, env.commit)?;
        writeln!(text, "{} cores of {}, Linux {}", env.cores, env.cpu, env.kernel)?;
        writeln!(text, "{}, QEMU {}, load {before} to {after}", env.engine, env.qemu)?;
        if !env.optimised {
            writeln!(text, "not optimised: these figures are of a debug build")?;
        }
        writeln!(text, "\n| boot | n | p50 ms | p99 ms | over bare, by round |")?;
        writeln!(text, "|---|---|---|---|---|")?;
        for series in boots.all() {
            let ratio = series.median_ratio(&boots.bare)?;
            line(&mut text, series, 0, &format!("{ratio:.3}x"))?;
        }
        writeln!(text, "\n| exec | n | p50 ms | p99 ms | over bare, by round |")?;
        writeln!(text, "|---|---|---|---|---|")?;
        for series in execs.all() {
            let extra = series.median_difference(&execs.bare)?;
            line(&mut text, series, 2, &format!("{extra:+.2} ms"))?;
        }
        for series in self.same.all() {
            let extra = series.median_difference(&self.same.link)?;
            line(&mut text, series, 2, &format!("{extra:+.2} ms"))?;
        }
        for series in starts.all() {
            line(&mut text, series, 2, "")?;
        }
        writeln!(text, "\n| memory | RSS MiB | PSS MiB |")?;
        writeln!(text, "|---|---|---|")?;
        for (name, Footprint { rss, pss }) in &self.memory {
            writeln!(text, "| {name} | {rss:.1} | {pss:.1} |")?;
        }
        writeln!(text, "\nboot phases, by the guest's clock:\n{}", self.boot_phases.trim_end())?;
        writeln!(text)?;
        for budget in self.budgets() {
            writeln!(text, "{budget}")?;
        }
        Ok(text)
    }
}

fn line(text: &mut String, series: &Series, digits: usize, last: &str) -> fmt::Result {
    let (name, n) = (series.name, series.len());
    let (p50, p99) = (series.percentile(50), series.percentile(99));
    writeln!(text, "| {name} | {n} | {p50:.digits$} | {p99:.digits$} | {last} |")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_met_up_to_its_edge() {
        for (measured, met) in [(1.0, true), (1.15, true), (1.16, false), (f64::NAN, false)] {
            let budget = Budget::new("create", measured, CREATE_RATIO, "x");
            assert_eq!(budget.met, met, "{budget}");
            assert_eq!(budget.to_string().starts_with("MET"), met, "{budget}");
        }
    }
}
