//! The main job, as the README shows it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, on_fresh_host};

/// One sandbox, everything a newcomer tries on it.
#[test]
fn a_newcomers_session_boots_a_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let created =
            daemon.cli(&["create", "--name", "dev", "--cpus", "2", "--memory", "512"]).ok();
        assert!(created.starts_with("sandbox/dev created (2 vCPU, 512 MB)\n"), "{created}");
        assert!(created.contains("  Shell: bhatti shell dev\n"), "{created}");

        the_kernel_is_the_guests_own(&daemon);
        streams_and_exit_codes_are_kept(&daemon);
        a_timeout_kills_the_group(&daemon);
        commands_run_as_lohar(&daemon);
        output_streams_as_it_comes(&daemon);
        creating_again_changes_nothing(&daemon);
        reading_shows_it(&daemon);
        a_detached_command_goes_on(&daemon);
        any_bytes_and_sizes_pass(&daemon);
        a_client_that_hangs_up_ends_its_command(&daemon);
        editing_changes_the_record(&daemon);

        let refused = daemon.cli(&["destroy", "dev"]).fails(1);
        assert!(refused.contains("Use --yes to confirm in non-interactive mode"), "{refused}");
        assert_eq!(daemon.cli(&["destroy", "dev", "-y"]).ok(), "sandbox/dev destroyed\n");
        daemon.assert_nothing_left();
        let gone = daemon.cli(&["exec", "dev", "--", "true"]).fails(1);
        assert!(gone.contains("sandbox \"dev\" not found") && gone.contains("bhatti ls"), "{gone}");
    });
}

fn the_kernel_is_the_guests_own(daemon: &TestDaemon) {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let guest = daemon.cli(&["exec", "dev", "--", "uname", "-a"]).ok();
    assert!(guest.starts_with("Linux dev 6.1."), "{guest}");
    // Another kernel has another one, even where it is of the same release.
    let host = std::fs::read_to_string(BOOT_ID).expect("Linux");
    let guest = daemon.cli(&["exec", "dev", "--", "cat", BOOT_ID]).ok();
    assert_eq!(guest.len(), host.len());
    assert_ne!(guest, host, "the guest runs on the host's kernel");
    assert_eq!(daemon.cli(&["exec", "dev", "nproc"]).ok(), "2\n");
    let timing = daemon.cli(&["exec", "dev", "--", "cat", "/run/bhatti/boot-timing.txt"]).ok();
    assert!(timing.lines().count() > 3 && timing.lines().all(|l| l.starts_with('+')), "{timing}");
}

