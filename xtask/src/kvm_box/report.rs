//! Judges what a box has said. Nothing counts as passed that was not seen to pass.
//!
//! A box that breaks down takes nobody's result along: what had passed is not run again in the next one,
//! and in the end every test must have been accounted for.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use super::machine::Ran;
use super::{Program, Suite};

/// A suite that has not ended yet, and what boxes that broke down have shown of it.
#[derive(Clone, Debug)]
pub(super) struct Left {
    pub(super) suite: &'static Suite,
    /// Tests that are not run again.
    pub(super) passed: BTreeSet<String>,
    /// Those are, because only the end of a suite says why.
    failed: BTreeSet<String>,
    /// How many there are in all.
    tests: Option<u64>,
}

/// How one suite ended, as the box says.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: i32,
    boots: u64,
    seconds: u64,
}

impl Left {
    pub(super) fn new(suite: &'static Suite) -> Self {
        Self { suite, passed: BTreeSet::new(), failed: BTreeSet::new(), tests: None }
    }

    /// Remembers what the box printed of it before it broke down.
    fn remember(&mut self, output: &str) {
        for line in section(output, self.suite.name) {
            let count = line.strip_prefix("running ").and_then(|rest| rest.split_once(" test"));
            if let Some(count) = count.and_then(|(count, _)| count.parse().ok()) {
                self.tests.get_or_insert(count);
            }
            let Some(named) = line.strip_prefix("test ") else { continue };
            if let Some(name) = named.strip_suffix(" ... ok") {
                self.passed.insert(name.to_owned());
            } else if let Some(name) = named.strip_suffix(" ... FAILED") {
                self.failed.insert(name.to_owned());
            }
        }
    }

    fn judge(&self, outcome: &Outcome, output: &str) -> Result<String> {
        let Outcome { code, boots, seconds } = outcome;
        if self.suite.program != Program::Tests {
            ensure!(*code == 0, "not everything could be measured, exit code {code}, {seconds} s");
            ensure!(*boots > 0, "no machine was booted");
            return Ok(format!("measured, {boots} machines booted, {seconds} s in the box"));
        }
        let now = Sums::of(output, self.suite.name);
        let (earlier, lost) = (self.passed.len() as u64, now.failed);
        let passed = earlier + now.passed;
        ensure!(*code == 0, "{passed} passed, {lost} failed, exit code {code}, {seconds} s");
        ensure!(lost == 0, "{passed} passed, {lost} failed");
        ensure!(self.failed.is_empty(), "failed before the box broke down: {:?}", self.failed);
        ensure!(passed > 0, "no test was run");
        let named = self.suite.tests.len() as u64;
        ensure!(named == 0 || passed == named, "{passed} passed of {named} that were asked for");
        let ignored = match now.ignored {
            0 => String::new(),
            ignored => format!(" ({ignored} IGNORED)"),
        };
        let Some(tests) = self.tests else {
            ensure!(*boots > 0, "{passed} passed and no machine was booted");
            return Ok(format!(
                "{passed} passed, {lost} failed{ignored}, {boots} machines booted, {seconds} s in the box"
            ));
        };
        let seen = passed + now.ignored;
        ensure!(seen == tests, "of {tests} tests {seen} were seen to end");
        Ok(format!(
            "{passed} passed, {lost} failed{ignored}, {earlier} of them in boxes that broke down \
             later, {seconds} s in the last box"
        ))
    }
}

/// Says how each suite ended that did, takes it off the list, and returns those that failed. What
/// stays on the list had not ended when the box did.
pub(super) fn judge(left: &mut Vec<Left>, ran: &Ran) -> Result<Vec<&'static Suite>> {
    if let Some(fatal) = ran.results.lines().find_map(|line| line.strip_prefix("fatal: ")) {
        bail!("the box is no host: {fatal}");
    }
    let mut failed = Vec::new();
    left.retain_mut(|left| {
        let Some(outcome) = outcome(&ran.results, left.suite.name) else {
            left.remember(&ran.output);
            return true;
        };
        match left.judge(&outcome, &ran.output) {
            Ok(line) => eprintln!("kvm-box: {:<20} {line}", left.suite.name),
            Err(why) => {
                eprintln!("kvm-box: {:<20} FAILED: {why}", left.suite.name);
                failed.push(left.suite);
            }
        }
        false
    });
    Ok(failed)
}

/// `suite NAME code 0 boots 3 seconds 60`
fn outcome(results: &str, name: &str) -> Option<Outcome> {
    results.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["suite", of, "code", code, "boots", boots, "seconds", seconds] = words[..] else {
            return None;
        };
        let (code, boots) = (code.parse().ok()?, boots.parse().ok()?);
        (of == name).then_some(Outcome { code, boots, seconds: seconds.parse().ok()? })
    })
}

/// The lines between the heading of a suite and the next.
fn section<'a>(output: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let heading = format!("kvm-box: suite {name}");
    let own = output.lines().skip_while(move |line| *line != heading).skip(1);
    own.take_while(|line| !line.starts_with("kvm-box: suite "))
}

