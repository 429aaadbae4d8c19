//! Sessions behind `bhatti shell`: the init script, detached commands, many of them.

use bhatti_api::route::Terminal;
use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

use crate::shell_screen::Screen;

/// Ids of what `ps` lists.
fn ids(daemon: &TestDaemon, sandbox: &str) -> Vec<String> {
    let list = daemon.json(&["ps", sandbox]);
    let list = list.as_array().expect("a list");
    list.iter().map(|row| row["session_id"].as_str().expect("an id").to_owned()).collect()
}

/// `--init`, as the create page has it: a session like any other, once per boot.
#[test]
fn the_init_script_is_a_session_of_its_boot() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let init = "echo ran >> /workspace/runs; tty; while read line; do echo \"got $line\"; \
                    [ \"$line\" = end ] && exit 4; done";
        daemon.cli(&["create", "--name", "dev", "--memory", "256", "--init", init]).ok();
        let list = daemon.json(&["ps", "dev"]);
        assert_eq!(list[0]["session_id"], "init", "{list}");
        assert_eq!((&list[0]["running"], &list[0]["attached"]), (&true.into(), &false.into()));
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_for("/dev/pts/0");
        screen.line("hello");
        screen.wait_for("got hello");
        screen.press(&["C-\\"]);
        assert_eq!(screen.exit_code(), 0);

        // It sleeps with its machine and is not run again.
        daemon.cli(&["stop", "dev"]).ok();
        let screen = Screen::shell(&daemon, "dev --session init");
        screen.wait_for("got hello");
        screen.line("again");
        screen.wait_for("got again");
        assert_eq!(daemon.sh("dev", "cat /workspace/runs"), "ran\n");
        screen.line("end");
        assert_eq!(screen.exit_code(), 0);
        wait_for("it is forgotten", || ids(&daemon, "dev").is_empty().then_some(()));
        let log = daemon.sh("dev", "tail -n 1 /var/log/lohar/init.log");
        assert_eq!(log, "got end\r\n");

        // Another boot is another run.
        daemon.kill_vmm("dev");
        wait_for("it ran again", || {
            // The first use may find out that the machine has died.
            let runs = daemon.cli(&["exec", "dev", "--", "cat", "/workspace/runs"]);
            (runs.stdout == "ran\nran\n").then_some(())
        });
        assert_eq!(ids(&daemon, "dev"), ["init"]);
    });
}

/// `exec --detach` and what came of it.
#[test]
fn detached_commands_are_listed_with_the_sessions() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "256"]).ok();
        let out = daemon.cli(&["exec", "dev", "--detach", "--", "sleep", "1000"]).ok();
        let pid = out.lines().next().and_then(|line| line.strip_prefix("pid: ")).expect("a pid");
        let list = daemon.json(&["ps", "dev"]);
        assert_eq!(list[0]["session_id"], format!("d{pid}"), "{list}");
        assert_eq!(
            (&list[0]["argv"], &list[0]["kind"]),
            (&"sleep 1000".into(), &"detached".into())
        );
        let file = list[0]["output_file"].as_str().expect("a path");
        assert!(out.contains(&format!("output: {file}\n")), "{out} {list}");
        let screen = Screen::shell(&daemon, &format!("dev --session d{pid}"));
        assert_eq!(screen.exit_code(), 1);
        screen.wait_until("why not", |s| s.text().contains("is a detached command"));
        // As much alive after a sleep, and gone when it ends.
        daemon.cli(&["stop", "dev"]).ok();
        assert_eq!(ids(&daemon, "dev"), [format!("d{pid}")]);
        daemon.cli(&["exec", "dev", "--", "kill", pid]).ok();
        wait_for("it is gone", || ids(&daemon, "dev").is_empty().then_some(()));
    });
}

/// A client that stands still: nothing piles up for it, and in the end it is only a client.
#[test]
fn a_client_that_does_not_read_holds_only_its_program_up() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "256"]).ok();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = daemon.client(daemon.admin());
        let terminal = runtime.block_on(async {
            let terminal = client.terminal("dev", Terminal::New).await.expect("a shell");
            let flood = "stty -echo; yes | cat -n; echo\n";
            terminal.input.write(flood.into()).await.expect("it is taken");
            terminal
        });
        let before = daemon.memory_mib("VmRSS");
        // Ten seconds after it has taken nothing more it is no client any more.
        wait_for("it is dropped", || {
            assert_eq!(daemon.sh("dev", "echo answers"), "answers\n");
            (daemon.json(&["ps", "dev"])[0]["attached"] == false).then_some(())
        });
        let grown = daemon.memory_mib("VmHWM").saturating_sub(before);
        assert!(grown < 16, "{grown} MiB more for one client");
        // The program goes on without it, and who comes next sees where it is now.
        let screen = Screen::shell(&daemon, "dev");
        screen.wait_until("numbers", |s| s.visible().contains(" y\n"));
        screen.press(&["C-c"]);
        screen.wait_for_prompt();
        screen.line("echo interrupted-$?; stty echo");
        screen.wait_for("interrupted-130");
        drop(terminal);
    });
}
