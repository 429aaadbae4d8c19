//! `cargo xtask kvm-box`: runs test suites on a machine that has KVM, where there is none.
//!
//! ```text
//!  this host ── QEMU, software emulation ──▶ the box: Debian, /dev/kvm, cgroup v2
//!                                              ├─ the program, test binaries         (a disk)
//!                                              └─ VMMs with hardware virtualisation ──▶ guests
//! ```
//!
//! The emulated CPU has SVM with nested paging, so in the box the kernel's own KVM runs stock guest
//! kernels, about ten times slower than a real machine would; its clock goes slower too. Only
//! correctness is to be seen there, and what is slower than what, never speed.
//!
//! What takes long is cached in `target/kvm-box`: the box's root file system by the hash of its
//! recipe. The disk with what is to be tested is made anew for each run. A box that does not
//! boot, a suite that boots no machine and one in which no test passed are failures.

mod emulator;
mod machine;
mod payload;
mod report;
mod root;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{guest, workspace};
use emulator::Emulator;
use report::Left;

/// A program and how it is run in there.
#[derive(Debug)]
pub(crate) struct Suite {
    name: &'static str,
    package: &'static str,
    program: Program,
    /// What this suite adds to the box's environment.
    environment: &'static [&'static str],
    /// Passed to the program.
    arguments: &'static [&'static str],
    /// The tests that are run, each by its full name, and every one must pass; all if there are none.
    tests: &'static [&'static str],
    /// Files of this host it needs in there, each named by a variable of the environment, which names
    /// its place in there. The first is what the suite cannot do without.
    brings: &'static [&'static str],
    /// Longer than it takes on two busy cores, boxes that break down included.
    minutes: u64,
}

/// What of a package is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// Its test target `all`.
    Tests,
    /// Its binary of that name, which measures, and passes if it could.
    Bench(&'static str),
}

impl Suite {
    /// What it lacks where only these variables are set, if it does.
    fn lacks(&self, is_set: &dyn Fn(&str) -> bool) -> Option<&'static str> {
        self.brings.first().copied().filter(|needed| !is_set(needed))
    }
}

/// Tests of what is not in the box, and the same without KVM: one looks into the source tree, two have
/// certificates from an authority that runs beside them, one an ssh server, the others let a browser of
/// half a gigabyte look at a page.
const SKIPPED: [&str; 12] = [
    "--skip",
    "every_file_is_listed",
    "--skip",
    "web_shell::",
    "--skip",
    "publish::a_protected_port",
    "--skip",
    "domain::certificates_are",
    "--skip",
    "domain_clients::",
    "--skip",
    "ssh::",
];

/// These wait for something most of the time, and a second in there is long.
const END_TO_END_THREADS: &str = "RUST_TEST_THREADS=4";

/// What runs if nothing else is asked for.
const WHOLE: [Suite; 2] = [
    Suite {
        name: "qemu-conformance",
        package: "bhatti-engine-qemu",
        program: Program::Tests,
        environment: &[],
        arguments: &[],
        tests: &[],
        brings: &[],
        minutes: 120,
    },
    Suite {
        name: "e2e",
        package: "bhatti-e2e",
        program: Program::Tests,
        environment: &[END_TO_END_THREADS],
        // Also what takes something of the whole host. What needs Firecracker is the other suite's.
        arguments: &["--include-ignored", "--skip", "limits::", "--skip", "engines::disks_move"],
        tests: &[],
        brings: &[],
        minutes: 240,
    },
];

/// What runs as well where there is a Firecracker, which comes with no distribution. A build without
/// a system call filter of its own needs a compiled one beside it.
const FIRECRACKER: [Suite; 2] = [
    Suite {
        name: "firecracker-conformance",
        package: "bhatti-engine-firecracker",
        program: Program::Tests,
        environment: &[],
        arguments: &["--include-ignored"],
        tests: &[],
        brings: &["BHATTI_FIRECRACKER_BIN", "BHATTI_FIRECRACKER_SECCOMP"],
        minutes: 120,
    },
    Suite {
        name: "firecracker-e2e",
        package: "bhatti-e2e",
        program: Program::Tests,
        environment: &["BHATTI_TEST_ENGINE=firecracker", END_TO_END_THREADS],
        // What needs both engines, or this one.
        arguments: &["--include-ignored"],
        tests: &[],
        brings: &["BHATTI_FIRECRACKER_BIN", "BHATTI_FIRECRACKER_SECCOMP"],
        minutes: 240,
    },
];

