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

mod group;
mod hierarchy;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bhatti_engine::{Accel, EngineError, Shape, VmRecord};
use bhatti_types::{EngineId, Mib};
use camino::{Utf8Component, Utf8PathBuf};

pub use group::{Cleared, Group, Member};
use hierarchy::{Hierarchy, Version, choose};

/// Threads and processes in one machine's group, beside one for each virtual CPU: a VMM uses at most a
/// dozen of its own.
const MAX_PIDS: u32 = 63;
/// The window in which the CPU quota is counted. Long enough that a short command on a
/// fractional machine runs at full speed.
const PERIOD_US: u64 = 100_000;
/// Added to the quota for the VMM's own work.
const EMULATION_US: u64 = PERIOD_US / 20;

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
        let (hierarchies, warnings) = choose(&mounts, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        });
        if hierarchies.is_empty() {
            return Err(confine("find a control group hierarchy")(io::ErrorKind::NotFound.into()));
        }
        Ok(Self { hierarchies, parent: parent.to_owned(), warnings })
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

    /// Makes the group of a machine, bounded and empty, and opens what a process joins it by. On
    /// failure nothing is left. A group that exists is an error and is not touched, so this also
    /// claims the id.
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

fn confine(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::Confine { what: format!("cannot {what}"), source }
}

fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    // Not `fs::write`: a control file must exist already.
    let mut control = fs::OpenOptions::new().write(true).open(dir.join(file))?;
    io::Write::write_all(&mut control, value.as_bytes())
}
