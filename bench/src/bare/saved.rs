//! A machine written down by hand, and continued from there any number of times.
//!
//! The best that is possible without a daemon: the device state in a file, memory in another that
//! a new machine maps privately, so that nothing is read, copied or checked before it runs. QEMU has
//! no snapshot of that kind, so its memory is copied from outside, as far as it was changed;
//! Firecracker writes all of it itself.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Bare, Control, firecracker, pages};
use crate::subject::MEMORY_MIB;

pub(super) const DEVICES: &str = "devices";
const MEMORY: &str = "memory";
const MEMORY_BYTES: u64 = (MEMORY_MIB as u64) << 20;

/// Where the memory of a saved machine lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// In a sealed file in memory, as a template of clones.
    Memory,
    /// In a file of the scratch directory, as a machine that sleeps.
    Disk,
}

/// A machine that can be continued. Its own disk is below those of the machines that do.
pub(crate) struct Saved {
    pub(super) memory: File,
    path: Utf8PathBuf,
    /// What was copied of its memory.
    pub(crate) bytes: u64,
    _dir: tempfile::TempDir,
}

/// What writing a machine down came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) took: Duration,
    pub(crate) bytes: u64,
}

impl Bare {
    /// Writes the machine down and ends it. Not in its first second and a half: brought back, one that
    /// was younger stands still for that time (`bhatti-lifecycle`'s golden machines wait as long).
    pub(crate) async fn save(mut self, medium: Medium) -> Result<Saved> {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let memory = match medium {
            Medium::Memory => {
                let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
                File::from(memfd_create("bare-memory", flags)?)
            }
            Medium::Disk => create(&self.path.join(MEMORY))?,
        };
        let bytes = self.write_down(&memory).await?;
        if medium == Medium::Memory {
            pages::seal(&memory)?;
        }
        let Self { process, path, dir, .. } = self;
        drop(process); // lets go of the disk
        Ok(Saved { memory, path, bytes, _dir: dir })
    }

    /// Writes what the machine has changed since it was started to the medium, as a freeze does.
    /// It stands afterwards.
    pub(crate) async fn freeze(&mut self) -> Result<Written> {
        let started = Instant::now();
        let memory = create(&self.path.join(MEMORY))?;
        let bytes = self.write_down(&memory).await?;
        memory.sync_all()?;
        File::open(self.path.join(DEVICES))?.sync_all()?;
        Ok(Written { took: started.elapsed(), bytes })
    }

    async fn write_down(&mut self, memory: &File) -> Result<u64> {
        let (devices, pid) = (self.path.join(DEVICES), self.pid()?);
        memory.set_len(MEMORY_BYTES)?;
        self.pause().await?;
        match self.control().await? {
            Control::Qemu(qmp) => {
                qmp.save_devices(&devices).await?;
                pages::copy_changed(pid, MEMORY_BYTES, memory)
            }
            Control::Firecracker(api) => {
                firecracker::save(api, memory).await?;
                Ok(MEMORY_BYTES)
            }
        }
    }
}

impl Saved {
    /// Where its disk is, below those of the machines that continue it, and its device state.
    pub(super) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The device state, open at its beginning.
    pub(super) fn devices(&self) -> Result<File> {
        File::open(self.path.join(DEVICES)).context("cannot open a device state")
    }

    /// The memory, to be inherited by one process.
    pub(super) fn memory(&self) -> Result<OwnedFd> {
        Ok(self.memory.try_clone()?.into())
    }
}

fn create(path: &Utf8Path) -> Result<File> {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true).open(path);
    file.with_context(|| format!("cannot create {path}"))
}
