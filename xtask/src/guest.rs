//! `cargo xtask guest`: everything a machine boots from, out of the host's own package sources.
//!
//! ```text
//!   apt ──► kernel package ──► vmlinux          (on arm64 what is called Image elsewhere)
//!                          └─► modules ─┐
//!   cargo ──► lohar (static) ───────────┴► initramfs.cpio
//!   mmdebstrap ──► tree ──► mke2fs ──► rootfs-minimal-ARCH.ext4
//! ```
//!
//! Each result is built beside its final name and renamed, so an interrupted build leaves the old
//! one. A stamp holds the key of what went into it; an unchanged key means there is nothing to do.

mod agent;
pub(crate) mod apt;
pub(crate) mod arch;
mod bzimage;
pub(crate) mod cpio;
pub(crate) mod image;
pub(crate) mod initramfs;
pub(crate) mod kernel;
mod manifest;
mod modules;
pub(crate) mod stamp;
mod tree;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::workspace;
use arch::Arch;

/// What the caller of `cargo xtask guest` asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    arch: Arch,
    artefacts: Artefacts,
    cache: Cache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Artefacts {
    All,
    /// Kernel and initramfs: what changes while working on the agent.
    BootOnly,
}

/// Whether results of an earlier run count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    Use,
    Ignore,
}

impl Options {
    /// What a test needs: everything, from the cache where that is up to date.
    pub(crate) const ALL: Self =
        Self { arch: Arch::HOST, artefacts: Artefacts::All, cache: Cache::Use };

    /// Reads the words behind `cargo xtask guest`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::ALL;
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--arch" => {
                    let name = words.next().context("--arch wants a name behind it")?;
                    options.arch = Arch::parse(name)?;
                }
                "--boot-only" => options.artefacts = Artefacts::BootOnly,
                "--refresh" => options.cache = Cache::Ignore,
                other => {
                    bail!("unknown option {other}; there are --arch, --boot-only and --refresh")
                }
            }
        }
        Ok(options)
    }
}

/// Builds what is missing or out of date, says where it is, and gives the directory.
pub(crate) fn build(options: &Options) -> Result<PathBuf> {
    let arch = options.arch;
    let target = workspace::target_dir()?;
    let dir =
        std::env::var_os("BHATTI_GUEST_DIR").map_or_else(|| target.join("guest"), PathBuf::from);
    let dir = arch.directory(&dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("failed to open {}", dir.display()))?;
    let _lock = lock(&dir)?;
    stamp::sweep(&dir)?;

    let mut progress = Progress { started: Instant::now() };
    // First, because it is what may not be had.
    let agent = agent::build(arch, &target, &mut progress)?;
    let kernel = kernel::build(arch, &dir, options.cache, &mut progress)?;
    let image = match options.artefacts {
        Artefacts::All => Some(image::build(arch, &dir, options.cache, &mut progress)?),
        Artefacts::BootOnly => None,
    };
    let initramfs = initramfs::build(&dir, &kernel, &agent, &mut progress)?;
    manifest::write(arch, &dir, &kernel, &agent, &initramfs, image.as_ref())?;
    progress.say(&format!("ready in {}", dir.display()));
    Ok(dir)
}

/// Holds everyone else who builds into the same directory off until we are done.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(".lock");
    let file = File::create(&path).with_context(|| format!("failed to open {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("guest: another build is running; waiting for it");
        file.lock().with_context(|| format!("failed to lock {}", path.display()))?;
    }
    Ok(file)
}

/// Says what is going on, with the seconds since the start.
pub(crate) struct Progress {
    started: Instant,
}

impl Progress {
    fn say(&mut self, what: &str) {
        eprintln!("guest [{:>3}s] {what}", self.started.elapsed().as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_typos_refused() {
        let parsed = Options::parse(&["--boot-only", "--refresh", "--arch", "arm64"]);
        let (arch, artefacts, cache) = (Arch::Arm64, Artefacts::BootOnly, Cache::Ignore);
        assert_eq!(parsed.expect("all exist"), Options { arch, artefacts, cache });
        assert_eq!(Options::parse(&[]).expect("no options are fine"), Options::ALL);
        assert!(Options::parse(&["--arch"]).is_err());
        assert!(Options::parse(&["--bootonly"]).is_err());
    }

    #[test]
    fn a_second_builder_cannot_take_the_lock() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let held = lock(dir.path()).expect("nobody else");
        let other = File::open(dir.path().join(".lock")).expect("the file is there");
        assert!(other.try_lock().is_err());
        drop(held);
        assert!(other.try_lock().is_ok());
    }
}
