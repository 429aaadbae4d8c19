//! Judges what a box has said. Nothing counts as passed that was not seen to pass.

use anyhow::{Result, bail, ensure};

use super::Suite;
use super::machine::Ran;

/// How one suite ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: i32,
    boots: u64,
    seconds: u64,
}

/// Says how each suite ended; fails unless all passed.
pub(super) fn judge(suites: &[&Suite], ran: &Ran) -> Result<()> {
    if let Some(fatal) = ran.results.lines().find_map(|line| line.strip_prefix("fatal: ")) {
        bail!("the box is no host: {fatal}");
    }
    let mut failed = Vec::new();
    for suite in suites {
        match judge_one(suite.name, ran) {
            Ok(line) => eprintln!("kvm-box: {:<20} {line}", suite.name),
            Err(why) => {
                eprintln!("kvm-box: {:<20} FAILED: {why}", suite.name);
                failed.push(suite.name);
            }
        }
    }
    ensure!(failed.is_empty(), "failed in the box: {}", failed.join(", "));
    ensure!(ran.results.lines().any(|line| line == "done"), "the box did not get to its end");
    Ok(())
}

fn judge_one(name: &str, ran: &Ran) -> Result<String> {
    let Some(Outcome { code, boots, seconds }) = outcome(&ran.results, name) else {
        bail!("the box says nothing of it");
    };
    let (passed, lost) = tests(&ran.output, name);
    ensure!(code == 0, "{passed} passed, {lost} failed, exit code {code}, {seconds} s");
    ensure!(lost == 0, "{passed} passed, {lost} failed");
    ensure!(passed > 0, "no test was run");
    ensure!(boots > 0, "{passed} passed and no machine was booted");
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

    const OUTPUT: &str = "kvm-box: suite one\nrunning 2 tests\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out\n\
        kvm-box: suite two\n\
        test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";

    fn ran(results: &str) -> Ran {
        Ran { output: OUTPUT.to_owned(), results: results.to_owned() }
    }

    #[test]
    fn what_passed_is_told_from_what_did_not() {
        let good =
            ran("suite one code 0 boots 1 seconds 9\nsuite two code 101 boots 3 seconds 1\n");
        let line = judge_one("one", &good).expect("it passed");
        assert!(line.starts_with("2 passed, 0 failed, 1 machines"), "{line}");
        let why = judge_one("two", &good).expect_err("one test failed").to_string();
        assert!(why.contains("5 passed, 1 failed"), "{why}");
    }

    #[test]
    fn silence_is_no_success() {
        for results in ["", "suite one code 0 boots 0 seconds 9\n", "suite one code 0\n"] {
            judge_one("one", &ran(results)).expect_err(results);
        }
        let unheard = Ran { output: String::new(), ..ran("suite one code 0 boots 1 seconds 9\n") };
        judge_one("one", &unheard).expect_err("no test was seen");
    }
}
