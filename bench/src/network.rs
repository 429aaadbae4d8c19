//! What a user's network adds to a create: the part of it that waits for namespace, rules and policy,
//! beside a machine that has a network device and no network.
//!
//! The daemon does it beside the making of the disk, so this is the most it can add. What a busy machine
//! adds to the time it does not add to the work, so that is given too: processor time of this process and
//! of all it has started.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bhatti_net::plan::Guest;
use bhatti_net::{Denied, Directory, NetConfig, Networks, Upstreams, lowest_free};
use bhatti_types::{EngineId, NetPolicy};
use nix::sys::resource::{UsageWho, getrusage};

use crate::report::{Budget, Part, Table};
use crate::stats::Series;

/// How far apart new users come: long enough for what is prepared for the next one.
const APART: Duration = Duration::from_millis(250);
/// What the issue allows.
const ALLOWED_MS: f64 = 10.0;

/// Who is in the networks.
#[derive(Default)]
struct People {
    guests: Mutex<BTreeMap<u32, BTreeMap<Ipv4Addr, Guest>>>,
}

impl Directory for People {
    fn guests(
        &self,
        index: u32,
    ) -> Result<BTreeMap<Ipv4Addr, Guest>, Box<dyn std::error::Error + Send + Sync>> {
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(guests.get(&index).cloned().unwrap_or_default())
    }

    fn denied(&self, _: u32, _: &Guest, _: &Denied) {}
}

impl People {
    fn add(&self, index: u32, policy: &NetPolicy) -> Result<EngineId> {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let guests = guests.entry(index).or_default();
        let used: Vec<_> = guests.keys().copied().collect();
        let id = EngineId::random();
        let guest = Guest { name: "g".to_owned(), id: id.clone(), policy: policy.clone() };
        guests.insert(lowest_free(index, &used)?, guest);
        Ok(id)
    }
}

/// One kind of create, and the work it takes.
struct Kind {
    series: Series,
    work: Duration,
}

impl Kind {
    fn new(name: &'static str) -> Self {
        Self { series: Series::new(name), work: Duration::ZERO }
    }

    /// Takes the time of `open`; what comes out of it goes at once.
    async fn time<T, E>(&mut self, open: impl Future<Output = Result<T, E>>) -> Result<()>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (work, start) = (worked()?, Instant::now());
        let opened = open.await.with_context(|| format!("{} failed", self.series.name))?;
        self.series.push(start.elapsed());
        self.work += worked()?.saturating_sub(work);
        drop(opened);
        Ok(())
    }
}

/// The processor time of this process and of those it has waited for.
fn worked() -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
            sum += Duration::from_micros(u64::try_from(micros)?);
        }
    }
    Ok(sum)
}

/// A user a round, with three sandboxes.
pub(crate) async fn measure(rounds: usize) -> Result<Part> {
    let people = Arc::new(People::default());
    // Nobody asks for names.
    let upstreams = Upstreams::Fixed(Vec::new());
    let config = NetConfig { prefix: "bhbench-".to_owned(), upstreams, ..NetConfig::default() };
    let networks = Networks::open(config, people.clone()).await?;
    let open = NetPolicy::default();
    let hosts = (0..8).map(|n| format!("*.h{n}.example")).collect::<Vec<_>>();
    let ranges = (0..4).map(|n| format!("192.168.{n}.0/24")).collect::<Vec<_>>();
    let narrow = NetPolicy::parse("deny", &hosts, &ranges)?;

    let mut none = Kind::new("a device in no network");
    let mut kinds = [
        (Kind::new("a user's first sandbox"), &open),
        (Kind::new("another"), &open),
        (Kind::new("another, 8 names and 4 ranges"), &narrow),
    ];
    for index in (1..).take(rounds) {
        tokio::time::sleep(APART).await;
        none.time(networks.open_detached_tap()).await?;
        for (kind, policy) in &mut kinds {
            let id = people.add(index, policy)?;
            kind.time(networks.open_tap(index, &id)).await?;
        }
    }
    networks.sweep(&[]).await?;
    networks.close().await?;

    let columns = ["network of a create", "n", "p50 ms", "p99 ms", "more, by round", "work"];
    let (mut table, mut budgets) = (Table::new(&columns), Vec::new());
    let promises = [
        "network of a user's first sandbox, over a bare device",
        "network of another sandbox, over a bare device",
        "network of another sandbox with a policy, over a bare device",
    ];
    let work = |kind: &Kind| format!("{:.1} ms", kind.work.as_secs_f64() * 1e3 / rounds as f64);
    table.series(&none.series, 1, [String::new(), work(&none)]);
    for ((kind, _), promise) in kinds.iter().zip(promises) {
        let more = kind.series.median_difference(&none.series)?;
        table.series(&kind.series, 1, [format!("{more:+.1} ms"), work(kind)]);
        budgets.push(Budget::at_most(promise, more, ALLOWED_MS, " ms"));
    }
    Ok(Part { tables: vec![table], budgets, ..Part::default() })
}
