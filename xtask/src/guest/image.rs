//! The `minimal` image: Debian with what an agent expects to find, as one ext4 file.
//!
//! Promises: the same packages give the same bytes; nothing is mounted on the host; what the host
//! is called, how it resolves names and who it is are not in the image.
//!
//! For another architecture than the host's the packages are unpacked and no more: to configure
//! them is to run their programs. Such an image does for tests; one for use is built where it is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};

use super::apt::{self, Apt};
use super::arch::Arch;
use super::stamp::{self, Stamp};
use super::{Cache, Progress, tree};
use crate::process;

/// The finished image.
pub(crate) fn name(arch: Arch) -> String {
    format!("rootfs-minimal-{}.ext4", arch.debian())
}

/// Raise this when the image is made in another way.
const RECIPE: &str = "1";

const PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "git",
    "iproute2",
    "iputils-ping",
    "procps",
    "python3",
    "sudo",
    "vim-tiny",
];

/// What dpkg leaves out. Licences stay: Debian's terms ask for them.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/bug/*",
];
const INCLUDED: &[&str] = &["/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias"];

/// Apparent size. A sandbox that asks for more grows its own overlay.
const SIZE: &str = "2G";
/// When everything in the image that has no time of its own happened: 2026-01-01.
pub(crate) const EPOCH: i64 = 1_767_225_600;
const UUID: &str = "8f3c5a52-6d0b-4a57-9d5e-0b6a74746901";
const HASH_SEED: &str = "8f3c5a52-6d0b-4a57-9d5e-0b6a74746902";

/// Spelled out, because the defaults are the host's and differ between releases of e2fsprogs.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
                        flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,\
                        metadata_csum";
const MKE2FS_CONFIG: &str = "[defaults]\n\tbase_features = none\n\
                             [fs_types]\n\text4 = {\n\t\tinode_size = 256\n\t}\n";

/// Builds the image if there is none of this recipe yet.
pub(crate) fn build(
    arch: Arch,
    dir: &Path,
    cache: Cache,
    progress: &mut Progress,
) -> Result<Stamp> {
    let name = name(arch);
    let sources = Apt::host().fresh_enough(apt::sources)?;
    let ingredients = [RECIPE, SIZE, FEATURES].into_iter();
    let ingredients = ingredients.chain(PACKAGES.iter().copied());
    let ingredients = ingredients.chain(EXCLUDED.iter().chain(INCLUDED).copied());
    let key = stamp::key(ingredients.chain(sources.lines.iter().map(String::as_str)));
    if cache == Cache::Use
        && let Some(stamp) = stamp::finished(dir, &name, &key)
    {
        progress.say("image is there");
        return Ok(stamp);
    }
    ensure!(is_root()?, "building the image needs root: owners and devices are real in it");

    let scratch = stamp::scratch(dir)?;
    let root = scratch.path().join("root");
    progress.say(&format!("image: installing Debian {} (one to three minutes)", sources.codename));
    let begun = SystemTime::now();
    let packages = if arch == Arch::HOST {
        install(&sources, PACKAGES, scratch.path(), &root)?;
        tree::add_user(&root)?;
        tree::installed_packages(&root)?
    } else {
        progress.say("image: of another architecture, so its packages are not configured");
        unpack_foreign(arch, &sources, PACKAGES, scratch.path(), &root)?;
        tree::stand_in_for_configuration(&root)?;
        PACKAGES.iter().map(|&package| package.to_owned()).collect()
    };
    progress.say("image: tidying");
    tree::settle(&root, begun, EPOCH)?;
    progress.say("image: writing the file system");
    let built = scratch.path().join(&name);
    make_filesystem(&root, SIZE, scratch.path(), &built)?;
    progress.say("image: checking");
    process::run_quiet(Command::new("e2fsck").arg("-fn").arg(&built))?;
    stamp::finish(dir, &name, &built, &key, packages)
}

/// Installs Debian into a directory.
pub(crate) fn install(
    sources: &apt::Sources,
    packages: &[&str],
    scratch: &Path,
    root: &Path,
) -> Result<()> {
    let mut command = mmdebstrap(Arch::HOST, sources, scratch)?;
    command.arg("--variant=minbase").arg(format!("--include={}", packages.join(",")));
    process::run_quiet(command.arg(&sources.codename).arg(root).arg(list_in(scratch)))
}

/// Unpacks a package and all it depends on into a directory, the newest there are, backports
/// included. Nothing of it is run.
pub(crate) fn unpack(
    sources: &apt::Sources,
    package: &str,
    scratch: &Path,
    root: &Path,
) -> Result<()> {
    let mut command = mmdebstrap(Arch::HOST, &sources.with_backports()?, scratch)?;
    command.arg("--variant=extract").arg(format!("--include={package}"));
    command.arg(format!("--aptopt=APT::Default-Release \"{}\"", sources.backports()));
    process::run_quiet(command.arg(&sources.codename).arg(root).arg(list_in(scratch)))
}

