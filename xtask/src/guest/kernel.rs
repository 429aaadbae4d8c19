//! The guest's kernel and the modules it needs, out of Debian's cloud kernel package.
//!
//! The kernel is unpacked, so that no boot pays for that: on amd64 it is an ELF file with PVH entry,
//! on arm64 what the kernel's own makefiles call `Image`. It goes by one name on both.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::apt::{self, Apt};
use super::arch::Arch;
use super::stamp::{self, Stamp};
use super::{Cache, Progress, bzimage, cpio, modules};

/// Raise this when the way kernel or modules are made changes.
const RECIPE: &str = "1";

/// The kernel, uncompressed.
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
pub(crate) fn build(
    arch: Arch,
    dir: &Path,
    cache: Cache,
    progress: &mut Progress,
) -> Result<Kernel> {
    let apt = Apt::of(arch, dir)?;
    let package = apt.fresh_enough(|| apt.resolve(&arch.kernel_package(), "linux-image-"))?;
    let wanted: String = modules::WANTED
        .iter()
        .map(|(dir, names)| format!("{dir}: {}; ", names.join(" ")))
        .collect();
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
    let deb = apt.fresh_enough(|| apt.download(&package, scratch.path()))?;
    progress.say("kernel: unpacking");
    let unpacked = scratch.path().join("unpacked");
    crate::process::run_quiet(
        std::process::Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked),
    )?;

    let release = package.name.trim_start_matches("linux-image-");
    let vmlinuz = unpacked.join(format!("boot/vmlinuz-{release}"));
    let image = fs::read(&vmlinuz)
        .with_context(|| format!("failed to read the kernel of {}", package.name))?;
    let kernel = match arch {
        Arch::Amd64 => bzimage::extract_elf(&image)?,
        Arch::Arm64 => checked_arm64(image)?,
    };
    let built = scratch.path().join(VMLINUX);
    fs::write(&built, kernel).with_context(|| format!("failed to write {}", built.display()))?;

    progress.say("kernel: modules");
    // Debian 13 has them below `usr`.
    let places = ["lib/modules", "usr/lib/modules"].map(|at| unpacked.join(at).join(release));
    let place = places.iter().find(|place| place.is_dir());
    let place = place.with_context(|| format!("{} has no modules of {release}", package.name))?;
    let tree = modules::collect(place, scratch.path())?;
    let names = tree.keys().cloned().collect();
    let archive = scratch.path().join(MODULES);
    fs::write(&archive, cpio::archive(&tree))
        .with_context(|| format!("failed to write {}", archive.display()))?;

    let modules = stamp::finish(dir, MODULES, &archive, &key, names)?;
    let vmlinux = stamp::finish(dir, VMLINUX, &built, &key, vec![package.to_string()])?;
    Ok(Kernel { package, vmlinux, modules })
}

/// An arm64 kernel, if it is one that a VMM can start without unpacking it.
fn checked_arm64(image: Vec<u8>) -> Result<Vec<u8>> {
    // The magic number of the boot protocol's header.
    ensure!(
        image.get(56..60) == Some(b"ARM\x64"),
        "the kernel is packed in a way we cannot open (it starts with {:02x?}); an arm64 Image is \
         expected",
        &image[..image.len().min(4)]
    );
    Ok(image)
}

impl std::fmt::Display for apt::Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_arm64_kernel_is_refused() {
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARMd");
        assert_eq!(checked_arm64(image.clone()).expect("plain"), image);
        for packed in [Vec::new(), b"\x1f\x8b\x08\x00".to_vec(), vec![0; 64]] {
            assert!(checked_arm64(packed).is_err());
        }
    }
}
