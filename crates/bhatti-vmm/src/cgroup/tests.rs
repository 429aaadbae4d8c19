//! What each kind of host is given to do, and one group on this one.

use std::os::fd::AsFd;

use super::*;
use crate::fork;

const SHAPE: Shape = Shape { milli_cpus: 500, memory: Mib(256) };

fn chosen(mounts: &str, version_two_offers: &str) -> Cgroups {
    let (hierarchies, warnings) = choose(mounts, |_| version_two_offers.to_owned());
    Cgroups { hierarchies, parent: "bhatti".to_owned(), warnings }
}

/// Hierarchy, then what is written below it, one line each.
fn plan(cgroups: &Cgroups) -> String {
    let limits = Limits::of(SHAPE, Accel::Tcg);
    let mut out = String::new();
    for hierarchy in &cgroups.hierarchies {
        out.push_str(&format!("{}\n", hierarchy.mount.display()));
        for (file, value) in hierarchy.settings(limits) {
            out.push_str(&format!("  {file} = {value}\n"));
        }
    }
    for warning in &cgroups.warnings {
        out.push_str(&format!("! {warning}\n"));
    }
    out
}

#[test]
fn version_two_alone() {
    let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n/dev/sda / ext4 rw 0 0\n";
    insta::assert_snapshot!(plan(&chosen(mounts, "cpuset cpu io memory pids\n")));
}

#[test]
fn hybrid_with_controllers_in_version_one() {
    let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
        cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
        cgroup /mnt/again cgroup rw,memory 0 0\n\
        cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    insta::assert_snapshot!(plan(&chosen(mounts, "")));
}

#[test]
fn what_is_missing_is_said() {
    let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
    insta::assert_snapshot!(plan(&chosen(mounts, "cpu pids")));
    // Even without any bound the list of processes is kept.
    let none = chosen(mounts, "");
    assert_eq!((none.hierarchies.len(), none.warnings.len()), (1, 3));
}

#[test]
fn a_host_without_any_hierarchy_has_none() {
    assert!(chosen("/dev/sda / ext4 rw 0 0\n", "cpu").hierarchies.is_empty());
    assert!(chosen("broken\n\n", "cpu").hierarchies.is_empty());
}

#[test]
fn a_vcpu_cannot_use_more_than_was_bought_and_a_little() {
    for (milli_cpus, quota) in [(100, 15_000), (500, 55_000), (1000, 105_000), (2500, 255_000)] {
        let shape = Shape { milli_cpus, memory: Mib(1) };
        assert_eq!(Limits::of(shape, Accel::Kvm).cpu_quota_us, quota);
    }
}

#[test]
fn a_recorded_group_is_used_only_if_it_can_be_one() {
    let cgroups = chosen("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "cpu memory pids");
    let id = EngineId::random();
    let recorded = |paths: &[String]| {
        let record = VmRecord {
            engine: bhatti_engine::EngineName::Qemu,
            id: id.clone(),
            dir: "/v".into(),
            pid: 1,
            start_ticks: 1,
            host_boot_id: String::new(),
            cgroups: paths.iter().map(Utf8PathBuf::from).collect(),
            memory: None,
            memory_at: Vec::new(),
        };
        cgroups.recorded(&record).paths()
    };
    let todays = [Utf8PathBuf::from(format!("/sys/fs/cgroup/bhatti/{id}"))];
    let former = format!("/sys/fs/cgroup/former/{id}");
    assert_eq!(recorded(std::slice::from_ref(&former)), [Utf8PathBuf::from(former)]);
    for wrong in [&[][..], &["/sys/fs/cgroup".to_owned()], &[format!("/a/../{id}")]] {
        assert_eq!(recorded(wrong), todays, "{wrong:?}");
    }
}

/// Signal 9 to "process 0" would end whoever sends it, and all of his group.
#[test]
fn who_has_no_number_here_is_never_a_number() {
    assert_eq!(Member::parse("0"), Some(Member::Stranger));
    assert_eq!(Member::parse("7"), Some(Member::Pid(7)));
    for nonsense in ["-1", "", "7 8", "4294967296"] {
        assert_eq!(Member::parse(nonsense), None, "{nonsense}");
    }
    // As a group of a former container reads, on a kernel without `cgroup.kill`.
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("cgroup.procs"), "0\n0\n").unwrap();
    let group = Group { places: vec![scratch.path().to_owned()] };
    assert_eq!(group.processes(), [Member::Stranger]);
    group.kill(&group.processes());
}

/// On this host's real hierarchies; needs root.
#[test]
fn a_group_is_bounded_holds_a_process_and_is_cleared() {
    let parent = format!("bhatti-unit-{}", std::process::id());
    let cgroups = Cgroups::prepare(&parent).unwrap();
    let id = EngineId::random();
    let limits = Limits::of(SHAPE, Accel::Tcg);
    let (group, joins) = cgroups.create(&id, limits).unwrap();
    cgroups.create(&id, limits).unwrap_err();
    assert_eq!(cgroups.machines().unwrap(), std::slice::from_ref(&id), "the id stays claimed");

    let (stdin, _held) = io::pipe().unwrap();
    let stdio = [stdin.into(), fork::nothing().unwrap(), fork::nothing().unwrap()];
    let cat = fork::Program::of(&std::process::Command::new("/bin/cat"), stdio).unwrap();
    let born = joins.born.as_ref().map(AsFd::as_fd);
    let pid = fork::start(&cat, born, || {
        joins.procs.iter().try_for_each(|join| Ok(nix::unistd::write(join, b"0").map(drop)?))
    });
    let pid = pid.unwrap();
    assert_eq!(group.processes(), [Member::Pid(pid)]);
    assert_eq!(cgroups.machines().unwrap(), [id]);
    assert!(!group.ran_out_of_memory());

    assert_eq!(group.clear().unwrap(), Cleared::Killed);
    let end = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    assert!(matches!(end, nix::sys::wait::WaitStatus::Signaled(..)), "{end:?}");
    assert_eq!(group.clear().unwrap(), Cleared::Empty);
    assert!(cgroups.machines().unwrap().is_empty());
    cgroups.forget_parent();
}