/// What the daemon adds to each VMM, both in one run. Only their ratios mean something.
const BENCH: [Suite; 2] = [
    Suite {
        name: "qemu-bench",
        package: "bhatti-bench",
        program: Program::Bench("bhatti-bench"),
        environment: &["BHATTI_TEST_ENGINE=qemu"],
        arguments: &MEASURED,
        tests: &[],
        brings: &[],
        minutes: 60,
    },
    Suite {
        name: "firecracker-bench",
        package: "bhatti-bench",
        program: Program::Bench("bhatti-bench"),
        environment: &["BHATTI_TEST_ENGINE=firecracker"],
        arguments: &MEASURED,
        tests: &[],
        brings: &["BHATTI_FIRECRACKER_BIN", "BHATTI_FIRECRACKER_SECCOMP"],
        minutes: 60,
    },
];

/// As much as there is room and time for.
const MEASURED: [&str; 3] = ["--short", "--runs", "6"];

/// Small enough for `make test`: boot, exec, confinement, sleep and wake, snapshots and clones, and a
/// daemon that is killed.
const SMOKE: [Suite; 2] = [
    Suite {
        name: "qemu-smoke",
        package: "bhatti-engine-qemu",
        program: Program::Tests,
        environment: &[],
        arguments: &[],
        tests: &[
            "conformance::boots_and_answers",
            "conformance::a_snapshot_brings_memory_back",
            "conformance::clones_share_a_past_and_no_present",
            "conformance::a_paused_machine_is_adopted_as_it_is",
            "confinement::the_vmm_is_nobody_and_sees_nothing",
            "confinement::the_vmm_holds_no_file_it_was_not_given",
            "confinement::the_vmm_sees_its_own_files_only",
        ],
        brings: &[],
        minutes: 20,
    },
    Suite {
        name: "e2e-smoke",
        package: "bhatti-e2e",
        program: Program::Tests,
        environment: &[END_TO_END_THREADS],
        arguments: &[],
        tests: &[
            "golden::a_second_create_boots_no_vm",
            "recovery::a_killed_daemon_finds_its_vms_again",
            "session::a_newcomers_session_boots_a_vm",
            "sleep::a_stopped_vm_continues_where_it_was",
            "snapshots::a_running_vm_is_copied_as_it_is_and_goes_on",
        ],
        brings: &[],
        minutes: 20,
    },
];

/// What the caller of `cargo xtask kvm-box` asked for.
#[derive(Debug)]
pub(crate) struct Options {
    suites: Vec<&'static Suite>,
    /// For the test binaries: a part of a test's name, or an option such as `--nocapture`.
    filter: Vec<String>,
    build: Build,
    shell: bool,
}

/// What is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    /// The release, built here if it is not there yet.
    Release,
    /// What `cargo test --workspace` has built.
    Tests,
}

impl Options {
    /// Reads the words behind `cargo xtask kvm-box`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        Self::parse_where(words, &|variable| std::env::var_os(variable).is_some())
    }

    fn parse_where(words: &[&str], is_set: &dyn Fn(&str) -> bool) -> Result<Self> {
        let mut options =
            Self { suites: Vec::new(), filter: Vec::new(), build: Build::Release, shell: false };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            match word {
                "--suite" => {
                    let name = words.next().context("--suite takes a name")?;
                    match name {
                        "smoke" => options.suites.extend(&SMOKE),
                        "bench" => options.suites.extend(&BENCH),
                        name => options.suites.push(suite(name)?),
                    }
                }
                "--built" => options.build = Build::Tests,
                "--shell" => options.shell = true,
                "--" => options.filter.extend(words.by_ref().map(str::to_owned)),
                other => bail!(
                    "unknown option {other}; there are --suite, --built, --shell and -- FILTER"
                ),
            }
        }
        if options.suites.is_empty() {
            options.suites.extend(&WHOLE);
            options.suites.extend(&FIRECRACKER);
            options.suites.retain(|suite| {
                let lacks = suite.lacks(is_set);
                if let Some(variable) = lacks {
                    let name = suite.name;
                    eprintln!("kvm-box: SKIPPED, NOT PASSED: {name}, for {variable} is not set");
                }
                lacks.is_none()
            });
        }
        for suite in &options.suites {
            let lacks = suite.lacks(is_set);
            ensure!(lacks.is_none(), "{} needs {}", suite.name, lacks.unwrap_or_default());
        }
        ensure!(!options.filter.iter().any(|word| word.contains('\n')), "a filter is one line");
        Ok(options)
    }
}

