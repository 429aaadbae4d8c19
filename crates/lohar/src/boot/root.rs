//! The root disk: finds it, mounts it, grows its file system, makes it `/`.
//!
//! The image is used as it is. Nothing has to be put into it to make it boot; what `lohar`
//! changes (users, host name) lands in the sandbox's own overlay.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::mounts;
use crate::console::report;

/// Where the root disk is mounted before it becomes `/`.
const NEW_ROOT: &str = "/newroot";

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("{device} did not appear within {} s", .patience.as_secs())]
    Missing { device: &'static str, patience: Duration },
    #[error("failed to mount {device} as ext4")]
    Mount {
        device: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("failed to {action}")]
    Switch {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Waits until `path` exists. Devices appear a moment after their driver.
pub fn wait_for_device(path: &'static str, patience: Duration) -> Result<(), RootError> {
    let start = Instant::now();
    while !Path::new(path).exists() {
        if start.elapsed() > patience {
            return Err(RootError::Missing { device: path, patience });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Mounts `device` and grows its file system to the size of the device.
pub fn mount_root(device: &'static str) -> Result<(), RootError> {
    let failed = |source| RootError::Mount { device, source };
    std::fs::create_dir_all(NEW_ROOT).map_err(failed)?;
    // Read before mounting: afterwards the kernel's copy is the truth.
    let wanted = blocks_to_grow_to(Path::new(device));
    let flags = MsFlags::MS_NOATIME;
    let try_mount = |flags| mount(Some(device), NEW_ROOT, Some("ext4"), flags, None::<&str>);
    match try_mount(flags) {
        Ok(()) => {}
        // A machine that can only be read can still be read.
        Err(errno @ (Errno::EROFS | Errno::EACCES)) => {
            report(format_args!("{device} is mounted read-only: {errno}"));
            return try_mount(flags | MsFlags::MS_RDONLY).map_err(|errno| failed(errno.into()));
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    match wanted {
        Ok(Some(blocks)) => {
            if let Err(error) = grow(Path::new(NEW_ROOT), blocks) {
                report(format_args!("{device} keeps its size: {error}"));
            }
        }
        Ok(None) => {}
        Err(error) => report(format_args!("cannot read the size of {device}: {error}")),
    }
    Ok(())
}

/// Makes the mounted disk `/`, with `moved` mounts inside where it has room for them, and empties
/// the initramfs.
pub fn switch_root(moved: &[&str]) -> Result<(), RootError> {
    let failed =
        |action: &'static str| move |source: io::Error| RootError::Switch { action, source };
    for target in moved {
        let inside = Path::new(NEW_ROOT).join(target.trim_start_matches('/'));
        // Not through a link: it would lead out of the new root.
        let outcome = mounts::make_mount_point(&inside).and_then(|()| {
            mount(Some(*target), &inside, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
                .map_err(io::Error::from)
        });
        if let Err(error) = outcome {
            report(format_args!("no {target}: {error}"));
        }
    }
    free_initramfs();
    std::env::set_current_dir(NEW_ROOT).map_err(failed("enter the new root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|errno| failed("move the new root to /")(errno.into()))?;
    std::os::unix::fs::chroot(".").map_err(failed("change root"))?;
    std::env::set_current_dir("/").map_err(failed("enter /"))
}

/// Deletes what the initramfs holds: it is memory, and nobody can reach it any more.
fn free_initramfs() {
    let Ok(own) = std::fs::metadata("/") else { return };
    let Ok(entries) = std::fs::read_dir("/") else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // The new root must survive this: only what lives on the rootfs itself is deleted.
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.dev() != own.dev() {
            continue;
        }
        if meta.is_dir() {
            std::fs::remove_dir_all(&path).ok();
        } else {
            std::fs::remove_file(&path).ok();
        }
    }
}

/// What an ext4 superblock says about size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Superblock {
    blocks: u64,
    block_size: u64,
}

impl Superblock {
    /// Reads it from the first 2 KiB of a device; `None` if this is no ext4.
    fn parse(head: &[u8; 2048]) -> Option<Self> {
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(head.get(1024 + at..1024 + at + 4)?.try_into().ok()?))
        };
        if word(0x38)? & 0xffff != 0xef53 {
            return None;
        }
        const INCOMPAT_64BIT: u32 = 0x80;
        let high = if word(0x60)? & INCOMPAT_64BIT != 0 { word(0x150)? } else { 0 };
        let block_size =
            1024_u64.checked_shl(word(0x18)?).filter(|size| *size <= 65536 && *size >= 1024)?;
        Some(Self { blocks: u64::from(high) << 32 | u64::from(word(0x4)?), block_size })
    }

    /// How many blocks a device of `bytes` could hold, if that is more than there are.
    fn growth(self, bytes: u64) -> Option<u64> {
        let possible = bytes / self.block_size;
        (possible > self.blocks).then_some(possible)
    }
}

fn blocks_to_grow_to(device: &Path) -> io::Result<Option<u64>> {
    let file = File::open(device)?;
    let mut head = [0; 2048];
    file.read_exact_at(&mut head, 0)?;
    let mut end = &file;
    let bytes = io::Seek::seek(&mut end, io::SeekFrom::End(0))?;
    Ok(Superblock::parse(&head).and_then(|superblock| superblock.growth(bytes)))
}

/// The size of a block device such as `vda`, in bytes.
pub fn device_bytes(name: &str) -> io::Result<u64> {
    const SECTOR: u64 = 512;
    let text = std::fs::read_to_string(Path::new("/sys/block").join(name).join("size"))?;
    let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
    Ok(sectors.saturating_mul(SECTOR))
}

/// Grows the file system that is mounted at `mounted` to the size of its `device`, if that has
/// room for more. Blocks.
pub fn grow_mounted(mounted: &Path, device: &Path) -> io::Result<()> {
    // The kernel keeps the superblock of a mounted file system where a reader of the device
    // sees it.
    blocks_to_grow_to(device)?.map_or(Ok(()), |blocks| grow(mounted, blocks))
}

mod ioctl {
    // _IOW('f', 16, __u64): online growth by the kernel itself, so no tool is needed.
    nix::ioctl_write_ptr!(ext4_resize_fs, b'f', 16, u64);
}

fn grow(mounted: &Path, blocks: u64) -> io::Result<()> {
    let root = File::open(mounted)?;
    // SAFETY: the descriptor is an open ext4 directory and the pointer is to a live u64.
    unsafe { ioctl::ext4_resize_fs(root.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u64, log_block_size: u32) -> [u8; 2048] {
        let mut head = [0; 2048];
        let mut put = |at: usize, value: u32| {
            head[1024 + at..1028 + at].copy_from_slice(&value.to_le_bytes())
        };
        put(0x04, blocks as u32);
        put(0x18, log_block_size);
        put(0x38, 0xef53);
        put(0x60, 0x80);
        put(0x150, (blocks >> 32) as u32);
        head
    }

    #[test]
    fn only_a_larger_device_grows() {
        let parsed = Superblock::parse(&superblock(1000, 2)).expect("is ext4");
        assert_eq!(parsed, Superblock { blocks: 1000, block_size: 4096 });
        assert_eq!(parsed.growth(1000 * 4096), None);
        assert_eq!(parsed.growth(1000 * 4096 + 4095), None, "not a whole block more");
        assert_eq!(parsed.growth(1001 * 4096), Some(1001));
        assert_eq!(parsed.growth(0), None);
        let huge = Superblock::parse(&superblock(1 << 33, 2)).expect("is ext4");
        assert_eq!(huge.blocks, 1 << 33);
    }

    #[test]
    fn other_disks_are_not_ext4() {
        assert_eq!(Superblock::parse(&[0; 2048]), None);
        assert_eq!(Superblock::parse(&superblock(1000, 60)), None, "absurd block size");
        assert_eq!(Superblock::parse(&superblock(1000, 200)), None);
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = wait_for_device("/dev/no-such-disk", Duration::ZERO).expect_err("cannot exist");
        assert_eq!(error.to_string(), "/dev/no-such-disk did not appear within 0 s");
    }
}
