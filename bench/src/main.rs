//! What bhatti adds to the bare engine, measured side by side: boot, `create`, `exec` and memory;
//! what a user's work costs; what sleep costs; and what a user's network adds to a create.
//!
//! ```text
//!   one fresh host (namespaces of our own)
//!   ├── bhatti serve ── resident sandbox ◀── API, CLI       the same machine, the same files,
//!   └── VMM by hand ── link              ◀── this program   round by round in turn
//! ```
//!
//! A slow machine is no failure: it says which budgets were met, and its exit code tells only
//! whether everything could be measured. Needs root, `target/guest`, and an optimised `bhatti`;
//! `make bench` sees to all three.

mod bare;
mod boot;
mod environment;
mod log;
mod makes;
mod memory;
mod network;
mod pace;
mod publish;
mod report;
mod rounds;
mod same;
mod sleep;
mod stats;
mod subject;
mod work;

use anyhow::{Context as _, Result, ensure};
use bhatti_testkit::on_fresh_host;
use clap::Parser;

use crate::bare::Bench;
use crate::boot::Booted;
use crate::environment::Environment;
use crate::report::{Part, Report};
use crate::subject::Subject;

/// Measures what bhatti adds to the bare engine
#[derive(Parser)]
// The suites of the box have arguments of their own, before a person's.
#[command(args_override_self = true)]
struct Options {
    /// Rounds of creates; what takes longer is measured less often, what takes less more often
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Only one of the parts
    #[arg(long)]
    only: Option<Only>,
    /// For a host with little room: five sandboxes instead of forty, none at once, no restarts of the
    /// daemon, and work only if asked for
    #[arg(long)]
    short: bool,
    /// Everything as JSON, with every sample
    #[arg(long)]
    json: bool,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// Rounds of creates.
    runs: usize,
    /// On a host with little room.
    short: bool,
}

/// A part of what can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Machines that boot: create, exec, memory
    Boot,
    /// Machines that sleep: create from a golden snapshot, wakes, freezes, memory
    Sleep,
    /// Machines that work: commands at once, files and streams, keys in a terminal
    Work,
    /// What a user's network adds to a create
    Network,
    /// Published ports, beside nginx. Only if asked for: takes nginx and wrk
    Publish,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(nix::unistd::geteuid().is_root(), "this needs root: it boots machines");
    let size = Size { runs: options.runs.into(), short: options.short };
    let mut measured = None;
    on_fresh_host(|| measured = Some(measure(size, options.only)));
    let (report, outcome) = measured.context("nothing was measured")??;
    print!("{}", if options.json { report.json()? } else { report.markdown()? });
    outcome
}

/// What was found, and whether that is everything: minutes of measuring are not thrown away
/// because the rest failed.
fn measure(size: Size, only: Option<Only>) -> Result<(Report, Result<()>)> {
    // One thread, so that the measuring itself wakes nobody up.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut subject = Subject::start().await?;
        let environment = Environment::observe(
            subject.client.health().await?.engine,
            &bare::program(subject.resident_pid()?)?,
        )?;
        let mut report = Report { environment, parts: Vec::new() };
        let outcome = measure_parts(&mut subject, size, only, &mut report.parts).await;
        let outcome = outcome.and(subject.end().await.map(|part| report.parts.push(part)));
        report.environment.finish()?;
        Ok((report, outcome))
    })
}

async fn measure_parts(
    subject: &mut Subject,
    size: Size,
    only: Option<Only>,
    parts: &mut Vec<Part>,
) -> Result<()> {
    let (data, scratch) = (subject.daemon.data_dir(), subject.daemon.scratch_path().to_owned());
    let (pid, dir) = (subject.resident_pid()?, subject.resident_dir()?);
    let bench = Bench::like(pid, &dir, &data, &scratch).await?;
    let wanted = |part| only.is_none_or(|only| only == part);
    if wanted(Only::Boot) {
        parts.push(Booted::measure(subject, &bench, size).await?.part()?);
    }
    if wanted(Only::Work) && !(size.short && only.is_none()) {
        work::measure(subject, size.runs.div_ceil(4), parts).await?;
    }
    if wanted(Only::Network) {
        parts.push(network::measure(size.runs).await?);
    }
    if only == Some(Only::Publish) {
        publish::measure(size.runs.div_ceil(4), parts)?;
    }
    if wanted(Only::Sleep) {
        sleep::measure(&bench, size, parts).await?;
    }
    Ok(())
}