fn streams_and_exit_codes_are_kept(daemon: &TestDaemon) {
    let ran = daemon.cli(&["exec", "dev", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (7, "out\n", "err\n"));
    let ran = daemon.cli(&["--json", "exec", "dev", "--", "sh", "-c", "echo out; exit 3"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((ran.code, &json["exit_code"], &json["stdout"]), (3, &3.into(), &"out\n".into()));
    let ran = daemon.cli(&["exec", "dev", "--", "no-such-command"]);
    assert_eq!(ran.code, 127);
    assert!(ran.stderr.contains("no-such-command"), "{}", ran.stderr);
    assert_eq!(daemon.cli(&["exec", "dev", "--", "/etc/passwd"]).code, 126);
    assert_eq!(daemon.cli(&["exec", "dev", "--", "sh", "-c", "kill -TERM $$"]).code, 143);
}

fn a_timeout_kills_the_group(daemon: &TestDaemon) {
    let started = Instant::now();
    let ran =
        daemon.cli(&["exec", "dev", "--timeout", "2", "--", "sh", "-c", "sleep 61 & sleep 61"]);
    let took = started.elapsed();
    assert_eq!(ran.code, 137);
    assert!((Duration::from_secs(2)..Duration::from_secs(12)).contains(&took), "{took:?}");
    let left = daemon.cli(&["exec", "dev", "--", "pgrep", "-c", "sleep"]);
    assert_eq!((left.code, left.stdout.as_str()), (1, "0\n"), "a sleep survived");
    let bad = daemon.cli(&["exec", "dev", "--timeout", "86401", "--", "true"]).fails(1);
    assert!(bad.contains("86400"), "{bad}");
}

fn commands_run_as_lohar(daemon: &TestDaemon) {
    assert_eq!(daemon.cli(&["exec", "dev", "--", "id", "-un"]).ok(), "lohar\n");
    assert_eq!(daemon.cli(&["exec", "dev", "--", "sudo", "id", "-u"]).ok(), "0\n");
    let home =
        daemon.cli(&["exec", "dev", "--", "sh", "-c", "cd ~ && pwd && touch x && stat -c %U x"]);
    assert_eq!(home.ok(), "/home/lohar\nlohar\n");
    assert_eq!(daemon.cli(&["exec", "dev", "--", "pwd"]).ok(), "/\n");
}

fn output_streams_as_it_comes(daemon: &TestDaemon) {
    let script = "for i in 1 2 3; do echo $i; sleep 1; done";
    let mut child = daemon
        .prepare(Some(daemon.admin()), &["exec", "dev", "--", "sh", "-c", script])
        .env("BHATTI_FORCE_STREAM", "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seen = Vec::new();
    for line in lines {
        seen.push((line.expect("UTF-8"), Instant::now()));
    }
    assert!(child.wait().expect("it ends").success());
    let texts: Vec<_> = seen.iter().map(|(line, _)| line.as_str()).collect();
    assert_eq!(texts, ["1", "2", "3"]);
    let spread = seen[2].1 - seen[0].1;
    assert!(spread > Duration::from_millis(1200), "all at once: {spread:?}");
}

fn creating_again_changes_nothing(daemon: &TestDaemon) {
    let same = ["create", "--name", "dev", "--cpus", "2", "--memory", "512"];
    assert_eq!(daemon.cli(&same).ok(), "sandbox/dev unchanged (already exists)\n");
    assert_eq!(
        daemon.cli(&["create", "--name", "dev"]).ok(),
        "sandbox/dev unchanged (already exists)\n"
    );
    let other = daemon.cli(&["create", "--name", "dev", "--memory", "1024"]).fails(1);
    assert!(other.contains("409 Conflict: sandbox \"dev\" already exists"), "{other}");
    assert!(other.contains("its memory is 512 MB, not 1024 MB"), "{other}");
    assert!(other.contains("bhatti destroy dev\n"), "{other}");
}

fn reading_shows_it(daemon: &TestDaemon) {
    let list = daemon.cli(&["list"]).ok();
    let mut lines = list.lines();
    assert_eq!(lines.next(), Some("NAME                 STATUS     THERMAL  IP              "));
    assert!(
        lines
            .next()
            .is_some_and(|l| l.starts_with("dev                  running    hot      10.0.1.2"))
    );
    let wide = daemon.cli(&["list", "-o", "wide"]).ok();
    assert!(wide.contains("LABELS") && wide.contains("minimal"), "{wide}");
    let inspect = daemon.cli(&["inspect", "dev"]).ok();
    assert!(inspect.contains("Name:       dev\n") && inspect.contains("MB free)"), "{inspect}");
    let json: serde_json::Value =
        serde_json::from_str(&daemon.cli(&["--json", "inspect", "dev"]).ok()).expect("JSON");
    assert_eq!(json["memory_mb"], 512);
}

fn a_detached_command_goes_on(daemon: &TestDaemon) {
    let script = "echo started; sleep 1; echo finished";
    let out = daemon.cli(&["exec", "dev", "--detach", "--", "sh", "-c", script]).ok();
    let file = out.lines().nth(1).and_then(|l| l.strip_prefix("output: ")).expect("a log path");
    assert!(out.starts_with("pid: "), "{out}");
    bhatti_testkit::wait_for("the detached command finishes", || {
        let text = daemon.cli(&["exec", "dev", "--", "cat", file]).ok();
        (text == "started\nfinished\n").then_some(())
    });
}

fn any_bytes_and_sizes_pass(daemon: &TestDaemon) {
    let out =
        daemon.cli(&["exec", "dev", "--", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]);
    assert_eq!(out.ok().len(), 3_000_000);
    let out =
        daemon.cli(&["exec", "dev", "--", "sh", "-c", "head -c 12000000 /dev/zero | tr '\\0' x"]);
    assert_eq!(out.ok().len(), 12_000_000);
    assert_eq!(daemon.cli(&["exec", "dev", "--", "printf", "aé€😀"]).ok(), "aé€😀");
}

fn a_client_that_hangs_up_ends_its_command(daemon: &TestDaemon) {
    let args = ["exec", "dev", "--", "sh", "-c", "echo up; exec sleep 62"];
    let mut child = daemon
        .prepare(Some(daemon.admin()), &args)
        .env("BHATTI_FORCE_STREAM", "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert_eq!(line, "up\n");
    child.kill().expect("ours to kill");
    child.wait().expect("it ends");
    bhatti_testkit::wait_for("the command is killed", || {
        let left = daemon.cli(&["exec", "dev", "--", "pgrep", "-f", "sleep 62"]);
        (left.code == 1).then_some(())
    });
}

fn editing_changes_the_record(daemon: &TestDaemon) {
    let edited = daemon.cli(&["edit", "dev", "--keep-hot", "--label", "team=a"]).ok();
    assert!(edited.contains("keep_hot: true (thermal transitions disabled)"), "{edited}");
    assert!(daemon.cli(&["list", "--label", "team=a"]).ok().contains("dev"));
    assert!(!daemon.cli(&["list", "--label", "team=b"]).ok().contains("dev"));
    daemon.cli(&["edit", "dev", "--name", "renamed"]).ok();
    assert!(daemon.cli(&["list"]).ok().contains("renamed"));
    daemon
        .cli(&["edit", "renamed", "--name", "dev", "--allow-cold", "--label-delete", "team"])
        .ok();
    let nothing = daemon.cli(&["edit", "dev"]).fails(1);
    assert!(nothing.contains("nothing to update"), "{nothing}");
}
