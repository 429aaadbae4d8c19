//! Crashes around sleep: of the daemon in the middle of it, of the host, and of what lies on disk.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Child, Stdio};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

use crate::workload;

const AWAKE: &str = "thermal:\n  warm_after: never\n  cold_after: never\n";

fn begin(daemon: &TestDaemon, args: &[&str]) -> Child {
    let mut command = daemon.prepare(Some(daemon.admin()), args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
}

/// Names of the generations of the one sandbox that has any, oldest first.
fn generations(daemon: &TestDaemon) -> Vec<String> {
    let frozen = daemon.data_dir().join("frozen");
    let Ok(mut sandboxes) = frozen.read_dir_utf8() else { return Vec::new() };
    let Some(Ok(sandbox)) = sandboxes.next() else { return Vec::new() };
    let Ok(numbers) = sandbox.path().read_dir_utf8() else { return Vec::new() };
    let mut all: Vec<_> = numbers.flatten().map(|number| number.path().to_string()).collect();
    all.sort_by_key(|path| path.rsplit('/').next().and_then(|number| number.parse::<u32>().ok()));
    all
}

/// Kills the daemon at several points of a freeze and of a wake. Nothing is lost at any.
#[test]
fn a_daemon_that_dies_in_a_freeze_or_a_wake_loses_nothing_vm() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start_with(AWAKE);
        daemon.cli(&["create", "--name", "s", "--memory", "256"]).ok();
        workload::start(&daemon, "s");
        let mut before = workload::counted(&daemon, "s");
        let had = generations(&daemon).len();
        type Point = fn(&TestDaemon, usize) -> bool;
        let points: [(&str, Point); 3] = [
            ("a directory for it", |daemon, had| generations(daemon).len() > had),
            ("files in it", |daemon, had| {
                let newest = generations(daemon).into_iter().nth(had);
                newest.is_some_and(|dir| std::fs::read_dir(dir).is_ok_and(|dir| dir.count() > 0))
            }),
            ("no process", |daemon, _| daemon.machines().is_empty()),
        ];
        for (what, reached) in points {
            let had = generations(&daemon).len();
            let mut child = begin(&daemon, &["stop", "s"]);
            wait_for(what, || {
                let ended = child.try_wait().expect("it can be asked").is_some();
                (ended || reached(&daemon, had)).then_some(())
            });
            daemon.kill_9();
            child.wait().expect("it ends");
            daemon.run();
            workload::goes_on(&daemon, "s", before);
            workload::clock_is_right(&daemon, "s");
            before = workload::counted(&daemon, "s");

            daemon.cli(&["stop", "s"]).ok();
            let mut child = begin(&daemon, &["exec", "s", "--", "true"]);
            wait_for("a machine to wake in", || (!daemon.machines().is_empty()).then_some(()));
            daemon.kill_9();
            child.wait().expect("it ends");
            daemon.run();
            workload::goes_on(&daemon, "s", before);
            before = workload::counted(&daemon, "s");
            assert_eq!(daemon.machines().len(), 1, "one machine");
        }
        assert!(generations(&daemon).len() <= had + 2, "{:?}", generations(&daemon));
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

#[test]
fn a_daemon_leaves_sleeping_vms_asleep_or_freezes_them_all() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start_with(
            "thermal:\n  warm_after: 2s\n  cold_after: never\non_shutdown: freeze\n",
        );
        daemon.cli(&["create", "--name", "s", "--memory", "192"]).ok();
        workload::start(&daemon, "s");
        let before = workload::counted(&daemon, "s");
        let pids = daemon.machines();
        daemon.wait_for_state("s", "warm");
        daemon.kill_9();
        daemon.run();
        assert_eq!(daemon.machines(), pids, "the same machine");
        workload::clock_is_right(&daemon, "s");
        workload::goes_on(&daemon, "s", before);

        let before = workload::counted(&daemon, "s");
        assert_eq!(daemon.terminate(), 0, "a clean end");
        assert_eq!(daemon.machines(), [0; 0], "told to freeze at its end, it does");
        daemon.run();
        assert_eq!(daemon.transition("s").to, "cold");
        workload::goes_on(&daemon, "s", before);
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

/// All processes gone at once: what a power cut leaves, but for the host's own page cache.
#[test]
fn a_host_that_reboots_keeps_cold_vms_and_says_what_hot_ones_lost() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start_with(AWAKE);
        for name in ["hot", "cold"] {
            daemon.cli(&["create", "--name", name, "--memory", "192"]).ok();
            workload::start(&daemon, name);
        }
        let before = workload::counted(&daemon, "cold");
        daemon.cli(&["stop", "cold"]).ok();
        let pid = daemon.vmm_pid("hot");
        daemon.kill_9();
        kill(pid.expect("it runs"));
        wait_for("no machine runs", || daemon.machines().is_empty().then_some(()));
        daemon.run();
        for name in ["hot", "cold"] {
            assert_eq!(daemon.state(name).as_deref(), Some("stopped"));
        }
        assert_eq!(daemon.transition("cold").to, "cold");
        let said = daemon.transition("hot");
        assert!(said.to == "stopped" && said.reason.contains("memory"), "{said:?}");
        workload::goes_on(&daemon, "cold", before);
        assert_eq!(daemon.sh("hot", "cat ~/synced; ls /tmp"), "synced\n", "its disk, and no more");
        for name in ["hot", "cold"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.assert_nothing_left();
    });
}

fn kill(pid: i32) {
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.expect("kill runs").success());
}

/// A bit of the newest memory rots. The wake uses what is left and says so.
#[test]
fn a_damaged_generation_is_not_used_and_that_is_said_vm() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start_with(AWAKE);
        daemon.allow_error("did not wake as it was");
        daemon.cli(&["create", "--name", "s", "--memory", "192"]).ok();
        workload::start(&daemon, "s");
        daemon.cli(&["stop", "s"]).ok();
        daemon.sh("s", "echo later > ~/later; sync; echo later > /tmp/later");
        daemon.cli(&["stop", "s"]).ok();
        let newest = generations(&daemon).pop().expect("it was frozen");
        assert!(damage(&newest) > 0, "nothing in {newest} is its own");
        // The disk is whole in any case.
        let found = daemon.cli(&["exec", "s", "--", "cat", "/home/lohar/synced"]);
        let warning = &found.stderr;
        assert!(warning.contains("memory and running processes are lost"), "{warning:?}");
        assert_eq!(found.ok(), "synced\n");
        let again = daemon.cli(&["exec", "s", "--", "true"]);
        assert_eq!((again.code, again.stderr.as_str()), (0, ""), "said once");
        let said = daemon.transition("s");
        assert!(
            said.to == "hot" && said.reason.contains("memory and running processes are lost"),
            "{said:?}"
        );
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

/// Flips a bit in the middle of each memory file that no other generation shares; how many.
fn damage(generation: &str) -> usize {
    let mut damaged = 0;
    for entry in std::fs::read_dir(generation).expect("a directory").flatten() {
        let memory = entry.file_name().to_string_lossy().starts_with("mem-");
        let metadata = entry.metadata().expect("it is there");
        if !memory || metadata.nlink() > 1 || metadata.len() == 0 {
            continue;
        }
        let file = std::fs::OpenOptions::new().read(true).write(true).open(entry.path());
        let file = file.expect("it opens");
        let (mut byte, middle) = ([0], metadata.len() / 2);
        file.read_exact_at(&mut byte, middle).expect("it has a middle");
        file.write_all_at(&[byte[0] ^ 1], middle).expect("it can be written");
        damaged += 1;
    }
    damaged
}
