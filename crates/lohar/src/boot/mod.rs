//! From the kernel's first process to a machine that can serve.
//!
//! ```text
//! early mounts ─▶ modules ─▶ agent port ─▶ root disk ─▶ switch root
//!     (in the initramfs)                                      │
//!     users ◀─ devices, lo, limits ◀─ late mounts ◀───────────┘
//!     (in the sandbox's own disk)
//! ```
//!
//! Each step has a name, which is what the timing file and the error say. A step stops the boot
//! only if nothing could be served without it, and that is decided before the sandbox's own disk
//! matters: once its file system is mounted, whatever is in it or missing from it is reported and
//! passed over, because a user can repair a machine that answers.

pub mod modules;
pub mod mounts;
pub mod root;
pub mod timing;
pub mod users;

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};

use crate::console::{self, Chain, report};
use crate::guest::{GID, Guest, UID};
use crate::process::{Groups, Reaper};
use crate::replace::replace_config;
use crate::serve::{carrier, configure::interface, hold::Hold, vsock};

/// How long a device may take to appear. Generous: emulated machines on a busy host are slow.
const DEVICE_PATIENCE: Duration = Duration::from_secs(20);

/// The disk that `/` is on.
pub const ROOT_DEVICE: &str = "/dev/vda";

/// Descriptors a process may have: soft, hard.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// Why the machine cannot serve; the text names the step.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("step mounts")]
    Mounts(#[from] mounts::MountError),
    #[error("step root disk")]
    Root(#[from] root::RootError),
    #[error("step agent port")]
    Port(#[source] io::Error),
}

/// A booted machine and the way to its host.
#[derive(Debug)]
pub struct Machine {
    pub guest: Arc<Guest>,
    /// Where the host comes from.
    pub port: carrier::Port,
    /// Drivers that can wait, and cost less when they do.
    pub later: Vec<modules::Module>,
}

/// Boots. Must run as PID 1 in an initramfs, once, before any thread exists.
pub fn boot() -> Result<Machine, BootError> {
    let mut timeline = timing::Timeline::default();
    timeline.mark("init");
    mounts::mount_all(mounts::EARLY)?;
    console::attach();
    let loaded = modules::load_all(Path::new("/modules"));
    // The console itself may be a virtio device.
    console::attach();
    let mut later = Vec::new();
    if vsock::has_device() {
        modules::load_all(Path::new("/modules/vsock"));
        later = modules::open_all(Path::new("/modules/later"));
    }
    timeline.mark("modules");
    // While /dev and /sys are where we put them.
    let port = carrier::open_port(DEVICE_PATIENCE)
        .inspect_err(|_| report(format_args!("{loaded} kernel modules are loaded")))
        .map_err(BootError::Port)?;
    timeline.mark("agent port");

    root::wait_for_device(ROOT_DEVICE, DEVICE_PATIENCE)
        .inspect_err(|_| report(format_args!("{loaded} kernel modules are loaded")))?;
    root::mount_root(ROOT_DEVICE)?;
    timeline.mark("root disk");
    let moved: Vec<_> = mounts::EARLY.iter().map(|entry| entry.target).collect();
    root::switch_root(&moved)?;
    timeline.mark("switch root");

    mounts::mount_all(mounts::LATE)?;
    mounts::enable_controllers();
    // After the controllers: each that is handed down moves every process again.
    let groups = Groups::set_up(Path::new("/sys/fs/cgroup"))
        .inspect_err(|error| report(format_args!("nothing can be held: {}", Chain(error))))
        .ok();
    prepare_devices();
    if let Err(error) = interface::up("lo") {
        report(format_args!("no loopback: {error}"));
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1) {
        report(format_args!("open files stay limited: {error}"));
    }
    timeline.mark("mounts");

    let (account, problems) = users::ensure_user(Path::new("/"));
    for problem in &problems {
        report(format_args!("{}", Chain(problem)));
    }
    provide_power_commands(Path::new("/"));
    timeline.mark("users");
    if let Err(error) = write_timing(&timeline) {
        report(format_args!("no boot timing: {error}"));
    }
    // The kernel is told to be quiet: without this, an empty console could mean anything.
    report(format_args!("booted, with {loaded} kernel modules"));
    let mut guest = Guest::new(Arc::new(Reaper::default()), account, (UID, GID));
    guest.hold = Hold::new(groups);
    Ok(Machine { guest: Arc::new(guest), port, later })
}

/// Device nodes and links that programs expect and devtmpfs does not make.
fn prepare_devices() {
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                report(format_args!("no {link}: {error}"));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let fuse = Path::new("/dev/fuse");
    if fuse.exists()
        && let Err(error) = std::fs::set_permissions(fuse, std::fs::Permissions::from_mode(0o666))
    {
        report(format_args!("/dev/fuse stays private: {error}"));
    }
}

const POWER_COMMAND: &str =
    "#!/bin/sh\n# The agent is PID 1 and powers off on SIGTERM.\nkill -TERM 1\n";

/// `poweroff` and its kin, for images that bring none. They signal PID 1, which powers off.
fn provide_power_commands(root: &Path) {
    for name in ["poweroff", "reboot", "halt"] {
        let present = ["sbin", "usr/sbin", "bin", "usr/bin"].iter().any(|dir| {
            // A link counts even if its target is elsewhere: it is the image's own business.
            std::fs::symlink_metadata(root.join(dir).join(name)).is_ok()
        });
        let path = root.join("usr/local/sbin").join(name);
        if present || path.exists() {
            continue;
        }
        // Whole or not at all: a part, left by a full disk, would count as present for ever.
        let outcome = std::fs::create_dir_all(root.join("usr/local/sbin"))
            .and_then(|()| replace_config(&path, POWER_COMMAND, 0o755));
        if let Err(error) = outcome {
            report(format_args!("no {name} command: {error}"));
        }
    }
}

fn write_timing(timeline: &timing::Timeline) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/bhatti")?;
    std::fs::write("/run/bhatti/boot-timing.txt", timeline.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_commands_never_replace_the_images_own() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sbin")).unwrap();
        symlink("/no/such/busybox", root.path().join("sbin/reboot")).unwrap();
        provide_power_commands(root.path());
        let made = root.path().join("usr/local/sbin");
        assert!(made.join("poweroff").exists() && made.join("halt").exists());
        assert!(!made.join("reboot").exists());
        assert_eq!(made.join("halt").metadata().unwrap().permissions().mode() & 0o777, 0o755);
    }
}
