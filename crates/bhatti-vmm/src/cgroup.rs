//! One control group per machine: its bounds, and the list of its processes.
//!
//! The group is `<hierarchy>/<parent>/<engine id>`. On a host with version 2 that is one
//! directory; on an older or hybrid host it is one in each of the `cpu`, `memory` and `pids`
//! hierarchies. It is made below the root of the hierarchy and not below the daemon's own group,
//! because machines outlive the daemon and its service manager ends what it finds in there.
//!
//! Its paths are part of the machine's record: the next daemon may be told another parent, and
//! must still find the group of a machine that runs.
//!
//! The bounds:
//! - **CPU**: what was bought plus a twentieth of a CPU. The quota covers all threads of the VMM,
//!   and its main thread must go on serving disk, network and us when the guest uses up its
//!   share; a whole vCPU, which cannot use more than one CPU, is then never stopped for it.
//! - **Memory**: the guest's plus [`overhead`].
//! - **Processes**: [`MAX_PIDS`] threads, and one for each virtual CPU.
//!
//! What the host cannot bound is a sentence in [`Cgroups::warnings`], never silence.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bhatti_engine::{Accel, EngineError, Shape, VmRecord};
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Component, Utf8PathBuf};

use crate::process;

/// Threads and processes in one machine's group, beside one for each virtual CPU: a VMM uses at most a
/// dozen of its own.
const MAX_PIDS: u32 = 63;
/// The window in which the CPU quota is counted. Long enough that a short command on a
/// fractional machine runs at full speed.
const PERIOD_US: u64 = 100_000;
/// Added to the quota for the VMM's own work.
const EMULATION_US: u64 = PERIOD_US / 20;
/// How long the kernel may take to empty a group whose processes were killed.
const EMPTY_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// What can be bounded, by the name the kernel uses.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Where groups are made on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    parent: String,
    warnings: Vec<String>,
}

/// Proof that no other daemon uses these control groups. The lock goes with the process.
#[derive(Debug)]
pub struct Claim {
    _lock: Option<fs::File>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    version: Version,
    controllers: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The bounds of one machine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub cpu_quota_us: u64,
    pub memory: u64,
    pub pids: u32,
}

impl Limits {
    /// What a machine of this shape may use.
    pub fn of(shape: Shape, accel: Accel) -> Self {
        Self {
            cpu_quota_us: u64::from(shape.milli_cpus) * PERIOD_US / 1000 + EMULATION_US,
            memory: shape.memory.bytes() + overhead(accel).bytes(),
            pids: MAX_PIDS.saturating_add(shape.vcpus()),
        }
    }
}

/// Memory the VMM needs beside the guest's: measured 48 MiB anonymous under TCG after boot, up to
/// 64 more once its translation buffer is full, and as much page cache as makes disk reads quick.
fn overhead(accel: Accel) -> Mib {
    match accel {
        Accel::Tcg => Mib(256),
        Accel::Kvm | Accel::None => Mib(128),
    }
}

/// The ways into a machine's group, for the process that is to be in it.
#[derive(Debug, Default)]
pub struct Joins {
    /// The group in version 2, which a process can be born into.
    pub(crate) born: Option<OwnedFd>,
    /// `cgroup.procs` of the group in each hierarchy of version 1, open for writing.
    pub(crate) procs: Vec<OwnedFd>,
}

