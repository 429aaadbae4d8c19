//! Freezing: how long it takes and how much it writes, by what has changed since the last time.

use anyhow::Result;

use super::Guests;
use super::fleet::{Fleet, Keep, Sandbox, Stopped};
use crate::Size;
use crate::bare::{Bare, Bench, Saved, Written};
use crate::report::{Part, Table};
use crate::stats::Series;

/// How much is written anew between two freezes, in MiB.
const DIRTIED: u32 = 100;
/// The same in a short run, where it is only there to be kept.
const LITTLE: u32 = 16;
/// For so many rounds the same sandbox is used: every wake leaves a layer of its disk behind, and
/// merging them is not what is measured here.
const ROUNDS: usize = 4;

pub(super) struct Freezes(Vec<Kind>);

/// One kind of freeze.
struct Kind {
    /// Request to answer, or what it takes by hand.
    took: Series,
    /// The daemon's own time until the record says cold.
    inside: Series,
    /// Bytes written, and bytes of the whole; by freeze.
    bytes: Vec<(u64, u64)>,
}

impl Kind {
    fn new(name: &'static str) -> Self {
        Self { took: Series::new(name), inside: Series::new(name), bytes: Vec::new() }
    }

    fn stopped(&mut self, stopped: Stopped) {
        let Stopped { took, frozen } = stopped;
        self.took.push(took);
        self.inside.push(std::time::Duration::from_millis(frozen.millis));
        self.bytes.push((frozen.written, frozen.bytes));
    }

    fn by_hand(&mut self, written: Written) {
        self.took.push(written.took);
        self.bytes.push((written.bytes, written.bytes));
    }

    fn cells(&self) -> [String; 3] {
        let mib = |part: fn(&(u64, u64)) -> u64| {
            let mut all: Vec<u64> = self.bytes.iter().map(part).collect();
            all.sort_unstable();
            all.get(all.len() / 2).map_or(f64::NAN, |middle| *middle as f64 / f64::from(1 << 20))
        };
        let inside = match self.inside.len() {
            0 => String::new(),
            _ => format!("{:.0}", self.inside.percentile(50)),
        };
        let (written, whole) = (mib(|bytes| bytes.0), mib(|bytes| bytes.1));
        [inside, format!("{written:.1}"), format!("{whole:.1}")]
    }
}

impl Freezes {
    /// `first` are freezes of clones that were measured already.
    pub(super) async fn measure(
        fleet: &mut Fleet,
        bench: &Bench,
        saved: &Saved,
        first: &[Stopped],
        Size { runs, short }: Size,
    ) -> Result<Self> {
        let mut clone = Kind::new("first freeze of a clone, after one command");
        first.iter().for_each(|stopped| clone.stopped(*stopped));
        let mut again = Kind::new("again, after one command");
        let mut untouched = Kind::new("again, nothing was run");
        let mut dirtied = Kind::new("again, 100 MiB dirtied");
        let mut bare = Kind::new("by hand: a clone, after one command");
        let mut bare_dirtied = Kind::new("by hand: the same, 100 MiB dirtied");

        let line = Guests::fill(if short { LITTLE } else { DIRTIED });
        let mut sandbox = prepared(fleet, &line).await?;
        for round in 0..runs {
            if round > 0 && round % ROUNDS == 0 {
                fleet.destroy(&sandbox).await?;
                sandbox = prepared(fleet, &line).await?;
            }
            fleet.exec_true(&sandbox).await?;
            again.stopped(fleet.stop(&sandbox).await?);
            fleet.start_again(&sandbox).await?;
            untouched.stopped(fleet.stop(&sandbox).await?);
            bare.by_hand(freeze_by_hand(bench, saved, "true").await?);
            // This takes the guest seconds.
            if round % 2 == 0 && !short {
                fleet.shell(&sandbox, &line).await?;
                dirtied.stopped(fleet.stop(&sandbox).await?);
                bare_dirtied.by_hand(freeze_by_hand(bench, saved, &line).await?);
            }
            eprintln!("freezes: round {} of {runs}", round + 1);
        }
        fleet.destroy(&sandbox).await?;
        let mut kinds = vec![clone, again, untouched, dirtied, bare, bare_dirtied];
        kinds.retain(|kind| kind.took.len() > 0);
        Ok(Self(kinds))
    }

    pub(super) fn part(&self) -> Part {
        let columns = [
            "freeze",
            "n",
            "p50 ms",
            "p99 ms",
            "until recorded, p50 ms",
            "written MiB, p50",
            "in all MiB, p50",
        ];
        let mut table = Table::new(&columns);
        for kind in &self.0 {
            table.series(&kind.took, 0, kind.cells());
        }
        Part { tables: vec![table], ..Part::default() }
    }
}

/// A cold sandbox whose pages to be dirtied are there already, and are only written again.
async fn prepared(fleet: &mut Fleet, line: &str) -> Result<Sandbox> {
    let sandbox = fleet.create(0, Keep::Hot).await?.sandbox;
    fleet.shell(&sandbox, line).await?;
    fleet.stop(&sandbox).await?;
    Ok(sandbox)
}

async fn freeze_by_hand(bench: &Bench, saved: &Saved, line: &str) -> Result<Written> {
    let ready = bench.ready(saved).await?;
    let (mut bare, _): (Bare, _) = bench.restore(ready, saved).await?;
    Guests::shell(&bare, line).await?;
    bare.freeze().await
}
