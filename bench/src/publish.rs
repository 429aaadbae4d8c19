//! Published ports: the public proxy beside nginx as the proxy of the same server in the same guest.
//!
//! ```text
//!   wrk, curl ─▶ bhatti's public side ─ bridge and TAP ──▶ nginx in the guest
//!   wrk, curl ─▶ nginx on the host ── bridge and TAP ────▶ nginx in the guest
//! ```
//!
//! The two take turns, round by round. nginx on the host works in the user's own network, since
//! nobody else reaches the guest, and the programs that ask it are there too. Both ask a server that
//! was copied into the guest from the host, with all it needs.
//!
//! Then what waking adds: the first answer of a sandbox that sleeps, warm and cold.

mod host;
mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bhatti_testkit::TestDaemon;

use crate::report::{Budget, Part, Table};
use crate::stats::Series;
use host::{Address, Proxy, Served};
use watch::{Used, Watch};

/// Warm comes soon, cold on demand, and strangers may ask as often as they can.
const CONFIG: &str = "thermal:
  warm_after: 1s
  cold_after: never
public_limits:
  requests_per_min: 100000000
  client_per_min: 100000000
  alias_per_min: 100000000
";

/// Connections at once, and for how long.
const CROWDS: [(&str, u32); 3] = [("1", 1), ("8", 8), ("32", 32)];
const SECONDS: u32 = 4;
/// Asked of a kilobyte, so that moving bytes is not what is measured.
const SMALL: &str = "/small";
/// What bulk is: so often 32 MiB either way, which is below what a stranger may send. One alone takes
/// a fifth of a second, in which one proxy differs from itself twofold.
const BULK: &str = "/bulk";
const BULKS: u32 = 8;
/// How much of nginx's rate is promised.
const PROMISED: f64 = 0.8;

/// One thing measured both ways, in requests or MiB a second.
struct Rates {
    name: String,
    ours: Vec<f64>,
    nginx: Vec<f64>,
    /// Milliseconds a proxy worked for each request or MiB, if that was measured: nginx, then we.
    work: [Vec<f64>; 2],
}

impl Rates {
    fn new(name: String) -> Self {
        Self { name, ours: Vec::new(), nginx: Vec::new(), work: Default::default() }
    }

    fn push(&mut self, proxy: Proxy, rate: f64) {
        match proxy {
            Proxy::Ours => self.ours.push(rate),
            Proxy::Nginx => self.nginx.push(rate),
        }
    }

    /// What it took to pass on `count` of them.
    fn push_work(&mut self, proxy: Proxy, used: Used, count: f64) {
        self.work[usize::from(proxy == Proxy::Ours)].push(used.work.as_secs_f64() * 1e3 / count);
    }

