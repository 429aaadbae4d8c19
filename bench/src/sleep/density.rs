//! What sandboxes hold in memory, by how many there are and how awake.
//!
//! They are made one after the other, each runs one command, and at 1, 10 and 40 all machines are
//! weighed (in a short run at 1 and 5). Then all fall asleep and are weighed again, while some after the other goes cold.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::fleet::{Fleet, Keep, Made, Sandbox, Stopped, USERS};
use crate::memory::{self, Footprint};
use crate::report::{Budget, Part, Table};

/// What 40 clones may hold, in MiB.
const MOST_MIB: (usize, f64) = (40, 2048.0);

/// All weights, and what was made on the way.
pub(super) struct Density {
    weights: Vec<Weight>,
    /// The first create of its kind: it boots, freezes, and clones.
    first: Duration,
    /// Freezes of clones that have run one command and never slept before.
    pub(super) freezes: Vec<Stopped>,
}

struct Weight {
    state: &'static str,
    sandboxes: usize,
    machines: usize,
    /// Of all machines together.
    all: Footprint,
    /// Of the daemon.
    daemon: Footprint,
    template: f64,
    /// By how much less the host has to give than before the first of them.
    taken: f64,
}

impl Density {
    /// Weighed at so many sandboxes. Returns them as well; they are cold.
    pub(super) async fn measure(
        fleet: &mut Fleet,
        counts: &[usize],
    ) -> Result<(Self, Vec<Sandbox>)> {
        let before = memory::available()?;
        let weigh = |fleet: &Fleet, state, sandboxes| -> Result<Weight> {
            let (machines, all) = fleet.machines()?;
            let (daemon, template) = fleet.daemon_memory()?;
            let taken = before - memory::available()?;
            Ok(Weight { state, sandboxes, machines, all, daemon, template, taken })
        };
        let (mut weights, mut freezes) = (Vec::new(), Vec::new());
        let (mut sandboxes, mut first) = (Vec::new(), None);
        let most = counts.iter().copied().max().unwrap_or(0);
        while sandboxes.len() < most {
            let Made { sandbox, took } = fleet.create(sandboxes.len() % USERS, Keep::Hot).await?;
            first.get_or_insert(took);
            fleet.exec_true(&sandbox).await?;
            sandboxes.push(sandbox);
            if counts.contains(&sandboxes.len()) {
                weights.push(weigh(fleet, "hot", sandboxes.len())?);
                eprintln!("memory: {} sandboxes", sandboxes.len());
            }
        }
        for sandbox in &sandboxes {
            fleet.keep(sandbox, Keep::Free).await?;
        }
        fleet.until_warm(&sandboxes).await?;
        for awake in (1..=most).rev() {
            if counts.contains(&awake) {
                weights.push(weigh(fleet, "warm", awake)?);
            }
            freezes.push(fleet.stop(&sandboxes[awake - 1]).await?);
        }
        let cold = weigh(fleet, "cold", most)?;
        ensure!(cold.machines == 0, "{} cold sandboxes have a process", cold.machines);
        weights.push(cold);
        eprintln!("memory: all of them warm, then cold");
        Ok((Self { weights, first: first.unwrap_or_default(), freezes }, sandboxes))
    }

    pub(super) fn part(&self) -> Part {
        let columns = [
            "memory",
            "VMMs",
            "PSS MiB, all VMMs",
            "each",
            "of it anonymous, each",
            "template MiB",
            "daemon PSS MiB",
            "MemAvailable less by, MiB",
            "each",
        ];
        let mut table = Table::new(&columns);
        for weight in &self.weights {
            let sandboxes = weight.sandboxes as f64;
            let mib = |value: f64| format!("{value:.1}");
            table.row(vec![
                format!("{} {}", weight.sandboxes, weight.state),
                weight.machines.to_string(),
                mib(weight.all.pss),
                mib(weight.all.pss / sandboxes),
                mib(weight.all.anonymous / sandboxes),
                mib(weight.template),
                mib(weight.daemon.pss),
                mib(weight.taken),
                mib(weight.taken / sandboxes),
            ]);
        }
        let first = self.first.as_secs_f64();
        Part {
            tables: vec![table],
            notes: vec![
                format!("first create of its kind (boots, freezes, clones): {first:.1} s"),
                "A page of the template counts in the PSS of the VMMs that have touched it, \
                 divided among them, and again in the template's own size; the sum of both is \
                 more than what is held."
                    .to_owned(),
            ],
            budgets: self.budget().into_iter().collect(),
        }
    }

    /// If there were as many as it speaks of.
    fn budget(&self) -> Option<Budget> {
        let (count, most) = MOST_MIB;
        let mut hot = self.weights.iter().filter(|weight| weight.state == "hot");
        let weight = hot.find(|weight| weight.sandboxes == count)?;
        let promise = "40 hot clones of 512 MiB after one command, PSS and template";
        Some(Budget::at_most(promise, weight.all.pss + weight.template, most, " MiB"))
    }
}