/// Unpacks packages of another architecture, what they depend on and what every Debian has, into a
/// directory. Nothing of them can be run here.
fn unpack_foreign(
    arch: Arch,
    sources: &apt::Sources,
    packages: &[&str],
    scratch: &Path,
    root: &Path,
) -> Result<()> {
    let mut command = mmdebstrap(arch, sources, scratch)?;
    command.args(["--variant=extract", "--include=?essential"]);
    command.arg(format!("--include={}", packages.join(",")));
    process::run_quiet(command.arg(&sources.codename).arg(root).arg(list_in(scratch)))
}

fn list_in(scratch: &Path) -> PathBuf {
    scratch.join("sources.list")
}

/// With what all uses have in common. It gets a mount namespace of its own, so that an interrupted
/// run leaves no mount of the host's `/dev` below a directory we then delete.
fn mmdebstrap(arch: Arch, sources: &apt::Sources, scratch: &Path) -> Result<Command> {
    let list = list_in(scratch);
    fs::write(&list, sources.lines.join("\n") + "\n")
        .with_context(|| format!("failed to write {}", list.display()))?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--"])
        .args(["mmdebstrap", "--quiet", "--mode=root"])
        .arg("--format=directory")
        .arg(format!("--architectures={}", arch.debian()))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        .args(INCLUDED.iter().map(|path| format!("--dpkgopt=path-include={path}")));
    for option in apt::transport_options()? {
        command.arg(format!("--aptopt={option}"));
    }
    // Python would write slower byte code if it thought somebody wants a reproducible build; with
    // package times as they are, the fast kind is reproducible too.
    command.env_remove("SOURCE_DATE_EPOCH").env("LC_ALL", "C.UTF-8");
    Ok(command)
}

/// Writes the tree into a sparse file.
fn make_filesystem(root: &Path, size: &str, scratch: &Path, image: &Path) -> Result<()> {
    let config = scratch.join("mke2fs.conf");
    fs::write(&config, MKE2FS_CONFIG)
        .with_context(|| format!("failed to write {}", config.display()))?;
    // Inode tables are written as holes now. Left for later, every running guest would zero them
    // in the background, into its own overlay.
    let extended = format!(
        "hash_seed={HASH_SEED},root_owner=0:0,nodiscard,lazy_itable_init=0,lazy_journal_init=1"
    );
    let reproducible = |tool: &str| {
        let mut command = Command::new(tool);
        command
            .env("MKE2FS_CONFIG", &config)
            .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string())
            .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
            .env("LC_ALL", "C");
        command
    };
    process::run_quiet(
        reproducible("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", FEATURES, "-b", "4096", "-I", "256"])
            .args(["-i", "16384", "-m", "1", "-J", "size=32"])
            .args(["-L", "bhatti-minimal", "-U", UUID, "-E", &extended, "-d"])
            .arg(root)
            .arg(image)
            .arg(size),
    )?;

    // The change time of a file cannot be set, and mke2fs copies it; set it in the image. Inodes
    // are handed out in order: the root has number 2, the first free one number 11.
    let header = process::output(Command::new("dumpe2fs").arg("-h").arg(image))?;
    let last = used_inodes(&header).context("dumpe2fs does not say how many inodes are used")?;
    let script: String = std::iter::once(2)
        .chain(11..=last)
        .map(|inode| format!("sif <{inode}> ctime @{EPOCH}\nsif <{inode}> atime @{EPOCH}\n"))
        .collect();
    let script_path = scratch.join("times");
    fs::write(&script_path, script)
        .with_context(|| format!("failed to write {}", script_path.display()))?;
    process::run_quiet(reproducible("debugfs").arg("-w").arg("-f").arg(&script_path).arg(image))
}

fn used_inodes(header: &str) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        header.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    number("Inode count:")?.checked_sub(number("Free inodes:")?)
}

pub(crate) fn is_root() -> Result<bool> {
    Ok(process::output(Command::new("id").arg("-u"))?.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_inodes_come_from_the_header() {
        let header = "Inode count:              131072\nFree inodes:              122465\n";
        assert_eq!(used_inodes(header), Some(8607));
        assert_eq!(used_inodes("Inode count: 1\n"), None);
        assert_eq!(used_inodes("Inode count: 1\nFree inodes: 2\n"), None);
    }

    #[test]
    fn a_small_tree_becomes_the_same_image_twice() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("created");
        let mut hashes = Vec::new();
        for (round, content) in ["one", "one", "two"].into_iter().enumerate() {
            // Removed and written anew: other change times, another inode on the host.
            let file = root.join("etc/hostname");
            fs::write(&file, content).expect("written");
            let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            for path in [&file, &root.join("etc"), &root] {
                fs::File::open(path).and_then(|f| f.set_times(time)).expect("times set");
            }
            let image = scratch.path().join(format!("{round}.ext4"));
            make_filesystem(&root, "256M", scratch.path(), &image).expect("mke2fs works");
            process::run_quiet(Command::new("e2fsck").arg("-fn").arg(&image)).expect("sound");
            hashes.push(stamp::file_hash(&image).expect("readable"));
            fs::remove_file(&file).expect("removed");
        }
        assert_eq!(hashes[0], hashes[1]);
        assert_ne!(hashes[1], hashes[2]);
    }
}