impl Cgroups {
    /// Claims the groups for this process until the value is dropped: two daemons that swept the same
    /// ones would end each other's machines. It holds across namespaces and containers, as the groups
    /// do.
    pub fn claim(&self) -> Result<Claim, EngineError> {
        let Some(hierarchy) = self.hierarchies.first() else { return Ok(Claim { _lock: None }) };
        let path = hierarchy.mount.join(&self.parent);
        let failed = |source| EngineError::Confine {
            what: format!("cannot lock {}", path.display()),
            source,
        };
        let lock = fs::File::open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Claim { _lock: Some(lock) }),
            Err(fs::TryLockError::WouldBlock) => {
                Err(EngineError::Taken { what: format!("the control group {}", self.parent) })
            }
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Finds the hierarchies. Makes nothing.
    pub fn find(parent: &str) -> Result<Self, EngineError> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(confine("read the mounts"))?;
        let cgroups = choose(&mounts, parent, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        });
        if cgroups.hierarchies.is_empty() {
            return Err(confine("find a control group hierarchy")(io::ErrorKind::NotFound.into()));
        }
        Ok(cgroups)
    }

    /// Finds the hierarchies and prepares `parent` in each.
    pub fn prepare(parent: &str) -> Result<Self, EngineError> {
        let cgroups = Self::find(parent)?;
        for hierarchy in &cgroups.hierarchies {
            hierarchy.prepare(parent).map_err(confine("prepare the control groups"))?;
        }
        Ok(cgroups)
    }

    /// Whether all of it is in version 2.
    pub fn is_unified(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.version == Version::Two)
    }

    /// What this host cannot bound.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The group of one machine, whether it exists or not.
    pub fn group(&self, id: &EngineId) -> Group {
        let place = |h: &Hierarchy| h.mount.join(&self.parent).join(id.as_str());
        Group { places: self.hierarchies.iter().map(place).collect() }
    }

    /// The group a machine was put into when it was started, whatever we are told today.
    ///
    /// Clearing a group ends all that is in it, so a path is believed only if it is one
    /// [`Self::group`] could have made; a record without any means the group of today.
    pub fn recorded(&self, record: &VmRecord) -> Group {
        let ours = |path: &&Utf8PathBuf| {
            path.file_name() == Some(record.id.as_str())
                && path.components().all(|part| part != Utf8Component::ParentDir)
        };
        let places: Vec<PathBuf> =
            record.cgroups.iter().filter(ours).map(|path| path.clone().into()).collect();
        if places.is_empty() { self.group(&record.id) } else { Group { places } }
    }

    /// Makes the group of a machine, bounded and empty, and opens what a process joins it by. On failure nothing is left. A group that exists is an error and is not touched, so
    /// this also claims the id.
    pub fn create(&self, id: &EngineId, limits: Limits) -> Result<(Group, Joins), EngineError> {
        let group = self.group(id);
        let mut made = Vec::new();
        match self.try_create(&group, limits, &mut made) {
            Ok(joins) => Ok((group, joins)),
            Err(source) => {
                for place in made {
                    if let Err(error) = fs::remove_dir(place) {
                        tracing::warn!(%error, place = %place.display(), "cannot remove it again");
                    }
                }
                Err(confine("make its control group")(source))
            }
        }
    }

    fn try_create<'a>(
        &self,
        group: &'a Group,
        limits: Limits,
        made: &mut Vec<&'a Path>,
    ) -> io::Result<Joins> {
        let mut joins = Joins::default();
        for (place, hierarchy) in group.places.iter().zip(&self.hierarchies) {
            fs::create_dir(place)?;
            made.push(place);
            for (file, value) in hierarchy.settings(limits) {
                write(place, file, &value)?;
            }
            match hierarchy.version {
                Version::One => {
                    let procs = fs::OpenOptions::new().write(true).open(place.join("cgroup.procs"));
                    joins.procs.push(procs?.into());
                }
                // There is one such hierarchy at most.
                Version::Two => joins.born = Some(fs::File::open(place)?.into()),
            }
        }
        Ok(joins)
    }

    /// Every machine that has a group.
    pub fn machines(&self) -> io::Result<Vec<EngineId>> {
        let mut found = std::collections::BTreeSet::new();
        for hierarchy in &self.hierarchies {
            for entry in fs::read_dir(hierarchy.mount.join(&self.parent))? {
                let name = entry?.file_name();
                // Anything else in there is not ours to touch.
                found.extend(name.to_str().and_then(|n| n.parse::<EngineId>().ok()));
            }
        }
        Ok(found.into_iter().collect())
    }
}

