//! What a run found: tables for people, the same with every sample for programs.

use std::fmt::{self, Write as _};

use anyhow::Result;
use camino::Utf8Path;
use serde::Serialize;

use crate::environment::Environment;
use crate::log;
use crate::stats::Series;

/// Everything one run has found.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) environment: Environment,
    pub(crate) parts: Vec<Part>,
}

/// What was found about one thing.
#[derive(Default, Serialize)]
pub(crate) struct Part {
    pub(crate) tables: Vec<Table>,
    /// Whole paragraphs.
    pub(crate) notes: Vec<String>,
    pub(crate) budgets: Vec<Budget>,
}

impl Part {
    /// What a daemon complained of, in the file of its log.
    pub(crate) fn errors(file: &Utf8Path, promise: &'static str) -> Result<Self> {
        let (count, first) = log::errors(file)?;
        let budgets = vec![Budget::at_most(promise, count as f64, 0.0, "")];
        Ok(Self { notes: first.into_iter().collect(), budgets, ..Self::default() })
    }
}

/// One table; the first column says what a row is about.
#[derive(Serialize)]
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    cells: Vec<String>,
    /// What the row sums up, if it was measured again and again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    samples_ms: Vec<f64>,
}

impl Table {
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// A table of series: how many samples, their middle, their slow end, and `last`.
    pub(crate) fn of_series(name: &'static str, last: &'static str) -> Self {
        Self::new(&[name, "n", "p50 ms", "p99 ms", last])
    }

    /// A row about a series, which has `more` columns than these four.
    pub(crate) fn series<const N: usize>(
        &mut self,
        series: &Series,
        digits: usize,
        more: [String; N],
    ) {
        let (p50, p99) = (series.percentile(50), series.percentile(99));
        let figures = [
            series.name.to_owned(),
            series.len().to_string(),
            format!("{p50:.digits$}"),
            format!("{p99:.digits$}"),
        ];
        let cells = figures.into_iter().chain(more).collect();
        self.rows.push(Row { cells, samples_ms: series.millis() });
    }

    /// A row about each of `all`, with how many times `base` it took, by round.
    pub(crate) fn ratios<'a>(
        &mut self,
        base: &Series,
        all: impl IntoIterator<Item = &'a Series>,
        digits: usize,
    ) -> Result<()> {
        for series in all {
            let ratio = series.median_ratio(base)?;
            self.series(series, digits, [format!("{ratio:.3}x")]);
        }
        Ok(())
    }

    /// A row about each of `all`, with what it took more than `base`, by round.
    pub(crate) fn differences<'a>(
        &mut self,
        base: &Series,
        all: impl IntoIterator<Item = &'a Series>,
    ) -> Result<()> {
        for series in all {
            let extra = series.median_difference(base)?;
            self.series(series, 2, [format!("{extra:+.2} ms")]);
        }
        Ok(())
    }

    /// Any other row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(Row { cells, samples_ms: Vec::new() });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", self.columns.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(self.columns.len()))?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.cells.join(" | "))?;
        }
        Ok(())
    }
}

/// One promise and what this run says about it.
#[derive(Debug, Serialize)]
pub(crate) struct Budget {
    promise: &'static str,
    measured: f64,
    allowed: f64,
    unit: &'static str,
    met: bool,
}

impl Budget {
    /// At most so much is allowed.
    pub(crate) fn at_most(
        promise: &'static str,
        measured: f64,
        allowed: f64,
        unit: &'static str,
    ) -> Self {
        // NaN meets nothing.
        Self { promise, measured, allowed, unit, met: measured <= allowed }
    }

    /// At least so much is promised.
    pub(crate) fn at_least(
        promise: &'static str,
        measured: f64,
        allowed: f64,
        unit: &'static str,
    ) -> Self {
        Self { promise, measured, allowed, unit, met: measured >= allowed }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { promise, measured, allowed, unit, met } = self;
        let verdict = if *met { "MET" } else { "NOT MET" };
        write!(f, "{verdict}: {promise}: {measured:.2}{unit} of {allowed:.2}{unit}")
    }
}

impl Report {
    /// Everything, with every sample in milliseconds.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Markdown, as `docs/performance.md` has it.
    pub(crate) fn markdown(&self) -> Result<String> {
        let Self { environment: env, parts } = self;
        let mut text = String::new();
        let [before, after] = env.load;
        writeln!(text, "{}, commit {}", env.date, env.commit)?;
        writeln!(text, "{} cores of {}, Linux {}", env.cores, env.cpu, env.kernel)?;
        writeln!(text, "{}, {}, load {before} to {after}", env.engine, env.vmm)?;
        if !env.optimised {
            writeln!(text, "not optimised: these figures are of a debug build")?;
        }
        for part in parts {
            for table in &part.tables {
                write!(text, "\n{table}")?;
            }
            for note in &part.notes {
                writeln!(text, "\n{}", note.trim_end())?;
            }
        }
        writeln!(text)?;
        for budget in parts.iter().flat_map(|part| &part.budgets) {
            writeln!(text, "{budget}")?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_budget_is_met_up_to_its_edge() {
        for (measured, most, least) in
            [(1.0, true, false), (1.15, true, true), (1.16, false, true), (f64::NAN, false, false)]
        {
            for (budget, met) in [
                (Budget::at_most("create", measured, 1.15, "x"), most),
                (Budget::at_least("create", measured, 1.15, "x"), least),
            ] {
                assert_eq!(budget.met, met, "{budget}");
                assert_eq!(budget.to_string().starts_with("MET"), met, "{budget}");
            }
        }
    }

    #[test]
    fn a_table_is_markdown() {
        let mut series = Series::new("x");
        series.push(Duration::from_micros(1500));
        let mut table = Table::of_series("thing", "over");
        table.series(&series, 2, ["1.0x".to_owned()]);
        let expected = "| thing | n | p50 ms | p99 ms | over |\n|---|---|---|---|---|\n\
            | x | 1 | 1.50 | 1.50 | 1.0x |\n";
        assert_eq!(table.to_string(), expected);
    }
}
