//! The box's root file system: Debian with what the tests and the VMMs need, and all modules of the
//! kernel the guests have too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::guest::apt::{self, Apt};
use crate::guest::arch::Arch;
use crate::guest::{image, stamp};
use crate::process;

/// The finished file system. It is only ever read.
const ROOT: &str = "root.ext4";
/// Raise this when it is made in another way.
const RECIPE: &str = "1";
const SIZE: &str = "3G";

const PACKAGES: &[&str] = &[
    // `/init` of the box's initramfs, from which its root is mounted.
    "busybox-static",
    "curl",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "nftables",
    "procps",
    "qemu-system-x86",
    "qemu-utils",
    // PID 1: the tests leave orphans on purpose, and somebody has to collect them.
    "tini",
    // The terminal that tests of the shell type into.
    "tmux",
    "util-linux",
    // The file system of what is tested.
    "xfsprogs",
];

/// Mount points; the root is mounted read-only.
const MOUNT_POINTS: [&str; 2] = ["box", "payload"];

/// Builds it if there is none of this recipe and kernel yet.
pub(super) fn build(dir: &Path) -> Result<PathBuf> {
    let sources = Apt::host().fresh_enough(apt::sources)?;
    let (apt, meta) = (Apt::host(), Arch::HOST.kernel_package());
    let package = apt.fresh_enough(|| apt.resolve(&meta, "linux-image-"))?;
    let ingredients = [RECIPE, SIZE, &package.name, &package.version].into_iter();
    let ingredients = ingredients.chain(PACKAGES.iter().chain(&MOUNT_POINTS).copied());
    let key = stamp::key(ingredients.chain(sources.lines.iter().map(String::as_str)));
    let finished = dir.join(ROOT);
    if stamp::finished(dir, ROOT, &key).is_some() {
        return Ok(finished);
    }
    ensure!(image::is_root()?, "building the box needs root: owners are real in it");

    eprintln!("kvm-box: installing Debian {} (two to four minutes, once)", sources.codename);
    let scratch = stamp::scratch(dir)?;
    let root = scratch.path().join("root");
    image::install(&sources, PACKAGES, scratch.path(), &root)?;
    for name in MOUNT_POINTS {
        let path = root.join(name);
        fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
    }
    add_modules(&package, scratch.path(), &root)?;

    eprintln!("kvm-box: writing its file system");
    let built = scratch.path().join(ROOT);
    process::run_quiet(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", "kvm-box", "-d"])
            .arg(&root)
            .arg(&built)
            .arg(SIZE),
    )?;
    stamp::finish(dir, ROOT, &built, &key, vec![package.to_string()])?;
    Ok(finished)
}

/// All of them: in there the kernel loads by itself what an operation turns out to need.
fn add_modules(package: &apt::Package, scratch: &Path, root: &Path) -> Result<()> {
    let apt = Apt::host();
    let deb = apt.fresh_enough(|| apt.download(package, scratch))?;
    let unpacked = scratch.join("kernel");
    process::run_quiet(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
    let from = unpacked.join("lib/modules");
    let to = root.join("usr/lib/modules");
    fs::create_dir_all(&to).with_context(|| format!("failed to create {}", to.display()))?;
    let release = package.name.trim_start_matches("linux-image-");
    fs::rename(from.join(release), to.join(release))
        .with_context(|| format!("{} has no modules of {release}", package.name))?;
    process::run_quiet(Command::new("depmod").arg("--basedir").arg(root).arg(release))
}

/// Takes one file out of the root, without mounting it.
pub(super) fn read(root: &Path, name: &str, scratch: &Path) -> Result<Vec<u8>> {
    let copy = scratch.join("taken");
    process::run_quiet(
        Command::new("debugfs").arg("-R").arg(format!("dump {name} {}", copy.display())).arg(root),
    )?;
    let content = fs::read(&copy).with_context(|| format!("failed to read {}", copy.display()))?;
    ensure!(!content.is_empty(), "there is no {name} in {}", root.display());
    Ok(content)
}
