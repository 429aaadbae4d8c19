//! Waking from cold, by how much memory the guest has filled: request to the first byte of a
//! command, beside a machine continued by hand from a file it maps.

use anyhow::Result;

use super::Guests;
use super::fleet::{ECHO, Fleet, Keep, Sandbox};
use crate::Size;
use crate::bare::{Bench, Medium, Saved};
use crate::report::{Part, Table};
use crate::stats::{Series, order};

/// How much is filled, in MiB; only the first in a short run.
const FILLED: [u32; 2] = [16, 256];

pub(super) struct Cold {
    kinds: Vec<Kind>,
}

/// One amount of memory.
struct Kind {
    bare: Series,
    api: Series,
    /// Bytes of memory a generation has, and a machine written down by hand.
    bytes: (u64, u64),
}

/// A sandbox and a machine by hand with that much filled.
struct Pair {
    sandbox: Sandbox,
    saved: Saved,
}

impl Cold {
    pub(super) async fn measure(
        fleet: &mut Fleet,
        bench: &Bench,
        Size { runs, short }: Size,
    ) -> Result<Self> {
        let filled = if short { &FILLED[..1] } else { &FILLED };
        const NAMES: [(&str, &str); 2] = [
            ("16 MiB filled, bare restore", "16 MiB filled, API"),
            ("256 MiB filled, bare restore", "256 MiB filled, API"),
        ];
        let mut pairs = Vec::new();
        for (number, &mib) in filled.iter().enumerate() {
            let line = Guests::fill(mib);
            let (bare, _) = bench.boot().await?;
            Guests::shell(&bare, &line).await?;
            let saved = bare.save(Medium::Disk).await?;
            let sandbox = fleet.create(number, Keep::Hot).await?.sandbox;
            fleet.shell(&sandbox, &line).await?;
            eprintln!("cold wakes: {mib} MiB are filled");
            pairs.push(Pair { sandbox, saved });
        }
        let kind =
            |(bare, api)| Kind { bare: Series::new(bare), api: Series::new(api), bytes: (0, 0) };
        let mut found = Self { kinds: NAMES.into_iter().take(filled.len()).map(kind).collect() };
        for round in 0..runs {
            for contender in order(round, 2 * pairs.len()) {
                let (pair, kind) = (&pairs[contender / 2], &mut found.kinds[contender / 2]);
                if contender % 2 == 0 {
                    kind.by_hand(bench, &pair.saved).await?;
                } else {
                    kind.through_api(fleet, &pair.sandbox).await?;
                }
            }
            eprintln!("cold wakes: round {} of {runs}", round + 1);
        }
        for pair in pairs {
            fleet.destroy(&pair.sandbox).await?;
        }
        Ok(found)
    }

    pub(super) fn part(&self) -> Result<Part> {
        let columns =
            ["cold wake to first byte", "n", "p50 ms", "p99 ms", "over bare, by round", "MiB"];
        let mut table = Table::new(&columns);
        for Kind { bare, api, bytes } in &self.kinds {
            for (series, bytes) in [(bare, bytes.1), (api, bytes.0)] {
                let ratio = series.median_ratio(bare)?;
                let mib = bytes as f64 / f64::from(1 << 20);
                table.series(series, 0, [format!("{ratio:.2}x"), format!("{mib:.0}")]);
            }
        }
        Ok(Part { tables: vec![table], ..Part::default() })
    }
}

impl Kind {
    async fn by_hand(&mut self, bench: &Bench, saved: &Saved) -> Result<()> {
        let ready = bench.ready(saved).await?;
        let (bare, times) = bench.restore(ready, saved).await?;
        self.bare.push(bare.first_byte(times.started, &ECHO).await?);
        self.bytes.1 = saved.bytes;
        Ok(())
    }

    async fn through_api(&mut self, fleet: &mut Fleet, sandbox: &Sandbox) -> Result<()> {
        self.bytes.0 = fleet.stop(sandbox).await?.frozen.bytes;
        self.api.push(fleet.first_byte(sandbox).await?);
        Ok(())
    }
}
