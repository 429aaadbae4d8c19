//! The one waiter: no status is lost, whatever dies when.

use std::process::{Command, Stdio};

use lohar::process::Exit;

use crate::support::{PATIENCE, reaper, run, sh};

#[tokio::test]
async fn no_exit_status_is_lost_in_a_crowd() {
    let reaper = reaper();
    let mut exits = Vec::new();
    for round in 0..100 {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("exit {round}")]).stdin(Stdio::null());
        exits.push((round, reaper.spawn(&mut command).unwrap().1));
        // A failing exec is collected by the standard library; it must not disturb the others.
        assert!(reaper.spawn(&mut Command::new("/no/such/program")).is_err());
    }
    for (round, exit) in exits {
        let exit = tokio::time::timeout(PATIENCE, exit).await.expect("in time").expect("claimed");
        assert_eq!(exit, Exit::Code(round));
    }
}

#[tokio::test]
async fn signals_are_told_from_codes_even_the_unnamed_ones() {
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("40", 168)] {
        let outcome = run(sh(&format!("kill -{signal} $$"))).await;
        assert_eq!(outcome.code(), code, "SIG{signal}");
    }
}

#[tokio::test]
async fn orphans_are_not_mistaken_for_commands() {
    // The orphan outlives its parent and is adopted by whoever adopts here; the claim is not
    // disturbed either way.
    let outcome = run(sh("(sleep 0.01; exit 9) >/dev/null 2>&1 & exit 4")).await;
    assert_eq!(outcome.code(), 4);
    assert_eq!(run(sh("exit 5")).await.code(), 5);
}
