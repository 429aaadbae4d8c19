//! Ends the machine: politely to processes, surely to disks.

use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use tokio::time::{Instant, sleep};

use crate::console::report;
use crate::process::{Children, Reaper};

/// How long processes may take to end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// How often to look whether they did.
const TICK: Duration = Duration::from_millis(5);

/// Ends every process, then the machine.
pub async fn power_off(reaper: &Reaper) -> ! {
    signal_all(Signal::SIGTERM);
    // Stopped processes act on SIGTERM only once they run again.
    signal_all(Signal::SIGCONT);
    if wait_for_none(reaper, GRACE).await == Children::Some {
        signal_all(Signal::SIGKILL);
        wait_for_none(reaper, GRACE).await;
    }
    halt()
}

/// Every process but this one and the kernel's.
fn signal_all(signal: Signal) {
    // ESRCH: there is none.
    kill(Pid::from_raw(-1), signal).ok();
}

/// PID 1 inherits every orphan, so no children means no processes.
async fn wait_for_none(reaper: &Reaper, patience: Duration) -> Children {
    let deadline = Instant::now() + patience;
    while reaper.reap() == Children::Some {
        if Instant::now() >= deadline {
            return Children::Some;
        }
        sleep(TICK).await;
    }
    Children::None
}

/// Writes everything out, makes the disks clean, cuts the power.
pub fn halt() -> ! {
    sync();
    unmount_disks();
    sync();
    let Err(error) = reboot(way_out());
    report(format_args!("power-off refused: {error}"));
    // Not reached by a PID 1. Its return would be a kernel panic.
    loop {
        std::thread::park();
    }
}

/// How a machine ends. One without a power switch (Firecracker's) ends when it is reset, which its
/// host announces by naming the way to do it: the keyboard controller.
fn way_out() -> RebootMode {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    match line.split_whitespace().any(|word| word == "reboot=k") {
        true => RebootMode::RB_AUTOBOOT,
        false => RebootMode::RB_POWER_OFF,
    }
}

/// Unmounts file systems on devices, last mounted first, and makes the root read-only.
fn unmount_disks() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in disk_mounts(&mounts).into_iter().rev() {
        if target != "/"
            && let Err(error) = umount2(target.as_str(), MntFlags::empty())
        {
            report(format_args!("{target} stays mounted: {error}"));
        }
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>) {
        report(format_args!("/ stays writable: {error}"));
    }
}

/// The mount points of `/proc/self/mounts` whose source is a device.
fn disk_mounts(mounts: &str) -> Vec<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (source, target) = (fields.next()?, fields.next()?);
            source.starts_with("/dev/").then(|| unescape(target))
        })
        .collect()
}

/// Undoes the `\040` notation of the kernel's mount table.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_are_unmounted() {
        let mounts = "rootfs / rootfs rw 0 0\n/dev/vda / ext4 rw,noatime 0 0\nproc /proc proc rw 0 0\n\
                      /dev/vdb /data\\040dir ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n\n";
        assert_eq!(disk_mounts(mounts), ["/", "/data dir"]);
    }
}