/// How many tests ended how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Sums {
    fn of(output: &str, name: &str) -> Self {
        let mut sums = Self::default();
        for line in section(output, name) {
            let Some(rest) = line.strip_prefix("test result: ") else { continue };
            let words: Vec<&str> = rest.split([' ', ';']).collect();
            let before = |what: &str| {
                let at = words.iter().position(|word| *word == what)?;
                words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
            };
            sums.passed += before("passed").unwrap_or(0);
            sums.failed += before("failed").unwrap_or(0);
            sums.ignored += before("ignored").unwrap_or(0);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of tests, or one that measures.
    static TESTS: Suite = suite("one", Program::Tests);
    static OTHERS: Suite = suite("two", Program::Tests);
    static NAMED: Suite = Suite { tests: &["a", "b", "c"], ..suite("one", Program::Tests) };
    static MEASURES: Suite = suite("measures", Program::Bench("bench"));

    const fn suite(name: &'static str, program: Program) -> Suite {
        let (environment, arguments, tests, brings) = (&[], &[], &[], &[]);
        Suite { name, package: "p", program, environment, arguments, tests, brings, minutes: 1 }
    }

    const OUTPUT: &str = "kvm-box: suite one\nrunning 2 tests\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out\n\
        kvm-box: suite two\n\
        test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";

    fn judged(suite: &'static Suite, code: i32, boots: u64, output: &str) -> Result<String> {
        Left::new(suite).judge(&Outcome { code, boots, seconds: 9 }, output)
    }

    #[test]
    fn what_passed_is_told_from_what_did_not() {
        let line = judged(&TESTS, 0, 1, OUTPUT).expect("it passed");
        assert!(line.starts_with("2 passed, 0 failed, 1 machines"), "{line}");
        let line = judged(&TESTS, 0, 1, &OUTPUT.replace("0 ignored", "3 ignored"));
        let line = line.expect("what cannot be run is no failure");
        assert!(line.starts_with("2 passed, 0 failed (3 IGNORED), 1"), "{line}");
        for code in [0, 101] {
            let why = judged(&OTHERS, code, 3, OUTPUT).expect_err("one test failed");
            assert!(why.to_string().contains("5 passed, 1 failed"), "{why}");
        }
    }

    #[test]
    fn silence_is_no_success() {
        judged(&TESTS, 0, 0, OUTPUT).expect_err("no machine was booted");
        judged(&TESTS, 137, 1, OUTPUT).expect_err("it was killed at its end");
        judged(&TESTS, 0, 1, "").expect_err("no test was seen");
        judged(&NAMED, 0, 1, OUTPUT).expect_err("two passed of three");
        judged(&MEASURES, 0, 1, "").expect("it has no tests");
        judged(&MEASURES, 1, 1, "").expect_err("something is missing");
        judged(&MEASURES, 0, 0, "").expect_err("no machine was booted");
    }

    #[test]
    fn a_suite_is_off_the_list_once_it_has_ended() {
        const ENDED: &str = "suite two code 101 boots 1 seconds 9\n";
        let mut left = [&TESTS, &OTHERS].map(Left::new).to_vec();
        let ran = |results: &str| Ran {
            output: OUTPUT.to_owned(),
            results: results.to_owned(),
            end: String::new(),
        };
        let failed = judge(&mut left, &ran(ENDED)).expect("it is a host");
        assert_eq!((failed.len(), left.len()), (1, 1));
        assert_eq!((failed[0].name, left[0].suite.name), ("two", "one"));
        // Broken down in the middle of a line.
        let failed = judge(&mut left, &ran("suite one code 0 boots")).expect("it is a host");
        assert_eq!((failed.len(), left.len()), (0, 1));
        judge(&mut left, &ran("fatal: no KVM\n")).expect_err("it is none");
    }

    #[test]
    fn what_passed_before_a_box_broke_down_counts_and_every_test_is_accounted_for() {
        let broken = "kvm-box: suite one\nrunning 4 tests\ntest a::x ... ok\n\
            noise\ntest b::y ... ok\ntest c::z ... FA";
        let second = |passed: u64, ignored: u64| {
            format!(
                "kvm-box: suite one\nrunning 2 tests\n\
                 test result: ok. {passed} passed; 0 failed; {ignored} ignored; 0 measured\n"
            )
        };
        let mut left = Left::new(&TESTS);
        left.remember(broken);
        assert_eq!(left.passed.iter().collect::<Vec<_>>(), ["a::x", "b::y"]);
        let outcome = Outcome { code: 0, boots: 1, seconds: 9 };
        for (passed, ignored) in [(2, 0), (1, 1)] {
            let line = left.judge(&outcome, &second(passed, ignored)).expect("all four");
            assert!(line.contains("2 of them in boxes that broke down"), "{line}");
        }
        let why = left.judge(&outcome, &second(1, 0)).expect_err("one is missing");
        assert!(why.to_string().contains("of 4 tests 3 were seen"), "{why}");
        left.remember(&broken.replace("FA", "FAILED"));
        let why = left.judge(&outcome, &second(2, 0)).expect_err("a failure stays one");
        assert!(why.to_string().contains("c::z"), "{why}");
    }
}