    /// Ours over nginx's, round by round, the lowest first.
    fn ratios(&self) -> Vec<f64> {
        let mut ratios: Vec<f64> =
            self.ours.iter().zip(&self.nginx).map(|(ours, nginx)| ours / nginx).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    fn ratio(&self) -> f64 {
        median(self.ratios())
    }

    fn row(&self) -> Vec<String> {
        let ratios = self.ratios();
        let end = |ratio: Option<&f64>| ratio.copied().unwrap_or(f64::NAN);
        let [nginx, ours] = self.work.clone().map(median);
        let work = if ours.is_nan() { String::new() } else { format!("{nginx:.3} / {ours:.3}") };
        vec![
            self.name.clone(),
            self.ours.len().to_string(),
            format!("{:.1}", median(self.nginx.clone())),
            format!("{:.1}", median(self.ours.clone())),
            format!("{:.2}x", self.ratio()),
            format!("{:.2} to {:.2}x", end(ratios.first()), end(ratios.last())),
            work,
        ]
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures it all.
pub(crate) fn measure(rounds: usize, parts: &mut Vec<Part>) -> Result<()> {
    let mut daemon = TestDaemon::start_with(CONFIG);
    // They are told with the results.
    daemon.allow_error("");
    daemon.cli(&["create", "--name", "web", "--memory", "512", "--keep-hot"]).ok();
    let served = Served::start(&daemon)?;
    let watch = Watch::new(&daemon, served.nginx_pid())?;
    parts.push(throughput(&served, &watch, rounds)?);
    parts.push(wakes(&daemon, &served, rounds)?);
    drop(served);
    daemon.cli(&["destroy", "web", "--yes"]).ok();
    parts.push(Part::errors(&daemon.log_file(), "errors in the log, published ports")?);
    Ok(())
}

fn throughput(served: &Served, watch: &Watch, rounds: usize) -> Result<Part> {
    let mut requests: Vec<Rates> = Vec::new();
    let mut latency: Vec<(Rates, Rates)> = Vec::new();
    for (name, _) in CROWDS {
        requests.push(Rates::new(format!("requests/s, {name} at once")));
        let tails = ["p50", "p99"].map(|tail| Rates::new(format!("{tail} ms, {name} at once")));
        let [half, tail] = tails;
        latency.push((half, tail));
    }
    let mut down = Rates::new("MiB/s to the client".to_owned());
    let mut up = Rates::new("MiB/s to the program".to_owned());
    let mut quota = Quota::default();
    for round in 0..rounds {
        let order =
            if round % 2 == 0 { [Proxy::Nginx, Proxy::Ours] } else { [Proxy::Ours, Proxy::Nginx] };
        for (at, (_, connections)) in CROWDS.iter().enumerate() {
            for proxy in order {
                let asked = || served.wrk(proxy, SMALL, *connections, SECONDS);
                let (seen, used) = quota.watched(watch, proxy, asked)?;
                requests[at].push(proxy, seen.rate);
                requests[at].push_work(proxy, used, seen.rate * f64::from(SECONDS));
                latency[at].0.push(proxy, seen.p50_ms);
                latency[at].1.push(proxy, seen.p99_ms);
            }
        }
        let moved = f64::from(BULKS * host::BULK_MIB);
        for proxy in order {
            let fetched = || served.download(proxy, BULK, BULKS);
            let (rate, used) = quota.watched(watch, proxy, fetched)?;
            down.push(proxy, rate);
            down.push_work(proxy, used, moved);
        }
        for proxy in order {
            let (rate, used) = quota.watched(watch, proxy, || served.upload(proxy, BULKS))?;
            up.push(proxy, rate);
            up.push_work(proxy, used, moved);
        }
        eprintln!("published: round {} of {rounds}", round + 1);
    }
    let columns = [
        "published port",
        "rounds",
        "nginx p50",
        "bhatti p50",
        "bhatti over nginx",
        "by round",
        "ms of CPU for each, nginx / bhatti",
    ];
    let mut table = Table::new(&columns);
    let tails = latency.iter().flat_map(|(half, tail)| [half, tail]);
    for rates in requests.iter().chain(tails).chain([&down, &up]) {
        table.row(rates.row());
    }
    let least = |name, ratio| Budget::at_least(name, ratio, PROMISED, "x");
    let budgets = vec![
        least("published: requests/s, 1 at once, over nginx's", requests[0].ratio()),
        least("published: requests/s, 8 at once, over nginx's", requests[1].ratio()),
        least("published: requests/s, 32 at once, over nginx's", requests[2].ratio()),
        least("published: MiB/s to the client over nginx's", down.ratio()),
        least("published: MiB/s to the program over nginx's", up.ratio()),
    ];
    Ok(Part { tables: vec![table], notes: vec![quota.words()], budgets })
}

/// How often the guest's CPU quota held it back: it is the guest then that sets the rate.
#[derive(Default)]
struct Quota {
    /// Of nginx, then ours: all periods, and those in which it did.
    counted: [(u64, u64); 2],
}

impl Quota {
    /// Runs `run`, and says what that proxy used for it.
    fn watched<T>(
        &mut self,
        watch: &Watch,
        proxy: Proxy,
        run: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Used)> {
        let before = watch.used(proxy)?;
        let found = run()?;
        let used = watch.used(proxy)?.since(before);
        let (periods, held_back) = &mut self.counted[usize::from(proxy == Proxy::Ours)];
        *periods += used.periods;
        *held_back += used.held_back;
        Ok((found, used))
    }

    fn words(&self) -> String {
        let [nginx, ours] = self.counted;
        format!(
            "The guest was held back by its CPU quota in {} of {} periods behind nginx, and in {} of {} \
             behind bhatti.",
            nginx.1, nginx.0, ours.1, ours.0
        )
    }
}

/// The first answer, hot and after sleep.
fn wakes(daemon: &TestDaemon, served: &Served, rounds: usize) -> Result<Part> {
    let mut series = ["hot", "warm", "cold"].map(Series::new);
    daemon.cli(&["edit", "web", "--allow-cold"]).ok();
    for round in 0..rounds {
        for (kind, series) in series.iter_mut().enumerate() {
            first_answer(served)?;
            match kind {
                0 => {}
                1 => daemon.wait_for_state("web", "warm"),
                _ => drop(daemon.cli(&["stop", "web"]).ok()),
            }
            series.push(first_answer(served)?);
        }
        eprintln!("published wakes: round {} of {rounds}", round + 1);
    }
    let mut table = Table::of_series("first answer of a published port", "over hot, by round");
    table.differences(&series[0], &series)?;
    Ok(Part { tables: vec![table], ..Part::default() })
}

fn first_answer(served: &Served) -> Result<Duration> {
    let Address { host, address } = served.address(Proxy::Ours);
    let started = Instant::now();
    let answer = host::get(address, host, SMALL).context("a published port did not answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(started.elapsed())
}
