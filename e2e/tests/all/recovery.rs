//! What survives the daemon, and what the daemon makes of what it finds.

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

fn boot_id(daemon: &TestDaemon, name: &str) -> String {
    daemon.cli(&["exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id"]).ok()
}

#[test]
fn a_killed_daemon_finds_its_vms_again() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "s", "--memory", "256", "--env", "A=1"]).ok();
        let count = "i=0; while :; do echo $((i+=1)) > /tmp/n; sleep 0.2; done";
        daemon.cli(&["exec", "s", "--detach", "--", "sh", "-c", count]).ok();
        let (boot, pids) = (boot_id(&daemon, "s"), daemon.machines());
        for _ in 0..2 {
            daemon.kill_9();
            assert_eq!(daemon.machines(), pids, "the machine outlives the daemon");
            daemon.run();
            assert_eq!(boot_id(&daemon, "s"), boot, "the same machine");
            assert_eq!(daemon.machines(), pids);
        }
        assert_eq!(daemon.cli(&["exec", "s", "--", "sh", "-c", "echo $A"]).ok(), "1\n");
        let n = || daemon.cli(&["exec", "s", "--", "cat", "/tmp/n"]).ok();
        let first = n();
        wait_for("it still counts", || (n() != first).then_some(()));
        assert_eq!(daemon.terminate(), 0, "a clean end");
        assert_eq!(daemon.machines(), pids, "and the machine goes on");
        daemon.run();
        assert_eq!(boot_id(&daemon, "s"), boot);
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

#[test]
fn a_create_cut_short_by_a_crash_is_undone_vm() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        let mut child = daemon
            .prepare(Some(daemon.admin()), &["create", "--name", "half", "--memory", "256"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for("the machine is starting", || (!daemon.machines().is_empty()).then_some(()));
        daemon.kill_9();
        assert!(!child.wait().expect("it ends").success());
        daemon.run();
        assert_eq!(daemon.cli(&["list"]).ok().lines().count(), 1, "header only");
        daemon.assert_nothing_left();
        daemon.cli(&["create", "--name", "half", "--memory", "256"]).ok();
        daemon.cli(&["destroy", "half", "-y"]).ok();
    });
}

#[test]
fn a_vm_that_powers_off_or_dies_is_booted_on_use() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "s", "--memory", "256", "--env", "A=1"]).ok();
        let keep = "echo kept > /workspace/file; sync";
        daemon.cli(&["exec", "s", "--", "sh", "-c", keep]).ok();
        let boot = boot_id(&daemon, "s");
        let [pid] = daemon.machines()[..] else { panic!("one machine") };
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill");
        let listed = |word: &str| daemon.cli(&["list"]).ok().contains(word).then_some(());
        wait_for("it is seen to have stopped", || listed("stopped"));
        assert_eq!(daemon.cli(&["exec", "s", "--", "cat", "/workspace/file"]).ok(), "kept\n");
        assert_eq!(daemon.cli(&["exec", "s", "--", "sh", "-c", "echo $A"]).ok(), "1\n");
        assert_ne!(boot_id(&daemon, "s"), boot);
        listed("running").expect("it runs again");
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}
