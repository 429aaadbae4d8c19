//! `cargo xtask ci`: everything that is checked without running the product.
//!
//! All steps run even if one fails, and the last lines name each with its result. A check that
//! could not be made is never shown as one that passed.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{process, tidy, workspace};

enum Outcome {
    Passed,
    Failed,
    /// It could not be run, and why.
    NotChecked(&'static str),
}

type Step = (&'static str, fn() -> Outcome);

const STEPS: [Step; 5] = [
    ("fmt", fmt),
    ("web", web),
    ("clippy", clippy),
    ("tidy", tidy_step),
    ("advisories", advisories),
];

/// Runs the checks and fails if one of them does.
pub(crate) fn run() -> Result<()> {
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        let started = Instant::now();
        eprintln!("ci: {name}");
        let result = match step() {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Failed => {
                failed.push(name);
                "FAILED".to_owned()
            }
            Outcome::NotChecked(why) => format!("NOT CHECKED: {why}"),
        };
        lines.push(format!("ci: {name:<10} {:>4}s  {result}", started.elapsed().as_secs()));
    }
    for line in lines {
        eprintln!("{line}");
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn fmt() -> Outcome {
    outcome(process::run(workspace::cargo().args(["fmt", "--all", "--", "--check"])))
}

/// Types and tests of the page that the daemon embeds.
fn web() -> Outcome {
    let mut command = Command::new(workspace::root().join("scripts/web"));
    outcome(process::run(command.arg("--check")))
}

fn clippy() -> Outcome {
    let mut command = workspace::cargo();
    command.args(["clippy", "--quiet", "--locked", "--workspace", "--all-targets"]);
    outcome(process::run(command.args(["--", "-D", "warnings"])))
}

fn tidy_step() -> Outcome {
    outcome(tidy::run())
}

/// Known security holes in what we depend on. The list lives on the internet, so this is the one
/// check a machine without it cannot make.
fn advisories() -> Outcome {
    if !process::exists("cargo-deny") {
        return Outcome::NotChecked("cargo-deny is not installed (cargo install cargo-deny)");
    }
    if process::run_quiet(workspace::cargo().args(["deny", "fetch", "db"])).is_err() {
        return Outcome::NotChecked("the advisory database cannot be fetched from here");
    }
    outcome(process::run(workspace::cargo().args(["deny", "check"])))
}

fn outcome(result: Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Passed,
        Err(error) => {
            eprintln!("{error:#}");
            Outcome::Failed
        }
    }
}
