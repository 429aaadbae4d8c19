//! Random sleep, wake, snapshots and crashes, on sandboxes whose state is known.
//!
//! ```text
//!   seed ─▶ plan ─▶ several operations at once ─▶ the real command ─▶ the real daemon ─▶ machines
//!            │        │  kill -9 of the daemon or of a VMM meanwhile                       │
//!            │        ▼                                                                    ▼
//!            └─▶ life: what each sandbox has to hold now  ◀── compared ──  files, memory, clock,
//!                                                                          counter, a connection
//! ```
//!
//! Promises:
//! - The operations are those of the seed; when they meet is not, as time is real.
//! - What was acknowledged has to be there. After `kill -9` of a machine that is what was synced,
//!   and the sandbox has to say that its memory is lost.
//! - It ends with how much was done and how much was lost, and with a failure unless that is 0.
//!   Everything needed to look into a loss stays, and where is said.

mod cycle;
mod dice;
mod guest;
mod life;
mod look;
mod plan;
mod stage;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bhatti_testkit::on_fresh_host;
use clap::Parser;

use crate::stage::{MOST_PROBLEMS, SNAPSHOTS, Stage};

/// Sleep, wake, snapshots and crashes at random, and what they lose
#[derive(Parser)]
struct Options {
    /// For how long new cycles begin
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// How many sandboxes there are at once
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=40))]
    sandboxes: u16,
    /// Repeats the operations of an earlier run; without it, others every time
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this needs root: it boots machines");
        return ExitCode::FAILURE;
    }
    let seed = options.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    });
    let mut problems = 0;
    let soaked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        on_fresh_host(|| problems = soak(seed, &options));
    }));
    if soaked.is_err() {
        eprintln!("the soak itself broke off, with seed {seed}; its directory stays in target/e2e");
    }
    if soaked.is_ok() && problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs cycles until the time is over; how many problems there were.
fn soak(seed: u64, options: &Options) -> u64 {
    let places = usize::from(options.sandboxes);
    println!("soak: seed {seed}, {} s, {places} sandboxes", options.seconds);
    let mut stage = Stage::new(seed, places);
    println!("everything is in {}", stage.daemon.scratch_path());
    let limit = Duration::from_secs(options.seconds);
    while stage.started.elapsed() < limit && stage.tally.problems() < MOST_PROBLEMS {
        stage.cycle(&plan::plan(seed, stage.tally.cycles, places, SNAPSHOTS));
    }
    stage.look_into(&(0..places).collect::<Vec<_>>());
    stage.finish();
    println!("{}", stage.tally);
    let errors = stage.daemon.unannounced_errors();
    for error in &errors {
        eprintln!("UNANNOUNCED ERROR: {error}");
    }
    let problems = stage.tally.problems() + errors.len() as u64;
    stage.daemon.keep_scratch(problems > 0);
    problems
}
