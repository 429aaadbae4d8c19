//! Bytes into a machine and out of it.

use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;

use super::way::Way;
use crate::report::{Budget, Part, Table};
use crate::stats::Series;

const FILE: &str = "/root/moved";

/// What is moved, and how often in a round: what is short is measured more often.
const SIZES: [(usize, &str, usize); 3] =
    [(1 << 10, "1 KB", 10), (1 << 20, "1 MB", 5), (100 << 20, "100 MB", 1)];
const KINDS: [&str; 4] = ["exec stdin", "exec stdout", "file write", "file read"];

/// What `bhatti` leaves of the bare link's rate at least.
const SHARE: f64 = 0.8;

/// One kind with one size, both ways.
struct Move {
    kind: &'static str,
    size: usize,
    name: &'static str,
    times: usize,
    link: Series,
    api: Series,
}

pub(super) struct Moves(Vec<Move>);

impl Moves {
    pub(super) fn new() -> Self {
        let moves = SIZES.into_iter().flat_map(|(size, name, times)| {
            KINDS.map(|kind| Move {
                kind,
                size,
                name,
                times,
                link: Series::new("link"),
                api: Series::new("API"),
            })
        });
        Self(moves.collect())
    }

    pub(super) async fn measure(&mut self, way: &Way<'_>) -> Result<()> {
        let content = Bytes::from(vec![b'x'; 100 << 20]);
        for one in &mut self.0 {
            let content = content.slice(..one.size);
            for _ in 0..one.times {
                way.rest(1).await?;
                let started = Instant::now();
                match one.kind {
                    "exec stdin" => way.stdin(content.clone()).await?,
                    "exec stdout" => way.stdout(one.size).await?,
                    "file write" => way.write_file(FILE, content.clone()).await?,
                    _ => ensure!(way.read_file(FILE).await? == one.size, "a file is not whole"),
                }
                let took = started.elapsed();
                match way {
                    Way::Link(_) => one.link.push(took),
                    Way::Api(_) => one.api.push(took),
                }
            }
        }
        Ok(())
    }

    pub(super) fn part(&self) -> Result<Part> {
        let columns = [
            "moved",
            "n",
            "link p50 ms",
            "link MB/s",
            "API p50 ms",
            "API p99 ms",
            "API MB/s",
            "API's share of the link's rate",
        ];
        let mut table = Table::new(&columns);
        let mut budgets = Vec::new();
        for Move { kind, size, name, link, api, .. } in &self.0 {
            let share = 1.0 / api.median_ratio(link)?;
            let rate = |ms: f64| format!("{:.2}", *size as f64 / 1e3 / ms);
            let (slow, fast) = (api.percentile(50), link.percentile(50));
            table.row(vec![
                format!("{kind}, {name}"),
                api.len().to_string(),
                format!("{fast:.2}"),
                rate(fast),
                format!("{slow:.2}"),
                format!("{:.2}", api.percentile(99)),
                rate(slow),
                format!("{share:.3}"),
            ]);
            let promise = match (*kind, *name) {
                ("file write", "1 MB") => "file write, 1 MB: share of the bare link's rate",
                ("file read", "1 MB") => "file read, 1 MB: share of the bare link's rate",
                ("file write", "100 MB") => "file write, 100 MB: share of the bare link's rate",
                ("file read", "100 MB") => "file read, 100 MB: share of the bare link's rate",
                _ => continue,
            };
            budgets.push(Budget::at_least(promise, share, SHARE, ""));
        }
        Ok(Part { tables: vec![table], budgets, ..Part::default() })
    }
}
