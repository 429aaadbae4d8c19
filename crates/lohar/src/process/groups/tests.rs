//! On a directory that looks like the kernel's. The kernel itself is asked in the tests that boot
//! a machine.

use super::*;

/// A hierarchy with these groups, each with what its `cgroup.freeze` and `cgroup.events` say.
fn hierarchy(groups: &[(&str, &str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, freeze, events) in groups {
        let group = root.path().join(name);
        std::fs::create_dir(&group).unwrap();
        std::fs::write(group.join("cgroup.procs"), "").unwrap();
        std::fs::write(group.join("cgroup.freeze"), freeze).unwrap();
        std::fs::write(group.join("cgroup.events"), events).unwrap();
    }
    root
}

const STILL: &str = "populated 1\nfrozen 1\n";
const RUNS: &str = "populated 1\nfrozen 0\n";
const LONG: Duration = Duration::from_secs(60);

#[test]
fn everybody_but_the_agent_and_what_others_froze() {
    let root = hierarchy(&[
        ("commands", "0\n", STILL),
        ("agent", "0\n", RUNS),
        ("docker", "0\n", STILL),
        ("paused", "1\n", STILL),
    ]);
    let says = |group: &str| {
        let text = std::fs::read_to_string(root.path().join(group).join("cgroup.freeze")).unwrap();
        text.trim_end().to_owned()
    };
    let groups = Groups::set_up(root.path()).unwrap();
    groups.step_aside().unwrap();
    let frozen = groups.freeze_others(LONG);
    assert!(frozen.missed.is_none(), "{frozen:?}");
    assert_eq!(["commands", "docker", "paused", "agent"].map(says), ["1", "1", "1", "0"]);
    assert!(frozen.thaw().is_empty());
    assert_eq!(["commands", "docker", "paused", "agent"].map(says), ["0", "0", "1", "0"]);
}

#[test]
fn one_that_does_not_stop_is_told_and_the_others_are_frozen() {
    let root = hierarchy(&[("commands", "0\n", STILL), ("stuck", "0\n", RUNS)]);
    let groups = Groups::set_up(root.path()).unwrap();
    let frozen = groups.freeze_others(Duration::from_millis(20));
    let missed = frozen.missed.as_ref().unwrap().to_string();
    assert!(missed.ends_with("stuck does not stop"), "{missed}");
    for group in ["commands", "stuck"] {
        let path = root.path().join(group).join("cgroup.freeze");
        assert!(std::fs::read_to_string(path).unwrap().starts_with('1'), "{group}");
    }
    assert!(frozen.thaw().is_empty());
}

#[test]
fn one_that_went_away_is_nobodys_loss() {
    let root = hierarchy(&[("commands", "0\n", STILL), ("going", "0\n", STILL)]);
    let groups = Groups::set_up(root.path()).unwrap();
    let frozen = groups.freeze_others(LONG);
    std::fs::remove_dir_all(root.path().join("going")).unwrap();
    assert!(frozen.missed.is_none() && frozen.thaw().is_empty());
    // As between being listed and being told.
    let mut frozen = Frozen::default();
    frozen.add(vec![root.path().join("going")], Instant::now() + LONG);
    assert!(frozen.missed.is_none(), "{frozen:?}");
}

#[test]
fn what_somebody_put_there_holds_nobody_up() {
    let root = hierarchy(&[("commands", "0\n", STILL), ("odd", "0\n", STILL)]);
    let fifo = root.path().join("odd/cgroup.freeze");
    std::fs::remove_file(&fifo).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let groups = Groups::set_up(root.path()).unwrap();
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(groups.freeze_others(LONG)));
    let frozen = result.recv_timeout(LONG).expect("an end");
    assert!(matches!(frozen.missed, Some(GroupError::File { action: "write", .. })), "{frozen:?}");
}

#[test]
fn a_kernel_that_cannot_freeze_is_found_out_first() {
    let root = tempfile::tempdir().unwrap();
    let error = Groups::set_up(root.path()).unwrap_err();
    assert!(matches!(error, GroupError::File { action: "read", .. }), "{error}");
}
