//! What one wake costs when twenty wake at once, beside one alone.

use std::time::Instant;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;

use super::fleet::{self, ECHO, Fleet, Keep, Sandbox, USERS};
use crate::bare::{Bench, Saved};
use crate::report::{Part, Table};
use crate::stats::Series;
use crate::subject;

/// How many wake at once.
const CROWD: usize = 20;
/// How often they do.
const BURSTS: usize = 2;

pub(super) struct Crowd {
    cold_alone: Series,
    cold: Series,
    warm: Series,
    bare: Series,
}

impl Crowd {
    /// `sandboxes` are cold, each of them a clone that has run one command. Leaves one of each
    /// user.
    pub(super) async fn measure(
        fleet: &mut Fleet,
        bench: &Bench,
        saved: &Saved,
        sandboxes: &[Sandbox],
    ) -> Result<Self> {
        ensure!(sandboxes.len() > CROWD, "too few sandboxes for a crowd");
        let (crowd, others) = sandboxes.split_at(CROWD);
        let mut found = Self {
            cold_alone: Series::new("cold, API, alone"),
            cold: Series::new("cold, API, 20 at once"),
            warm: Series::new("warm, API, 20 at once"),
            bare: Series::new("bare restore, 20 at once"),
        };
        for sandbox in others {
            found.cold_alone.push(fleet.first_byte(sandbox).await?);
            fleet.destroy(sandbox).await?;
        }
        for burst in 1..=BURSTS {
            at_once(fleet, crowd, &mut found.cold).await?;
            for sandbox in crowd {
                fleet.keep(sandbox, Keep::Free).await?;
            }
            fleet.until_warm(crowd).await?;
            at_once(fleet, crowd, &mut found.warm).await?;
            for sandbox in crowd {
                fleet.stop(sandbox).await?;
            }
            by_hand(bench, saved, &mut found.bare).await?;
            eprintln!("20 at once: burst {burst} of {BURSTS}");
        }
        for sandbox in &crowd[USERS..] {
            fleet.destroy(sandbox).await?;
        }
        Ok(found)
    }

    pub(super) fn part(&self) -> Result<Part> {
        let mut table = Table::of_series("wake to first byte", "of one alone, p50");
        let alone = self.cold_alone.percentile(50);
        for series in [&self.cold_alone, &self.cold, &self.warm, &self.bare] {
            table.series(series, 0, [format!("{:.1}x", series.percentile(50) / alone)]);
        }
        Ok(Part { tables: vec![table], ..Part::default() })
    }
}

/// Asks all of them in the same moment, each over a connection of its own.
async fn at_once(fleet: &mut Fleet, crowd: &[Sandbox], into: &mut Series) -> Result<()> {
    for account in 0..USERS {
        let count = crowd.iter().filter(|sandbox| sandbox.account == account).count();
        fleet.allow_execs(account, u32::try_from(count)?).await;
    }
    let mut clients = Vec::new();
    for sandbox in crowd {
        let client = fleet.client(sandbox);
        subject::connect(&client).await?;
        clients.push(client);
    }
    let asked = clients.iter().zip(crowd);
    let answers = asked.map(|(client, sandbox)| fleet::first_byte(client, &sandbox.name));
    for took in try_join_all(answers).await? {
        into.push(took);
    }
    Ok(())
}

/// The same by hand: as many machines continued in the same moment.
async fn by_hand(bench: &Bench, saved: &Saved, into: &mut Series) -> Result<()> {
    let mut ready = Vec::new();
    for _ in 0..CROWD {
        ready.push(bench.ready(saved).await?);
    }
    let started = Instant::now();
    let restored = ready.into_iter().map(|ready| async move {
        let (bare, _) = bench.restore(ready, saved).await?;
        bare.first_byte(started, &ECHO).await
    });
    for took in try_join_all(restored).await? {
        into.push(took);
    }
    Ok(())
}
