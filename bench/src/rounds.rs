//! The rounds: in each, every contender runs once, and another one comes first.
//!
//! So a burst of other load meets all of them alike, and what is compared was measured within
//! seconds. What a run leaves behind is removed after its clock has stopped.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::bare::{Bare, Bench, Times};
use crate::makes::{ByHand, Makes};
use crate::pace::Pace;
use crate::stats::{Series, order};
use crate::subject::{self, RESIDENT, Subject};

/// From nothing to a machine that answers.
pub(crate) struct Boots {
    pub(crate) makes: Makes,
    /// Of the machine by hand: its VMM until it runs. Empty where the VMM does not say.
    pub(crate) bare_runs: Series,
    /// A user without any sandbox: their network is made too.
    pub(crate) newcomer: Series,
}

impl Boots {
    fn new() -> Self {
        Self {
            makes: Makes::new([
                "bare engine: its disk and first reply",
                "bare engine: first reply",
                "bare engine: configured",
                "bare engine: first `true` done",
            ]),
            bare_runs: Series::new("bare engine: VMM until its machine runs"),
            newcomer: Series::new("create, API, user's first sandbox"),
        }
    }

    pub(crate) async fn measure(subject: &Subject, bench: &Bench, runs: usize) -> Result<Self> {
        let mut boots = Self::new();
        let mut pace = Pace::of_creates(Instant::now());
        let mut newcomers = Pace::of_creates(Instant::now());
        // Memory is in other pieces for a host's first machines, and they boot faster than all that
        // follow: by two fifths in the box.
        let mut first = Self::new();
        tokio::time::sleep(pace.take(1, Instant::now())).await;
        first.bare(bench).await?;
        first.through_api(subject).await?;
        for round in 0..runs {
            let now = Instant::now();
            tokio::time::sleep(pace.take(2, now).max(newcomers.take(1, now))).await;
            for contender in order(round, 4) {
                match contender {
                    0 => boots.bare(bench).await?,
                    1 => boots.through_api(subject).await?,
                    2 => boots.through_cli(subject).await?,
                    _ => boots.of_newcomer(subject).await?,
                }
            }
            eprintln!("boots: round {} of {runs}", round + 1);
        }
        Ok(boots)
    }

    async fn bare(&mut self, bench: &Bench) -> Result<()> {
        let (bare, times) = bench.boot().await?;
        let after = Instant::now();
        bare.exec_true().await?;
        let Times { disk, runs, first_reply, configured } = times;
        runs.into_iter().for_each(|runs| self.bare_runs.push(runs));
        let first_exec = configured + after.elapsed();
        self.makes.by_hand(&ByHand { disk, first_reply, configured, first_exec });
        Ok(())
    }

    async fn through_api(&mut self, subject: &Subject) -> Result<()> {
        const NAME: &str = "by-api";
        subject::connect(&subject.client).await?;
        let started = Instant::now();
        subject::create(&subject.client, NAME).await?;
        let created = started.elapsed();
        subject::exec_true(&subject.client, NAME).await?;
        self.makes.through_api(created, started.elapsed());
        subject::destroy(&subject.client, NAME).await
    }

    async fn through_cli(&mut self, subject: &Subject) -> Result<()> {
        const NAME: &str = "by-cli";
        let mut command = subject.create_command(NAME);
        let started = Instant::now();
        subject::run(&mut command)?;
        self.makes.cli.push(started.elapsed());
        subject::destroy(&subject.client, NAME).await
    }

    async fn of_newcomer(&mut self, subject: &Subject) -> Result<()> {
        const NAME: &str = "first";
        subject::connect(&subject.newcomer).await?;
        let started = Instant::now();
        subject::create(&subject.newcomer, NAME).await?;
        self.newcomer.push(started.elapsed());
        subject::destroy(&subject.newcomer, NAME).await
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Series> {
        let bare_runs = (self.bare_runs.len() > 0).then_some(&self.bare_runs);
        self.makes.all().chain(bare_runs).chain([&self.newcomer])
    }
}

/// `true` in a machine that is up.
pub(crate) struct Execs {
    /// What the others are measured against.
    pub(crate) bare: Series,
    pub(crate) api: Series,
    pub(crate) cli: Series,
    /// A greeting over the bare link: the way there and back, with no process.
    pub(crate) greeting: Series,
    /// An answer of the daemon's that asks neither the store nor a guest: what HTTP takes by itself.
    pub(crate) health: Series,
}

impl Execs {
    pub(crate) async fn measure(subject: &Subject, bare: &Bare, runs: usize) -> Result<Self> {
        let mut execs = Self {
            bare: Series::new("exec true, bare link"),
            api: Series::new("exec true, API, connection kept"),
            cli: Series::new("exec true, CLI"),
            greeting: Series::new("greeting, bare link"),
            health: Series::new("`GET /health`, API, connection kept"),
        };
        let mut pace = Pace::of_execs(Instant::now());
        tokio::time::sleep(pace.take(WARM_UP, Instant::now())).await;
        subject::connect(&subject.client).await?;
        // The first ones translate code and fill caches, on both machines.
        for _ in 0..WARM_UP {
            bare.exec_true().await?;
            subject::exec_true(&subject.client, RESIDENT).await?;
        }
        for round in 0..runs {
            tokio::time::sleep(pace.take(2, Instant::now())).await;
            for contender in order(round, 5) {
                let mut command = subject.command(&["exec", RESIDENT, "--", "true"]);
                let started = Instant::now();
                let series = match contender {
                    0 => {
                        bare.exec_true().await?;
                        &mut execs.bare
                    }
                    1 => {
                        subject::exec_true(&subject.client, RESIDENT).await?;
                        &mut execs.api
                    }
                    2 => {
                        subject::run(&mut command)?;
                        &mut execs.cli
                    }
                    3 => {
                        bare.guest.hello(env!("CARGO_PKG_VERSION")).await?;
                        &mut execs.greeting
                    }
                    _ => {
                        subject.client.health().await?;
                        &mut execs.health
                    }
                };
                series.push(started.elapsed());
            }
        }
        eprintln!("execs: {runs} rounds");
        Ok(execs)
    }

    pub(crate) fn all(&self) -> [&Series; 5] {
        [&self.bare, &self.api, &self.cli, &self.greeting, &self.health]
    }
}

const WARM_UP: u32 = 10;

/// Starting a process on the host.
pub(crate) struct Starts {
    pub(crate) true_: Series,
    pub(crate) version: Series,
}

impl Starts {
    pub(crate) fn measure(subject: &Subject, runs: usize) -> Result<Self> {
        let mut starts = Self {
            true_: Series::new("host: /bin/true"),
            version: Series::new("host: bhatti version"),
        };
        for round in 0..runs {
            for contender in order(round, 2) {
                let (mut command, series) = match contender {
                    0 => (Command::new("/bin/true"), &mut starts.true_),
                    _ => (subject.command(&["version"]), &mut starts.version),
                };
                let started = Instant::now();
                subject::run(&mut command)?;
                series.push(started.elapsed());
            }
        }
        Ok(starts)
    }

    pub(crate) fn all(&self) -> [&Series; 2] {
        [&self.true_, &self.version]
    }
}
