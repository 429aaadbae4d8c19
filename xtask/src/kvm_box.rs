//! `cargo xtask kvm-box`: runs test suites on a machine that has KVM, where there is none.
//!
//! ```text
//!  this host ── QEMU, software emulation ──▶ the box: Debian, /dev/kvm, cgroup v2
//!                                              ├─ the release build, test binaries   (a disk)
//!                                              └─ VMMs with hardware virtualisation ──▶ guests
//! ```
//!
//! The emulated CPU has SVM with nested paging, so in the box the kernel's own KVM runs stock guest
//! kernels, about ten times slower than a real machine would. Only correctness is to be seen
//! there, never speed.
//!
//! What takes long is cached in `target/kvm-box`: the box's root file system by the hash of its
//! recipe. The disk with what is to be tested is made anew for each run. A box that does not
//! boot, a suite that boots no machine and one in which no test passed are failures.

mod machine;
mod payload;
mod report;
mod root;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{guest, workspace};

/// A test binary and how it is run in there.
#[derive(Debug)]
pub(crate) struct Suite {
    name: &'static str,
    /// The package whose test target `all` it is.
    package: &'static str,
    /// What this suite adds to the box's environment.
    environment: &'static [&'static str],
    /// Passed to the test binary.
    arguments: &'static [&'static str],
    /// Longer than it takes on two busy cores.
    minutes: u64,
}

/// Tests that look into the source tree, which is not in the box.
const SKIPPED: [&str; 2] = ["--skip", "every_file_is_listed"];

const SUITES: [Suite; 2] = [
    Suite {
        name: "qemu-conformance",
        package: "bhatti-engine-qemu",
        environment: &[],
        arguments: &[],
        minutes: 60,
    },
    Suite { name: "e2e", package: "bhatti-e2e", environment: &[], arguments: &[], minutes: 120 },
];

/// What the caller of `cargo xtask kvm-box` asked for.
#[derive(Debug)]
pub(crate) struct Options {
    suites: Vec<&'static Suite>,
    /// For the test binaries: a part of a test's name, or an option such as `--nocapture`.
    filter: Vec<String>,
    shell: bool,
}

impl Options {
    /// Reads the words behind `cargo xtask kvm-box`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { suites: Vec::new(), filter: Vec::new(), shell: false };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            match word {
                "--suite" => {
                    let name = words.next().context("--suite takes a name")?;
                    options.suites.push(suite(name)?);
                }
                "--shell" => options.shell = true,
                "--" => options.filter.extend(words.by_ref().map(str::to_owned)),
                other => bail!("unknown option {other}; there are --suite, --shell and -- FILTER"),
            }
        }
        if options.suites.is_empty() {
            options.suites.extend(&SUITES);
        }
        ensure!(!options.filter.iter().any(|word| word.contains('\n')), "a filter is one line");
        Ok(options)
    }
}

fn suite(name: &str) -> Result<&'static Suite> {
    let known = || SUITES.map(|suite| suite.name).join(", ");
    let found = SUITES.iter().find(|suite| suite.name == name);
    found.with_context(|| format!("there is no suite {name}; there are {}", known()))
}

/// How often a box is booted for the same suite. QEMU 7.2's emulation of SVM now and then loses an
/// interrupt or corrupts a stack of the box's own kernel, the more so on a busy host; the kernel
/// notices and stops. Then what had not ended begins again, and that is said. A test that fails is
/// a failure at once.
const ATTEMPTS: u32 = 3;

/// Builds what is missing, boots the box, and fails unless every suite passed in it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let guest = guest::build(&guest::Options::ALL)?;
    let dir = workspace::target_dir()?.join("kvm-box");
    let results = dir.join("results");
    std::fs::create_dir_all(&results)
        .with_context(|| format!("failed to create {}", results.display()))?;
    let lock = guest::lock(&dir)?;
    guest::stamp::sweep(&dir)?;
    let root = root::build(&dir)?;
    if options.shell {
        let run = Run { scratch: guest::stamp::scratch(&dir)?, guest, root };
        payload::build(&run, &options.suites, options)?;
        return machine::shell(&run);
    }

    let mut left = options.suites.clone();
    let mut failed = Vec::new();
    for attempt in 1..=ATTEMPTS {
        let (guest, root) = (guest.clone(), root.clone());
        let run = Run { scratch: guest::stamp::scratch(&dir)?, guest, root };
        payload::build(&run, &left, options)?;
        let minutes = left.iter().map(|suite| suite.minutes).sum::<u64>() + 5;
        let ran = machine::run(&run, &results, Duration::from_secs(60 * minutes))?;
        failed.extend(report::judge(&mut left, &ran)?);
        if left.is_empty() {
            break;
        }
        eprintln!(
            "kvm-box: THE BOX BROKE DOWN ({attempt} of {ATTEMPTS}), as its emulation now and then \
             does; its console is in {}",
            results.join(machine::CONSOLE_LOG).display()
        );
    }
    drop(lock);
    ensure!(left.is_empty(), "the box did not get to the end of {}", names(&left));
    ensure!(failed.is_empty(), "failed in the box: {}", names(&failed));
    Ok(())
}

fn names(suites: &[&Suite]) -> String {
    suites.iter().map(|suite| suite.name).collect::<Vec<_>>().join(", ")
}

/// Where the parts of one run are.
struct Run {
    /// Of this run alone, gone with it.
    scratch: tempfile::TempDir,
    guest: PathBuf,
    root: PathBuf,
}
