//! What is mounted where, as tables, and the loop that applies them.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::console::report;

/// Whether the machine can do without a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Required,
    /// Its absence is reported and the boot goes on.
    Optional,
}

/// One line of a mount table.
#[derive(Clone, Copy, Debug)]
pub struct Mount {
    pub source: &'static str,
    pub target: &'static str,
    pub fstype: &'static str,
    pub flags: MsFlags,
    pub data: &'static str,
    /// An option that only newer kernels know, and that others do without.
    pub wish: &'static str,
    pub need: Need,
}

/// A required mount failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to mount {fstype} on {target}")]
pub struct MountError {
    target: PathBuf,
    fstype: &'static str,
    #[source]
    source: io::Error,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const fn need(
    need: Need,
    source: &'static str,
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: &'static str,
) -> Mount {
    Mount { source, target, fstype, flags, data, wish: "", need }
}

/// Mounted in the initramfs and moved to the new root.
pub const EARLY: &[Mount] = &[
    need(Need::Required, "proc", "/proc", "proc", NO_EXEC, ""),
    need(Need::Required, "sysfs", "/sys", "sysfs", NO_EXEC, ""),
    need(Need::Required, "devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755"),
];

/// Mounted in the new root, in this order. None is required: the directories they need are the
/// image's, or its user's doing.
pub const LATE: &[Mount] = &[
    need(
        Need::Optional,
        "devpts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "ptmxmode=0666,gid=5,mode=620",
    ),
    need(Need::Optional, "tmpfs", "/dev/shm", "tmpfs", NO_DEV, "mode=1777"),
    need(Need::Optional, "tmpfs", "/run", "tmpfs", NO_DEV, "mode=0755"),
    need(Need::Optional, "tmpfs", "/tmp", "tmpfs", NO_DEV, "mode=1777"),
    need(Need::Optional, "mqueue", "/dev/mqueue", "mqueue", NO_EXEC, ""),
    Mount {
        // Moving a process to another group, which the agent does, otherwise waits until every
        // CPU has switched tasks.
        wish: "favordynmods",
        ..need(Need::Optional, "cgroup2", "/sys/fs/cgroup", "cgroup2", NO_EXEC, "")
    },
];

/// Applies a table. Stops at the first required mount that fails.
pub fn mount_all(table: &[Mount]) -> Result<(), MountError> {
    for entry in table {
        let outcome = mount_one(entry);
        match (outcome, entry.need) {
            (Ok(()), _) => {}
            (Err(source), Need::Optional) => {
                report(format_args!("no {} on {}: {source}", entry.fstype, entry.target));
            }
            (Err(source), Need::Required) => {
                return Err(MountError {
                    target: entry.target.into(),
                    fstype: entry.fstype,
                    source,
                });
            }
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount) -> io::Result<()> {
    let target = Path::new(entry.target);
    // A link to a directory will do: some images have /tmp elsewhere.
    if !target.is_dir() {
        make_mount_point(target)?;
    }
    let with =
        |data| mount(Some(entry.source), target, Some(entry.fstype), entry.flags, Some(data));
    let wanted = if entry.wish.is_empty() { entry.data } else { entry.wish };
    let outcome = match with(wanted) {
        Err(Errno::EINVAL) if wanted != entry.data => with(entry.data),
        outcome => outcome,
    };
    match outcome {
        // A kernel with CONFIG_DEVTMPFS_MOUNT was faster.
        Err(Errno::EBUSY) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes `path` a directory of its own. A file or a link in its place is moved aside.
pub fn make_mount_point(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".displaced");
            std::fs::rename(path, &aside)?;
            report(format_args!("{} is no directory and was moved aside", path.display()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::fs::create_dir_all(path)
}

/// Hands every controller the kernel has to the groups below the root one.
pub fn enable_controllers() {
    let root = Path::new("/sys/fs/cgroup");
    let Ok(available) = std::fs::read_to_string(root.join("cgroup.controllers")) else {
        return;
    };
    for controller in available.split_ascii_whitespace().take(32) {
        // One write each: a single unavailable controller would otherwise fail them all.
        if let Err(error) =
            std::fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            report(format_args!("no cgroup controller {controller}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sound() {
        let all: Vec<_> = EARLY.iter().chain(LATE).collect();
        for (index, entry) in all.iter().enumerate() {
            assert!(entry.target.starts_with('/') && !entry.target.ends_with('/'), "{entry:?}");
            assert!(
                entry.flags.contains(MsFlags::MS_NOSUID),
                "set-uid files belong to the root disk: {entry:?}"
            );
            for later in &all[index + 1..] {
                assert_ne!(entry.target, later.target);
                assert!(
                    !entry.target.starts_with(&format!("{}/", later.target)),
                    "{} would be hidden by {}",
                    entry.target,
                    later.target
                );
            }
        }
    }

    #[test]
    fn nothing_on_the_sandboxs_own_disk_is_required() {
        assert!(LATE.iter().all(|entry| entry.need == Need::Optional));
    }

    #[test]
    fn what_stands_in_the_way_of_a_mount_is_moved_aside() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("proc"), "a file").unwrap();
        std::os::unix::fs::symlink("/", path("sys")).unwrap();
        std::os::unix::fs::symlink("/no/such/directory", path("dev")).unwrap();
        std::fs::create_dir(path("run")).unwrap();
        std::fs::write(path("run/kept"), "").unwrap();
        for name in ["proc", "sys", "dev", "run", "missing/too"] {
            make_mount_point(&path(name)).unwrap();
            assert!(path(name).symlink_metadata().unwrap().is_dir(), "{name}");
        }
        assert_eq!(std::fs::read_to_string(path("proc.displaced")).unwrap(), "a file");
        assert_eq!(std::fs::read_link(path("sys.displaced")).unwrap(), Path::new("/"));
        assert!(path("run/kept").exists(), "a directory is not touched");
    }

    #[test]
    fn world_writable_mounts_are_sticky() {
        for target in ["/tmp", "/dev/shm"] {
            let entry = LATE.iter().find(|entry| entry.target == target).expect("is in the table");
            assert_eq!((entry.fstype, entry.data), ("tmpfs", "mode=1777"));
            assert!(entry.flags.contains(MsFlags::MS_NODEV));
        }
    }
}
