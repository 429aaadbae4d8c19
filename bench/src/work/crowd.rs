//! Commands at once in one machine.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::way::Way;
use crate::report::{Budget, Part, Table};
use crate::stats::Series;

/// How many are asked for at once. The API takes 30 in a burst.
const ASKED: [usize; 3] = [1, 10, 30];
/// How many wait to be let go at once.
const WAITING: usize = 50;
/// What they may take, in what the guest needs to run them.
const RATIO: f64 = 1.3;
/// Each is measured so often in a round.
const TIMES: usize = 3;

struct Crowd {
    name: &'static str,
    guest: Series,
    link: Series,
    api: Series,
}

pub(super) struct Crowds(Vec<Crowd>);

/// A line that prints how long the guest itself needs to start `n` processes `true` and to see
/// their end, in nanoseconds of its own clock.
fn started_by_a_shell(n: usize) -> String {
    format!(
        "b=$(date +%s%N); i=0; while [ $i -lt {n} ]; do /usr/bin/true & i=$((i+1)); done; wait; \
         e=$(date +%s%N); echo $((e-b))"
    )
}

/// The same of `n` shells that wait for their stdin to end and then run it, from that end on.
fn let_go_by_a_shell(n: usize) -> String {
    format!(
        "d=$(mktemp -d); mkfifo $d/f; exec 3<>$d/f; i=0; while [ $i -lt {n} ]; do \
         sh -c 'read _; /usr/bin/true' 3>&- <$d/f & i=$((i+1)); done; sleep 3; b=$(date +%s%N); \
         exec 3>&-; wait; e=$(date +%s%N); rm -r $d; echo $((e-b))"
    )
}

impl Crowds {
    pub(super) fn new() -> Self {
        let names = ["1", "10", "30", "50 that wait, let go"];
        let series = |name| Series::new(name);
        Self(
            names
                .map(|name| Crowd {
                    name,
                    guest: series("guest"),
                    link: series("link"),
                    api: series("API"),
                })
                .into(),
        )
    }

    pub(super) async fn measure(&mut self, way: &Way<'_>) -> Result<()> {
        for (crowd, n) in self.0.iter_mut().zip(ASKED.into_iter().chain([WAITING])) {
            for _ in 0..TIMES {
                let took = match n {
                    WAITING => way.let_go(n).await?,
                    n => way.at_once(n).await?,
                };
                match way {
                    Way::Api(_) => crowd.api.push(took),
                    Way::Link(_) => {
                        crowd.link.push(took);
                        let line = match n {
                            WAITING => let_go_by_a_shell(n),
                            n => started_by_a_shell(n),
                        };
                        let printed = way.shell(&line).await?;
                        let nanos = printed.trim().parse().context("the guest's clock")?;
                        crowd.guest.push(Duration::from_nanos(nanos));
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn part(&self) -> Result<Part> {
        let columns = [
            "`true` at once",
            "n",
            "one shell in the guest p50 ms",
            "link p50 ms",
            "API p50 ms",
            "API p99 ms",
            "API over guest",
            "API over link",
        ];
        let mut table = Table::new(&columns);
        let mut last = f64::NAN;
        for Crowd { name, guest, link, api } in &self.0 {
            let over_guest = api.median_ratio(guest)?;
            table.row(vec![
                (*name).to_owned(),
                api.len().to_string(),
                format!("{:.1}", guest.percentile(50)),
                format!("{:.1}", link.percentile(50)),
                format!("{:.1}", api.percentile(50)),
                format!("{:.1}", api.percentile(99)),
                format!("{over_guest:.2}x"),
                format!("{:.2}x", api.median_ratio(link)?),
            ]);
            last = over_guest;
        }
        let promise = "50 commands at once / what the guest needs to run them";
        let budgets = vec![Budget::at_most(promise, last, RATIO, "x")];
        Ok(Part { tables: vec![table], budgets, ..Part::default() })
    }
}
