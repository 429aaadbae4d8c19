//! `bhatti shell`, through a real terminal.

use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

use crate::shell_screen::Screen;

fn daemon_with(config: &str) -> TestDaemon {
    let daemon = TestDaemon::start_with(config);
    daemon.cli(&["create", "--name", "dev", "--memory", "256"]).ok();
    daemon
}

/// What a person does first.
#[test]
fn a_shell_feels_like_a_local_terminal() {
    on_fresh_host(|| {
        let daemon = daemon_with("");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for_prompt();
        screen.line("echo $((6*7))-$PWD-$TERM-$(id -un)-$(tty)");
        screen.wait_for("42-/workspace-xterm-256color-lohar-/dev/pts/0");
        screen.line("stty size");
        screen.wait_for("24 80");
        screen.resize(40, 100);
        // What is typed may be there before our terminal has told its size.
        screen.line("until stty size | grep '40 100'; do sleep 0.1; done; echo si''zed");
        screen.wait_for("sized");

        keys_mean_what_they_mean(&screen);
        a_full_screen_program_follows_the_size(&screen);

        screen.line("exit 3");
        assert_eq!(screen.exit_code(), 0, "the contract's");
        assert_eq!(daemon.json(&["ps", "dev"]), serde_json::json!([]));
    });
}

fn keys_mean_what_they_mean(screen: &Screen) {
    // Said by the program that is to be interrupted, so it is in the foreground.
    screen.line("sh -c 'echo sleeping; exec sleep 1000'");
    screen.wait_until("it sleeps", |s| s.text().lines().any(|line| line == "sleeping"));
    screen.press(&["C-c"]);
    screen.wait_for_prompt();
    screen.line("echo interrupted-$?");
    screen.wait_for("interrupted-130");
    // What is typed before the terminal echoes is seen once only.
    screen.line("echo catting; cat");
    screen.wait_until("cat runs", |s| s.text().lines().any(|line| line == "catting"));
    screen.line("ünïcödé ✓");
    screen.wait_until("typed and echoed", |s| s.text().matches("ünïcödé ✓").count() == 2);
    screen.press(&["C-d"]);
    screen.wait_for_prompt();
    screen.line("echo out-of-cat");
    screen.wait_for("out-of-cat");
}

fn a_full_screen_program_follows_the_size(screen: &Screen) {
    screen.line("clear; top");
    screen.wait_until("top fills the screen", |s| s.visible().contains("PID USER"));
    screen.resize(10, 70);
    screen.wait_until("top fills the smaller one", |s| {
        s.visible().contains("PID USER") && s.visible().trim_end().lines().count() == 10
    });
    screen.press(&["q"]);
    screen.wait_for_prompt();
    screen.resize(30, 90);
    screen.line("clear; vi /tmp/note");
    screen.wait_until("vi fills the screen", |s| s.visible().contains("\n~"));
    screen.press(&["i"]);
    screen.line("written in vi");
    screen.press(&["Escape"]);
    screen.line(":wq");
    screen.wait_for_prompt();
    screen.line("cat /tmp/note; stty size");
    screen.wait_for("written in vi");
    screen.wait_for("30 90");
}

/// Leaving, coming back, and coming back from somewhere else.
#[test]
fn a_shell_outlives_its_terminal() {
    on_fresh_host(|| {
        let daemon = daemon_with("");
        // What the terminal is like afterwards is seen by who runs in it afterwards.
        let after = "stty -a | grep -o -e '-*icanon' -e '-*echo '; exec sleep 1000";
        let first = Screen::run(&daemon, &format!("bhatti shell dev; echo left-$?; {after}"));
        first.wait_for_prompt();
        first.line("secret=kept; i=0; while read -t 0.2 _ || [ $i -lt 1000 ]; do echo line-$((i+=1)); done");
        first.wait_for("line-3");
        first.press(&["C-\\"]);
        first.wait_for("left-0");
        first.wait_for("icanon");
        let text = first.text();
        assert!(text.contains("\ndetached\n"), "{text}");
        assert!(!text.contains("-icanon") && !text.contains("-echo"), "{text}");

        let second = Screen::shell(&daemon, "dev");
        second.wait_for("line-3");
        let shown = second.text();
        assert!(shown.contains("secret=kept") && shown.contains("line-1\n"), "{shown}");
        second.press(&["C-c"]);
        second.wait_for_prompt();
        second.line("echo $secret");
        second.wait_for("kept");

        // Somebody is attached, so this is another; and by name it can be taken.
        let third = Screen::shell(&daemon, "dev");
        third.wait_for_prompt();
        third.line("echo ${secret-none}");
        third.wait_for("none");
        let taker = Screen::shell(&daemon, "dev --session s1");
        assert_eq!(second.exit_code(), 0);
        second.wait_for("session s1 was attached to from elsewhere");
        second.wait_for("reconnect: bhatti shell dev --session s1");
        taker.line("echo still-$secret");
        taker.wait_for("still-kept");
        let sessions = daemon.cli(&["ps", "dev"]).ok();
        let row = |id: &str| format!("{id:<10} {:<40} true     true    ", "/bin/bash -li");
        assert!(sessions.contains(&row("s1")) && sessions.contains(&row("s2")), "{sessions}");

        // Closing the window is leaving too; --new never attaches.
        drop(taker);
        wait_for("nobody is attached to s1", || {
            (daemon.json(&["ps", "dev"])[0]["attached"] == false).then_some(())
        });
        let new = Screen::shell(&daemon, "dev --new");
        new.wait_for_prompt();
        new.line("echo new-${secret-none}");
        new.wait_for("new-none");
        let missing = Screen::shell(&daemon, "dev --session s9");
        assert_eq!(missing.exit_code(), 1);
        missing.wait_for(
            "Error: there is no session s9 in dev; to see those there are: bhatti ps dev",
        );
    });
}