#[cfg(test)]
impl Cgroups {
    /// Removes what [`Self::prepare`] made, which is empty.
    pub(crate) fn forget_parent(&self) {
        for hierarchy in &self.hierarchies {
            fs::remove_dir(hierarchy.mount.join(&self.parent)).unwrap();
        }
    }
}

/// Version 2 if it has what we need, else version 1 for what it has. Pure but for `controllers`,
/// which says what a version 2 mount offers.
fn choose(mounts: &str, parent: &str, controllers: impl Fn(&Path) -> String) -> Cgroups {
    let mut two = None;
    let mut one: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(mount), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mount = PathBuf::from(mount);
        if kind == "cgroup2" && two.is_none() {
            let offered = controllers(&mount);
            let controllers = wanted(offered.split_whitespace());
            two = Some(Hierarchy { mount, version: Version::Two, controllers });
        } else if kind == "cgroup" {
            let mut controllers = wanted(options.split(','));
            // The same hierarchy may be mounted twice.
            controllers.retain(|c| !one.iter().any(|h| h.controllers.contains(c)));
            if !controllers.is_empty() {
                one.push(Hierarchy { mount, version: Version::One, controllers });
            }
        }
    }
    // A controller is either in version 2 or in version 1, so this is never a mixture of equals.
    let mut hierarchies: Vec<Hierarchy> =
        two.iter().filter(|h| !h.controllers.is_empty()).cloned().chain(one).collect();
    if hierarchies.is_empty() {
        // No bounds at all, but at least the list of processes.
        hierarchies.extend(two);
    }
    let missing = |c: &&&str| !hierarchies.iter().any(|h| h.controllers.contains(*c));
    let warnings = CONTROLLERS
        .iter()
        .filter(missing)
        .map(|c| format!("this host has no {c} controller, so machines are not bounded by it"))
        .collect();
    Cgroups { hierarchies, parent: parent.to_owned(), warnings }
}

fn wanted<'a>(offered: impl Iterator<Item = &'a str>) -> Vec<&'static str> {
    let offered: Vec<&str> = offered.collect();
    CONTROLLERS.into_iter().filter(|c| offered.contains(c)).collect()
}

impl Hierarchy {
    fn prepare(&self, parent: &str) -> io::Result<()> {
        let group = self.mount.join(parent);
        fs::create_dir_all(&group)?;
        if self.version == Version::Two && !self.controllers.is_empty() {
            let enable: Vec<String> = self.controllers.iter().map(|c| format!("+{c}")).collect();
            // From the top down to the parent of the machines' groups.
            let mut above: Vec<&Path> =
                group.ancestors().take_while(|p| p.starts_with(&self.mount)).collect();
            above.reverse();
            for level in above {
                write(level, "cgroup.subtree_control", &enable.join(" "))?;
            }
        }
        Ok(())
    }

    /// File and content for each bound this hierarchy keeps.
    fn settings(&self, limits: Limits) -> Vec<(&'static str, String)> {
        let mut settings = Vec::new();
        for controller in &self.controllers {
            let quota = limits.cpu_quota_us;
            match (*controller, self.version) {
                ("cpu", Version::Two) => settings.push(("cpu.max", format!("{quota} {PERIOD_US}"))),
                ("cpu", Version::One) => {
                    settings.push(("cpu.cfs_period_us", PERIOD_US.to_string()));
                    settings.push(("cpu.cfs_quota_us", quota.to_string()));
                }
                ("memory", Version::Two) => {
                    settings.push(("memory.max", limits.memory.to_string()));
                    settings.push(("memory.oom.group", "1".to_owned()));
                }
                ("memory", Version::One) => {
                    settings.push(("memory.limit_in_bytes", limits.memory.to_string()));
                }
                _ => settings.push(("pids.max", limits.pids.to_string())),
            }
        }
        settings
    }
}

/// The group of one machine.
#[derive(Clone, Debug)]
pub struct Group {
    places: Vec<PathBuf>,
}