fn suite(name: &str) -> Result<&'static Suite> {
    let all = || WHOLE.iter().chain(&FIRECRACKER).chain(&BENCH).chain(&SMOKE);
    let found = all().find(|suite| suite.name == name);
    found.with_context(|| {
        let known = names(&all().collect::<Vec<_>>());
        format!(
            "there is no suite {name}; there are {known}, and smoke and bench for both of a kind"
        )
    })
}

/// How many boxes may break down. An emulated CPU that runs machines is a rare thing, and now and then a
/// kernel in there is damaged (`emulator.rs` says more): what had not passed runs in another box then,
/// and that is said. A test that fails is a failure at once.
const ATTEMPTS: u32 = 5;

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
    let emulator = emulator::find(&dir)?;
    let mut left: Vec<_> = options.suites.iter().copied().map(Left::new).collect();
    if options.shell {
        let run = Run { scratch: guest::stamp::scratch(&dir)?, guest, root, emulator };
        payload::build(&run, &left, options)?;
        return machine::shell(&run);
    }

    let minutes = left.iter().map(|left| left.suite.minutes).sum::<u64>() + 5;
    let deadline = Instant::now() + Duration::from_secs(60 * minutes);
    let mut failed = Vec::new();
    for attempt in 1..=ATTEMPTS {
        let (guest, root, emulator) = (guest.clone(), root.clone(), emulator.clone());
        let run = Run { scratch: guest::stamp::scratch(&dir)?, guest, root, emulator };
        payload::build(&run, &left, options)?;
        let ran = machine::run(&run, &results, deadline)?;
        failed.extend(report::judge(&mut left, &ran)?);
        if left.is_empty() {
            break;
        }
        eprintln!(
            "kvm-box: THE BOX BROKE DOWN ({attempt} of {ATTEMPTS}): {}; its console is in {}",
            ran.end,
            results.join(machine::CONSOLE_LOG).display()
        );
    }
    drop(lock);
    let left: Vec<_> = left.iter().map(|left| left.suite).collect();
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
    emulator: Emulator,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_chosen_by_name_and_the_rest_is_the_filter() {
        let chosen = |words: &[&str], is_set: &dyn Fn(&str) -> bool| {
            Options::parse_where(words, is_set).map(|options| names(&options.suites))
        };
        let (nothing, all) = (|_: &str| false, |_: &str| true);
        assert_eq!(chosen(&[], &nothing).expect("two"), "qemu-conformance, e2e");
        let four = "qemu-conformance, e2e, firecracker-conformance, firecracker-e2e";
        assert_eq!(chosen(&[], &all).expect("all"), four);
        assert_eq!(chosen(&["--suite", "smoke"], &nothing).expect("both"), "qemu-smoke, e2e-smoke");
        assert_eq!(chosen(&["--suite", "qemu-bench"], &nothing).expect("one"), "qemu-bench");
        let needs_one = ["--suite", "firecracker-e2e"];
        assert_eq!(chosen(&needs_one, &all).expect("one"), "firecracker-e2e");
        chosen(&needs_one, &nothing).expect_err("there is no Firecracker");
        let options = Options::parse(&["--suite", "e2e", "--", "sleep::", "--suite"]).expect("one");
        assert_eq!((names(&options.suites).as_str(), options.filter.len()), ("e2e", 2));
        for bad in [&["--suite"][..], &["--suite", "e3e"], &["e2e"]] {
            chosen(bad, &all).expect_err("a typo is no choice");
        }
    }
}