/// A program that took over the screen leaves no trace of it in ours.
#[test]
fn leaving_a_full_screen_program_leaves_a_usable_terminal() {
    on_fresh_host(|| {
        let daemon = daemon_with("");
        let screen =
            Screen::run(&daemon, "echo before; bhatti shell dev; echo after; exec sleep 1000");
        screen.wait_for_prompt();
        screen.line("vi");
        screen.wait_until("vi fills the screen", |s| s.visible().contains("\n~"));
        screen.press(&["C-\\"]);
        screen.wait_for("after");
        let visible = screen.visible();
        assert!(visible.starts_with("before\n") && !visible.contains("\n~"), "{visible}");
        // And coming back to it shows it again, though nothing was printed meanwhile.
        let again = Screen::shell(&daemon, "dev");
        again.wait_until("vi is there again", |s| s.visible().contains("\n~"));
        again.line(":q");
        again.wait_for_prompt();
        again.line("echo out");
        again.wait_for("out");
    });
}

/// Whatever ends the command, the terminal is as before.
#[test]
fn a_shell_that_is_told_to_end_puts_the_terminal_back() {
    on_fresh_host(|| {
        let daemon = daemon_with("");
        let after = "echo left-$?; stty -a | grep -o -e '-*icanon' -e '-*echo '; exec sleep 1000";
        let screen = Screen::run(&daemon, &format!("bhatti shell dev; {after}"));
        screen.wait_for_prompt();
        screen.terminate();
        screen.wait_for("left-143");
        screen.wait_for("icanon");
        let text = screen.text();
        assert!(!text.contains("-icanon") && !text.contains("-echo"), "{text}");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for_prompt();
        assert_eq!(daemon.json(&["ps", "dev"]).as_array().map(Vec::len), Some(1), "it went on");
    });
}

/// The daemon dies while somebody types.
#[test]
fn a_shell_survives_the_daemon() {
    on_fresh_host(|| {
        let mut daemon = daemon_with("");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for_prompt();
        screen.line("secret=kept; cat");
        screen.wait_for("cat");
        daemon.kill_9();
        assert_eq!(screen.exit_code(), 0);
        screen.wait_for("connection lost (session s1 still running)");
        screen.wait_for("reconnect: bhatti shell dev --session s1");
        daemon.run();
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for("secret=kept; cat");
        screen.press(&["C-d"]);
        screen.wait_for_prompt();
        screen.line("echo $secret");
        screen.wait_for("kept");
        // An orderly end says so at once.
        daemon.terminate();
        assert_eq!(screen.exit_code(), 0);
        screen.wait_for("the server closed the connection: the daemon stops");
        daemon.run();
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for("kept");
    });
}

/// While somebody is attached nothing sleeps; without, everything does, and is there afterwards.
#[test]
fn a_shell_survives_sleep() {
    on_fresh_host(|| {
        let daemon = daemon_with("thermal:\n  warm_after: 2s\n  cold_after: 6s\n");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for_prompt();
        screen.line("secret=kept");
        let begun = Instant::now();
        wait_for("it could have slept twice", || {
            assert_eq!(daemon.state("dev").as_deref(), Some("hot"), "somebody is attached");
            (begun.elapsed() > Duration::from_secs(8)).then_some(())
        });
        screen.press(&["C-\\"]);
        assert_eq!(screen.exit_code(), 0);
        daemon.wait_for_state("dev", "warm");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for("secret=kept");
        screen.line("echo warm-$secret");
        screen.wait_for("warm-kept");
        drop(screen);
        daemon.wait_for_state("dev", "stopped");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for("warm-kept");
        screen.line("echo cold-$secret");
        screen.wait_for("cold-kept");

        // Somebody else stops it under our eyes.
        daemon.cli(&["stop", "dev"]).ok();
        assert_eq!(screen.exit_code(), 0);
        screen.wait_for("dev was put to sleep, and session s1 with it");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for("cold-kept");
        screen.line("echo again-$secret");
        screen.wait_for("again-kept");

        // Its machine ends, or all of it: nothing is left to come back to, and that is said.
        screen.line("sudo poweroff");
        assert_eq!(screen.exit_code(), 0);
        screen.wait_for("its sessions have ended");
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for_prompt();
        daemon.cli(&["destroy", "dev", "-y"]).ok();
        assert_eq!(screen.exit_code(), 0);
        screen.wait_for("dev was destroyed");
    });
}

/// What it says where it cannot work.
#[test]
fn a_shell_needs_a_terminal_and_a_sandbox_of_a_vm() {
    on_fresh_host(|| {
        let daemon = daemon_with("");
        let error = daemon.cli(&["shell", "dev"]).fails(1);
        assert!(error.contains("stdin is not a terminal"), "{error}");
        let screen = Screen::shell(&daemon, "nobody");
        assert_eq!(screen.exit_code(), 1);
        screen.wait_for("sandbox \"nobody\" not found");
        let screen = Screen::shell(&daemon, "dev --session s9");
        assert_eq!(screen.exit_code(), 1);
        screen.wait_for("there is no session s9 in dev; to see those there are: bhatti ps dev");
        assert!(daemon.cli(&["sh", "dev", "--new", "--session", "s1"]).code != 0);
    });
}
