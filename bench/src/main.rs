//! What bhatti adds to the bare engine: boot, `create`, `exec`, memory, measured side by side.
//!
//! ```text
//!   one fresh host (namespaces of our own)
//!   ├── bhatti serve ── resident sandbox ◀── API, CLI       the same machine, the same files,
//!   └── QEMU by hand ── link             ◀── this program   round by round in turn
//! ```
//!
//! It prints and judges nothing by its exit code: a slow machine is no failure. Needs root,
//! `target/guest`, and an optimised `bhatti`; `make bench` sees to all three.

mod bare;
mod environment;
mod memory;
mod pace;
mod report;
mod rounds;
mod same;
mod stats;
mod subject;

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bhatti_testkit::on_fresh_host;
use clap::Parser;

use crate::bare::Bench;
use crate::environment::Environment;
use crate::memory::Footprint;
use crate::report::Findings;
use crate::rounds::{Boots, Execs, Starts};
use crate::same::SameMachine;
use crate::subject::{RESIDENT, Subject};

/// Measures what bhatti adds to the bare engine
#[derive(Parser)]
struct Options {
    /// Rounds of boots; execs are measured ten times as often
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Everything as JSON, with every sample
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(nix::unistd::geteuid().is_root(), "this needs root: it boots machines");
    run_among_tests()?;
    let mut findings = None;
    on_fresh_host(|| findings = Some(measure(options.runs.into())));
    let findings = findings.context("nothing was measured")??;
    print!("{}", if options.json { findings.json()? } else { findings.markdown()? });
    Ok(())
}

/// Starts this program again from `target/<profile>/deps`, where test programs lie: from its own
/// place there the test kit finds the guest's files and a scratch directory beside them.
fn run_among_tests() -> Result<()> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("a program lies in a directory")?;
    if dir.ends_with("deps") {
        return Ok(());
    }
    let link = dir.join("deps/bhatti-bench");
    // From an earlier build, or not there.
    std::fs::remove_file(&link).ok();
    std::fs::hard_link(&exe, &link)
        .with_context(|| format!("cannot make {}; run this with cargo", link.display()))?;
    let error = Command::new(link).args(std::env::args_os().skip(1)).exec();
    Err(error).context("cannot start again")
}

fn measure(runs: usize) -> Result<Findings> {
    // One thread, so that the measuring itself wakes nobody up.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut subject = Subject::start().await?;
        let mut environment = Environment::observe(subject.client.health().await?.engine)?;
        let machine = subject.resident_pid()?;
        let serve = memory::child_told_to("serve")?;
        let scratch = subject.daemon.scratch_path().to_owned();
        let bench = Bench::like(machine, &subject.daemon.data_dir(), &scratch).await?;

        let boots = Boots::measure(&subject, &bench, runs).await?;
        let idle = Footprint::of(machine)?;
        let (bare, _) = bench.boot().await?;
        let execs = Execs::measure(&subject, &bare, runs * 10).await?;
        let starts = Starts::measure(&subject, runs * 5)?;
        let memory = vec![
            ("bhatti serve, one sandbox", Footprint::of(serve)?),
            ("VMM of a sandbox, idle since its boot", idle),
            ("the same after the execs", Footprint::of(machine)?),
            ("QEMU by hand after the execs", Footprint::of(bare.pid()?)?),
        ];
        subject::connect(&subject.client).await?;
        let phases = "cat /run/bhatti/boot-timing.txt";
        let boot_phases = subject::exec(&subject.client, RESIDENT, phases).await?;
        drop(bare);
        let same = SameMachine::measure(&mut subject, runs * 10).await?;
        subject.end().await?;
        environment.finish()?;
        Ok(Findings { environment, boots, execs, same, starts, memory, boot_phases })
    })
}
