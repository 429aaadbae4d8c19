//! The hierarchies of control groups a host has, of both versions, and what each can bound.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Limits, PERIOD_US, write};

/// What can be bounded, by the name the kernel uses.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// One of them, and what of [`CONTROLLERS`] it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub mount: PathBuf,
    pub version: Version,
    pub controllers: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Version 2 if it has what we need, else version 1 for what it has; and what none of them can bound,
/// in sentences. Pure but for `controllers`, which says what a version 2 mount offers.
pub(super) fn choose(
    mounts: &str,
    controllers: impl Fn(&Path) -> String,
) -> (Vec<Hierarchy>, Vec<String>) {
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
    (hierarchies, warnings)
}

fn wanted<'a>(offered: impl Iterator<Item = &'a str>) -> Vec<&'static str> {
    let offered: Vec<&str> = offered.collect();
    CONTROLLERS.into_iter().filter(|c| offered.contains(c)).collect()
}

impl Hierarchy {
    /// Makes the group of that name, in which machines have theirs.
    pub(super) fn prepare(&self, parent: &str) -> io::Result<()> {
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
    pub(super) fn settings(&self, limits: Limits) -> Vec<(&'static str, String)> {
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
