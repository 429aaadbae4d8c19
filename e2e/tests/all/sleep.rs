//! Hot, warm, cold, and back: by themselves, and told to.

use std::process::Stdio;

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

use crate::workload;

fn boot_id(daemon: &TestDaemon, name: &str) -> String {
    daemon.sh(name, "cat /proc/sys/kernel/random/boot_id")
}

/// Four sandboxes, each with its own reason to sleep or not, left alone.
#[test]
fn an_idle_vm_falls_asleep_and_any_use_wakes_it() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start_with("thermal:\n  warm_after: 2s\n  cold_after: 8s\n");
        for (name, more) in [("idle", None), ("busy", None), ("pinned", Some("--keep-hot"))] {
            let args = ["create", "--name", name, "--memory", "192"];
            daemon.cli(&args.into_iter().chain(more).collect::<Vec<_>>()).ok();
        }
        let spin = ["exec", "busy", "--detach", "--", "sh", "-c", "while :; do :; done"];
        daemon.cli(&spin).ok();
        workload::start(&daemon, "idle");

        a_command_keeps_it_hot(&daemon);
        reading_does_not_wake(&daemon);

        let (pid, before) = (daemon.vmm_pid("idle"), workload::counted(&daemon, "idle"));
        daemon.wait_for_state("idle", "warm");
        workload::clock_is_right(&daemon, "idle");
        assert_eq!(daemon.vmm_pid("idle"), pid, "warm is not cold");
        workload::goes_on(&daemon, "idle", before);

        daemon.wait_for_state("idle", "stopped");
        let last = daemon.transition("idle");
        assert!(last.to == "cold" && !last.reason.is_empty(), "{last:?}");
        // It is cold from the moment that is recorded; the process ends right after.
        wait_for("no process", || daemon.vmm_pid("idle").is_none().then_some(()));
        workload::clock_is_right(&daemon, "idle");
        assert_eq!(daemon.state("idle").as_deref(), Some("hot"), "woken by the command");
        workload::goes_on(&daemon, "idle", before);

        // All that time these had a reason.
        assert_eq!(daemon.state("busy").as_deref(), Some("hot"), "it computes");
        assert_eq!(daemon.state("pinned").as_deref(), Some("hot"), "it is to stay hot");
        // Each looked at right after: warm lasts six seconds, and a busy host may take that long
        // for a command in between.
        daemon.cli(&["edit", "pinned", "--allow-cold"]).ok();
        daemon.wait_for_state("pinned", "warm");
        daemon.cli(&["exec", "busy", "--", "pkill", "-f", "while :"]).ok();
        daemon.wait_for_state("busy", "warm");

        // Destroying wakes nothing and works from every state.
        daemon.wait_for_state("pinned", "stopped");
        for name in ["idle", "busy", "pinned"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.assert_nothing_left();
    });
}

fn a_command_keeps_it_hot(daemon: &TestDaemon) {
    let mut child = daemon
        .prepare(Some(daemon.admin()), &["exec", "idle", "--", "sleep", "5"])
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut seen = 0;
    let status = wait_for("the command ends", || {
        assert_eq!(daemon.state("idle").as_deref(), Some("hot"), "while a command runs");
        seen += 1;
        child.try_wait().expect("it can be asked")
    });
    assert!(status.success() && seen > 10, "{status}, seen {seen} times");
}

fn reading_does_not_wake(daemon: &TestDaemon) {
    daemon.wait_for_state("idle", "warm");
    let last = daemon.transition("idle");
    assert!(last.to == "warm" && !last.reason.is_empty(), "{last:?}");
    assert!(daemon.cli(&["list"]).ok().contains("warm"));
    daemon.cli(&["list", "-o", "wide"]).ok();
    daemon.cli(&["--json", "inspect", "idle"]).ok();
    daemon.cli(&["snapshot", "list"]).ok();
    daemon.cli(&["edit", "idle", "--label", "a=b"]).ok();
    assert_eq!(daemon.transition("idle"), last, "nothing has moved");
}

/// What the issue shows: stop, and everything is there again.
#[test]
fn a_stopped_vm_continues_where_it_was() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start_with("thermal:\n  warm_after: never\n  cold_after: never\n");
        daemon.cli(&["create", "--name", "s", "--memory", "256", "--env", "A=1"]).ok();
        workload::start(&daemon, "s");
        // Memory that is there only once frozen: held by a process, and by nothing else.
        daemon.sh(
            "s",
            "exec 3<>/tmp/held; rm /tmp/held; echo open >&3; setsid sleep 1000 >/dev/null 2>&1 &",
        );
        let (boot, mut before) = (boot_id(&daemon, "s"), workload::counted(&daemon, "s"));
        for round in 0..3 {
            assert_eq!(daemon.cli(&["stop", "s"]).ok(), "sandbox/s stopped\n");
            assert_eq!(daemon.state("s").as_deref(), Some("stopped"));
            assert_eq!(daemon.machines(), [0; 0], "its memory is back");
            assert_eq!(daemon.transition("s").to, "cold");
            let stopped = daemon.json(&["stop", "s"]);
            assert_eq!(stopped["status"], "stopped", "stopping twice is fine");
            assert!(stopped["stopped_at"].is_string(), "{stopped}");
            if round == 1 {
                for _ in 0..2 {
                    assert_eq!(daemon.cli(&["start", "s"]).ok(), "sandbox/s started\n");
                    assert_eq!(daemon.state("s").as_deref(), Some("hot"));
                }
            }
            workload::clock_is_right(&daemon, "s");
            assert_eq!(boot_id(&daemon, "s"), boot, "the same boot");
            let held = "p=$(pgrep -x sleep | head -n1); cat /proc/$p/fd/3";
            assert_eq!(daemon.sh("s", held), "open\n", "an open file without a name");
            assert_eq!(daemon.sh("s", "echo $A"), "1\n");
            workload::goes_on(&daemon, "s", before);
            before = workload::counted(&daemon, "s");
        }
        many_calls_share_one_wake(&daemon);
        let missing = daemon.cli(&["stop", "nobody"]).fails(1);
        assert!(missing.contains("sandbox \"nobody\" not found"), "{missing}");
        daemon.cli(&["stop", "s"]).ok();
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

fn many_calls_share_one_wake(daemon: &TestDaemon) {
    daemon.cli(&["stop", "s"]).ok();
    let children: Vec<_> = (0..8)
        .map(|number| {
            let number = number.to_string();
            let mut command = daemon.prepare(Some(daemon.admin()), &["exec", "s", "echo", &number]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{number}\n"), "{output:?}");
    }
    assert_eq!(daemon.machines().len(), 1, "one machine for all of them");
}
