//! Judges what a box has said. Nothing counts as passed that was not seen to pass.

use anyhow::{Result, bail, ensure};

use super::machine::Ran;
use super::{Program, Suite};

/// How one suite ended, as the box says.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: i32,
    boots: u64,
    seconds: u64,
}

/// Says how each suite ended that did, takes it off the list, and returns those that failed. What
/// stays on the list had not ended when the box did.
pub(super) fn judge(left: &mut Vec<&'static Suite>, ran: &Ran) -> Result<Vec<&'static Suite>> {
    if let Some(fatal) = ran.results.lines().find_map(|line| line.strip_prefix("fatal: ")) {
        bail!("the box is no host: {fatal}");
    }
    let mut failed = Vec::new();
    left.retain(|suite| {
        let Some(outcome) = outcome(&ran.results, suite.name) else { return true };
        match judge_one(suite, &outcome, &ran.output) {
            Ok(line) => eprintln!("kvm-box: {:<20} {line}", suite.name),
            Err(why) => {
                eprintln!("kvm-box: {:<20} FAILED: {why}", suite.name);
                failed.push(*suite);
            }
        }
        false
    });
    Ok(failed)
}

fn judge_one(suite: &Suite, outcome: &Outcome, output: &str) -> Result<String> {
    let Outcome { code, boots, seconds } = outcome;
    if suite.program != Program::Tests {
        ensure!(*code == 0, "not everything could be measured, exit code {code}, {seconds} s");
        ensure!(*boots > 0, "no machine was booted");
        return Ok(format!("measured, {boots} machines booted, {seconds} s in the box"));
    }
    let (passed, lost) = tests(output, suite.name);
    ensure!(*code == 0, "{passed} passed, {lost} failed, exit code {code}, {seconds} s");
    ensure!(lost == 0, "{passed} passed, {lost} failed");
    ensure!(passed > 0, "no test was run");
    ensure!(*boots > 0, "{passed} passed and no machine was booted");
    Ok(format!("{passed} passed, {lost} failed, {boots} machines booted, {seconds} s in the box"))
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

/// How many tests passed and failed between the heading of a suite and the next.
fn tests(output: &str, name: &str) -> (u64, u64) {
    let heading = format!("kvm-box: suite {name}");
    let own = output.lines().skip_while(|line| *line != heading).skip(1);
    let own = own.take_while(|line| !line.starts_with("kvm-box: suite "));
    let mut sums = (0, 0);
    for line in own {
        let Some(rest) = line.strip_prefix("test result: ") else { continue };
        let words: Vec<&str> = rest.split([' ', ';']).collect();
        let before = |what: &str| {
            let at = words.iter().position(|word| *word == what)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        sums.0 += before("passed").unwrap_or(0);
        sums.1 += before("failed").unwrap_or(0);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two of tests, and one that measures.
    fn suite(name: &'static str) -> Suite {
        let program = match name {
            "measures" => Program::Bench("bench"),
            _ => Program::Tests,
        };
        let (environment, arguments, brings) = (&[], &[], &[]);
        Suite { name, package: "p", program, environment, arguments, brings, minutes: 1 }
    }

    const OUTPUT: &str = "kvm-box: suite one\nrunning 2 tests\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out\n\
        kvm-box: suite two\n\
        test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";

    fn ended(code: i32, boots: u64) -> Outcome {
        Outcome { code, boots, seconds: 9 }
    }

    #[test]
    fn what_passed_is_told_from_what_did_not() {
        let line = judge_one(&suite("one"), &ended(0, 1), OUTPUT).expect("it passed");
        assert!(line.starts_with("2 passed, 0 failed, 1 machines"), "{line}");
        for code in [0, 101] {
            let why =
                judge_one(&suite("two"), &ended(code, 3), OUTPUT).expect_err("one test failed");
            assert!(why.to_string().contains("5 passed, 1 failed"), "{why}");
        }
    }

    #[test]
    fn silence_is_no_success() {
        judge_one(&suite("one"), &ended(0, 0), OUTPUT).expect_err("no machine was booted");
        judge_one(&suite("one"), &ended(137, 1), OUTPUT).expect_err("it was killed at its end");
        judge_one(&suite("one"), &ended(0, 1), "").expect_err("no test was seen");
        judge_one(&suite("measures"), &ended(0, 1), "").expect("it has no tests");
        judge_one(&suite("measures"), &ended(1, 1), "").expect_err("something is missing");
        judge_one(&suite("measures"), &ended(0, 0), "").expect_err("no machine was booted");
    }

    #[test]
    fn a_suite_is_off_the_list_once_it_has_ended() {
        const ENDED: &str = "suite qemu-conformance code 101 boots 1 seconds 9\n";
        let all: Vec<&'static Suite> = super::super::WHOLE.iter().collect();
        let mut left = all.clone();
        let ran = |results: &str| Ran { output: OUTPUT.to_owned(), results: results.to_owned() };
        let failed = judge(&mut left, &ran(ENDED)).expect("it is a host");
        assert_eq!((failed.len(), left.len()), (1, all.len() - 1));
        assert_eq!(failed[0].name, "qemu-conformance");
        // Broken down in the middle of a line.
        let failed = judge(&mut left, &ran(&ENDED[..30])).expect("it is a host");
        assert_eq!((failed.len(), left.len()), (0, all.len() - 1));
        judge(&mut left, &ran("fatal: no KVM\n")).expect_err("it is none");
    }
}
