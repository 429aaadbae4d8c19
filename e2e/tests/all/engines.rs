//! One data directory, two engines: disks go over, memory stays with who saved it. Needs both of them,
//! so it is ignored wherever there is no Firecracker and run by the test bed's `firecracker-e2e`.

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

use crate::workload;

const QEMU: &str = "engine: qemu\nthermal:\n  warm_after: never\n  cold_after: never\n";
const FIRECRACKER: &str =
    "engine: firecracker\nthermal:\n  warm_after: never\n  cold_after: never\n";

/// Ends the daemon in order; the next one uses that engine.
fn moves_to(daemon: &mut TestDaemon, config: &str) {
    assert_eq!(daemon.terminate(), 0, "a clean end");
    daemon.reconfigure(config);
    daemon.run();
    uses(daemon, config);
}

#[track_caller]
fn uses(daemon: &TestDaemon, config: &str) {
    let name = config.lines().next().and_then(|line| line.strip_prefix("engine: "));
    let name = name.expect("it begins with the engine");
    assert!(daemon.logged(&format!("\"engine\":\"{name}\"")), "{name} was not chosen");
}

/// Its machine dies: what is left is its disk.
fn dies(daemon: &TestDaemon, sandbox: &str) {
    assert!(daemon.kill_vmm(sandbox), "{sandbox} has a machine");
    daemon.wait_for_state(sandbox, "stopped");
    assert_eq!(daemon.transition(sandbox).to, "stopped", "and has no memory");
}

#[test]
#[ignore = "needs a real Firecracker"]
fn disks_move_between_engines_and_memory_does_not() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start_with(QEMU);
        uses(&daemon, QEMU);
        for name in ["disk", "asleep"] {
            daemon.cli(&["create", "--name", name, "--memory", "192"]).ok();
        }
        daemon.sh("disk", "echo qemu > ~/trail; sync");
        workload::start(&daemon, "asleep");
        let before = workload::counted(&daemon, "asleep");
        daemon.cli(&["stop", "asleep"]).ok();
        daemon.cli(&["snapshot", "create", "asleep", "--name", "base"]).ok();
        dies(&daemon, "disk");

        moves_to(&mut daemon, FIRECRACKER);
        assert_eq!(daemon.sh("disk", "cat ~/trail"), "qemu\n");
        daemon.sh("disk", "echo firecracker >> ~/trail; sync");
        // It sleeps and wakes there like any other.
        daemon.cli(&["stop", "disk"]).ok();
        assert_eq!(daemon.transition("disk").to, "cold");
        assert_eq!(daemon.sh("disk", "cat ~/trail"), "qemu\nfirecracker\n");
        memory_is_refused(&daemon);
        // An image is anybody's, though its golden snapshot is not.
        daemon.cli(&["create", "--name", "new", "--memory", "192"]).ok();
        daemon.sh("new", "echo firecracker > ~/trail; sync");
        for name in ["disk", "new"] {
            dies(&daemon, name);
        }

        moves_to(&mut daemon, QEMU);
        assert_eq!(daemon.sh("disk", "cat ~/trail"), "qemu\nfirecracker\n");
        assert_eq!(daemon.sh("new", "cat ~/trail"), "firecracker\n");
        // What was refused there has not been harmed.
        workload::goes_on(&daemon, "asleep", before);
        daemon.cli(&["snapshot", "resume", "base", "--name", "copy"]).ok();
        workload::goes_on(&daemon, "copy", before);

        for name in ["disk", "asleep", "new", "copy"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.cli(&["snapshot", "delete", "base", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

/// A command and a start, of a sandbox and of a snapshot; each says what to do, and changes nothing.
fn memory_is_refused(daemon: &TestDaemon) {
    let machines = daemon.machines();
    for args in [
        &["exec", "asleep", "--", "true"][..],
        &["start", "asleep"],
        &["snapshot", "resume", "base", "--name", "copy"],
    ] {
        let refused = daemon.cli(args).fails(1);
        for part in ["409 Conflict", "was saved by the qemu engine"] {
            assert!(refused.contains(part), "{args:?}: {refused}");
        }
    }
    assert_eq!(daemon.transition("asleep").to, "cold");
    assert_eq!(daemon.state("copy"), None, "nothing was made");
    wait_for("no other machine", || (daemon.machines() == machines).then_some(()));
}
