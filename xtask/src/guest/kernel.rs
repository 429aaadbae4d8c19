//! The guest's kernel and the modules it needs, out of Debian's cloud kernel package.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::stamp::{self, Stamp};
use super::{Cache, Progress, apt, bzimage, cpio, modules};

/// The meta package that always stands for the newest cloud kernel of the release.
pub(crate) const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Raise this when the way kernel or modules are made changes.
const RECIPE: &str = "1";

/// The kernel as an uncompressed PVH ELF file.
pub(crate) const VMLINUX: &str = "vmlinux";
/// The modules as the part of the initramfs that does not change with the agent.
pub(crate) const MODULES: &str = "modules.cpio";

/// What the later steps need to know.
pub(crate) struct Kernel {
    pub(crate) package: apt::Package,
    pub(crate) vmlinux: Stamp,
    pub(crate) modules: Stamp,
}

/// Builds `vmlinux` and the module archive if they are not those of the newest package.
pub(crate) fn build(dir: &Path, cache: Cache, progress: &mut Progress) -> Result<Kernel> {
    let package = apt::fresh_enough(|| apt::resolve(META_PACKAGE, "linux-image-"))?;
    let wanted =
        [modules::WANTED, modules::WANTED_FOR_VSOCK].map(|names| names.join(" ")).join("; ");
    let key = stamp::key([RECIPE, &package.name, &package.version, &wanted]);
    if cache == Cache::Use
        && let Some(vmlinux) = stamp::finished(dir, VMLINUX, &key)
        && let Some(modules) = stamp::finished(dir, MODULES, &key)
    {
        progress.say(&format!("kernel {} is there", package.version));
        return Ok(Kernel { package, vmlinux, modules });
    }

    progress.say(&format!("kernel: downloading {} {}", package.name, package.version));
    let scratch = stamp::scratch(dir)?;
    let deb = apt::fresh_enough(|| apt::download(&package, scratch.path()))?;
    progress.say("kernel: unpacking");
    let unpacked = scratch.path().join("unpacked");
    crate::process::run_quiet(
        std::process::Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked),
    )?;

    let release = package.name.trim_start_matches("linux-image-");
    let vmlinuz = unpacked.join(format!("boot/vmlinuz-{release}"));
    let image = fs::read(&vmlinuz)
        .with_context(|| format!("failed to read the kernel of {}", package.name))?;
    let elf = bzimage::extract_elf(&image)?;
    let built = scratch.path().join(VMLINUX);
    fs::write(&built, elf).with_context(|| format!("failed to write {}", built.display()))?;

    progress.say("kernel: modules");
    let tree = modules::collect(&unpacked.join("lib/modules").join(release), scratch.path())?;
    let names = tree.keys().cloned().collect();
    let archive = scratch.path().join(MODULES);
    fs::write(&archive, cpio::archive(&tree))
        .with_context(|| format!("failed to write {}", archive.display()))?;

    let modules = stamp::finish(dir, MODULES, &archive, &key, names)?;
    let vmlinux = stamp::finish(dir, VMLINUX, &built, &key, vec![package.to_string()])?;
    Ok(Kernel { package, vmlinux, modules })
}

impl std::fmt::Display for apt::Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.version)
    }
}
