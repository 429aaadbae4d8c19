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

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bhatti_testkit::TestDaemon;

use crate::report::{Budget, Part, Table};
use crate::stats::Series;
use host::{Address, Proxy, Served};

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
/// What bulk is: 32 MiB either way, below what a stranger may send.
const BULK: &str = "/bulk";
/// How much of nginx's rate is promised.
const PROMISED: f64 = 0.8;

/// One thing measured both ways, in requests or MiB a second.
struct Rates {
    name: String,
    ours: Vec<f64>,
    nginx: Vec<f64>,
}

impl Rates {
    fn new(name: String) -> Self {
        Self { name, ours: Vec::new(), nginx: Vec::new() }
    }

    fn push(&mut self, proxy: Proxy, rate: f64) {
        match proxy {
            Proxy::Ours => self.ours.push(rate),
            Proxy::Nginx => self.nginx.push(rate),
        }
    }

    /// The median of ours over nginx's, round by round.
    fn ratio(&self) -> f64 {
        median(self.ours.iter().zip(&self.nginx).map(|(ours, nginx)| ours / nginx).collect())
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.ours.len().to_string(),
            format!("{:.1}", median(self.nginx.clone())),
            format!("{:.1}", median(self.ours.clone())),
            format!("{:.2}x", self.ratio()),
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
    parts.push(throughput(&served, rounds)?);
    parts.push(wakes(&daemon, &served, rounds)?);
    drop(served);
    daemon.cli(&["destroy", "web", "--yes"]).ok();
    parts.push(Part::errors(&daemon.log_file(), "errors in the log, published ports")?);
    Ok(())
}

fn throughput(served: &Served, rounds: usize) -> Result<Part> {
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
    for round in 0..rounds {
        let order =
            if round % 2 == 0 { [Proxy::Nginx, Proxy::Ours] } else { [Proxy::Ours, Proxy::Nginx] };
        for (at, (_, connections)) in CROWDS.iter().enumerate() {
            for proxy in order {
                let seen = served.wrk(proxy, SMALL, *connections, SECONDS)?;
                requests[at].push(proxy, seen.rate);
                latency[at].0.push(proxy, seen.p50_ms);
                latency[at].1.push(proxy, seen.p99_ms);
            }
        }
        for proxy in order {
            down.push(proxy, served.download(proxy, BULK)?);
            up.push(proxy, served.upload(proxy)?);
        }
        eprintln!("published: round {} of {rounds}", round + 1);
    }
    let columns = ["published port", "rounds", "nginx p50", "bhatti p50", "bhatti over nginx"];
    let mut table = Table::new(&columns);
    let tails = latency.iter().flat_map(|(half, tail)| [half, tail]);
    for rates in requests.iter().chain(tails).chain([&down, &up]) {
        table.row(rates.row());
    }
    let least = |name, ratio| Budget::at_least(name, ratio, PROMISED, "x");
    let budgets = vec![
        least("published: requests/s, 32 at once, over nginx's", requests[2].ratio()),
        least("published: MiB/s to the client over nginx's", down.ratio()),
        least("published: MiB/s to the program over nginx's", up.ratio()),
    ];
    Ok(Part { tables: vec![table], budgets, ..Part::default() })
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