impl Group {
    /// Of a host without control groups.
    pub fn nowhere() -> Self {
        Self { places: Vec::new() }
    }

    /// Its directories, for the machine's record.
    pub fn paths(&self) -> Vec<Utf8PathBuf> {
        // Hierarchies are mounted by people and named by the kernel: it is all plain text.
        self.places.iter().filter_map(|p| Utf8PathBuf::from_path_buf(p.clone()).ok()).collect()
    }

    /// Processes in it, in any hierarchy. KVM has a thread of the kernel's own for each machine in
    /// there too: nobody can end that, and it goes with the machine.
    pub fn processes(&self) -> Vec<Member> {
        let mut found = std::collections::BTreeSet::new();
        for place in &self.places {
            let procs = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().filter_map(Member::parse));
        }
        found.into_iter().filter(|member| !member.is_the_kernels()).collect()
    }

    /// Whether the kernel has ended a process in it for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        self.places.iter().any(|place| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = fs::read_to_string(place.join(file)).unwrap_or_default();
                text.lines().any(|line| {
                    line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0")
                })
            })
        })
    }

    /// Ends whatever is in it and removes it. Tells whether there was a process.
    ///
    /// Blocks until the kernel has emptied it, at most ten seconds.
    pub fn clear(&self) -> io::Result<Cleared> {
        let deadline = Instant::now() + EMPTY_DEADLINE;
        let mut cleared = Cleared::Empty;
        loop {
            let processes = self.processes();
            if processes.is_empty() && self.remove_directories() {
                return Ok(cleared);
            }
            if !processes.is_empty() {
                cleared = Cleared::Killed;
                self.kill(&processes);
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // The kernel has no event for "empty" that both versions know.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends all that is in it, by way of the group where the kernel can (version 2, from 5.14), which
    /// reaches also who has no number here and confuses nobody with anybody.
    fn kill(&self, processes: &[Member]) {
        let by_group = |place: &PathBuf| write(place, "cgroup.kill", "1").is_ok();
        if !self.places.is_empty() && self.places.iter().all(by_group) {
            return;
        }
        for member in processes {
            let Member::Pid(pid) = *member else { continue };
            // SAFETY: a system call on integers. The pid was read from our own group a moment ago;
            // only the kernel's reuse of it within that moment could mislead us.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    /// True if nothing is left.
    fn remove_directories(&self) -> bool {
        self.places.iter().all(|place| match fs::remove_dir(place) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }
}

/// Who is in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// Somebody of another PID namespace, such as a former container of ours. The kernel shows a 0,
    /// which to `kill` would mean our own process group.
    Stranger,
    Pid(i32),
}

impl Member {
    /// A line of `cgroup.procs`.
    fn parse(line: &str) -> Option<Self> {
        match line.parse::<i32>().ok()? {
            0 => Some(Self::Stranger),
            pid => (pid > 0).then_some(Self::Pid(pid)),
        }
    }

    /// Whether this is a thread of the kernel's own.
    fn is_the_kernels(self) -> bool {
        matches!(self, Self::Pid(pid) if process::is_the_kernels(pid))
    }
}

/// What [`Group::clear`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleared {
    /// At least one process was ended.
    Killed,
    /// There was none.
    Empty,
}

fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    // Not `fs::write`: a control file must exist already.
    let mut control = fs::OpenOptions::new().write(true).open(dir.join(file))?;
    io::Write::write_all(&mut control, value.as_bytes())
}

fn confine(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::Confine { what: format!("cannot {what}"), source }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::fork;

    const SHAPE: Shape = Shape { milli_cpus: 500, memory: Mib(256) };

    fn chosen(mounts: &str, version_two_offers: &str) -> Cgroups {
        choose(mounts, "bhatti", |_| version_two_offers.to_owned())
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
        for (milli_cpus, quota) in [(100, 15_000), (500, 55_000), (1000, 105_000), (2500, 255_000)]
        {
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
}
