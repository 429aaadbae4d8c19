//! Root disks: raw files, each complete by itself.
//!
//! Firecracker knows no layers. So what is a layer elsewhere is a whole copy here: blocks are
//! shared where the file system can (a reflink), and copied without their holes where it cannot.
//! A disk's own file stands for everything below it, which is why merging layers is nothing to do,
//! and why a new disk needs the topmost of the layers it was made from only.
//!
//! Layers of an engine that has real ones are written into one file ([`qcow2`]). What does not fit on
//! the host's disk is refused before anything is copied.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};

use bhatti_engine::{Below, DiskFormat, EngineError, Private, RootDisk};
use bhatti_types::Mib;
use bhatti_vmm::file_error;
use bhatti_vmm::machine_dir::MachineDir;
use camino::{Utf8Path, Utf8PathBuf};
use nix::unistd::Whence;

use crate::config::ROOT_DISK;
use crate::qcow2;

const SECTOR: u64 = 512;
/// No file system fits into less, so what is shorter is no disk.
const LEAST: u64 = 1 << 20;
/// What a copy leaves free of the host's disk. A machine whose write finds no room is told of an error,
/// and its guest may lose what it wrote: so no create may take the last.
const SPARED: u64 = 64 << 20;

/// Makes the disk of a machine in `dir`, owned by `owner`. On failure nothing is left.
pub(crate) fn create(
    below: Below,
    dir: &Utf8Path,
    size: Option<Mib>,
    owner: Private,
) -> Result<RootDisk, EngineError> {
    let Below { base, layers, format, bytes: recorded } = below;
    let (source, layers, over) = match (format, layers.last()) {
        (DiskFormat::Raw, Some(whole)) => (whole.clone(), vec![whole.clone()], Vec::new()),
        (DiskFormat::Raw, None) => (base.clone(), Vec::new(), Vec::new()),
        (DiskFormat::Qcow2, _) => (base.clone(), Vec::new(), open_layers(&layers)?),
    };
    let from = File::open(&source).map_err(file_error("open", &source))?;
    let whole = check(&from).map_err(file_error("use", &source))?;
    let refuse = |why: String| {
        let refused = io::Error::new(io::ErrorKind::InvalidData, why);
        file_error("make a disk on", &source)(refused)
    };
    let had = over.last().map_or(whole, qcow2::Layer::bytes);
    // It was made that way; and a machine gets the size that was bought, whatever a layer says.
    if !over.is_sorted_by_key(qcow2::Layer::bytes)
        || over.first().is_some_and(|o| o.bytes() < whole)
    {
        return Err(refuse("a layer is smaller than what it lies on".to_owned()));
    }
    if let Some(recorded) = recorded.filter(|recorded| *recorded != had) {
        return Err(refuse(format!("it has {had} bytes and was made with {recorded}")));
    }
    let bytes = match size {
        Some(asked) if asked.bytes() < had => {
            let (asked_mib, image_mib) = (u64::from(asked.0), had.div_ceil(1 << 20));
            return Err(EngineError::DiskTooSmall { asked_mib, image_mib });
        }
        Some(asked) => asked.bytes(),
        None => had,
    };
    let file = dir.join(ROOT_DISK);
    let to = new_file(&file).map_err(file_error("make", &file))?;
    let above = over.iter().map(qcow2::Layer::allocated).sum();
    let make = || -> Result<(), NotCopied> {
        copy(&from, &to, above)?;
        to.set_len(bytes)?;
        qcow2::flatten(&over, &to)?;
        Ok(fchown(&to, Some(owner.uid), Some(owner.gid))?)
    };
    match make() {
        Ok(()) => {
            let (base, bytes) = (Some(base), Some(bytes));
            Ok(RootDisk { file, base, layers, bytes, format: DiskFormat::Raw })
        }
        Err(error) => {
            std::fs::remove_file(&file).ok();
            Err(error.about("make a disk", file))
        }
    }
}

/// Why a disk was not copied.
enum NotCopied {
    /// It needs that many bytes, and so many are free.
    NoRoom {
        needed: u64,
        free: u64,
    },
    Io(io::Error),
}

impl NotCopied {
    fn about(self, action: &'static str, path: Utf8PathBuf) -> EngineError {
        match self {
            Self::NoRoom { needed, free } => {
                EngineError::NoSpace { needed_mib: needed.div_ceil(1 << 20), free_mib: free >> 20 }
            }
            Self::Io(source) => EngineError::File { action, path, source },
        }
    }
}

impl From<io::Error> for NotCopied {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Opens layers that are overlays, the lowest first.
fn open_layers(layers: &[Utf8PathBuf]) -> Result<Vec<qcow2::Layer>, EngineError> {
    let open = |path: &Utf8PathBuf| {
        let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
        opened.and_then(qcow2::Layer::open).map_err(file_error("use disk layer", path))
    };
    layers.iter().map(open).collect()
}

/// Whether this can be a disk, and how large it is.
pub(crate) fn check(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    match metadata.len() {
        _ if !metadata.is_file() => refuse("not a regular file"),
        bytes if bytes < LEAST || bytes % SECTOR != 0 => refuse("not a disk image"),
        bytes => Ok(bytes),
    }
}

/// Opens the disk of a machine, which its VMM may have replaced.
pub(crate) fn open_own(disk: &RootDisk, dir: &MachineDir) -> Result<(File, u64), EngineError> {
    let refuse = |why: &'static str| {
        file_error("use", &disk.file)(io::Error::new(io::ErrorKind::InvalidInput, why))
    };
    if disk.file != dir.path().join(ROOT_DISK) {
        return Err(refuse("not the machine's own disk"));
    }
    let file = dir.open_file(ROOT_DISK).map_err(file_error("open", &disk.file))?;
    let bytes = check(&file).map_err(file_error("use", &disk.file))?;
    if disk.bytes.is_some_and(|expected| expected != bytes) {
        return Err(refuse("it has another size than it was made with"));
    }
    Ok((file, bytes))
}

/// Keeps what the disk of a machine that stands holds now as a layer of its own: root's, read-only.
/// Whole or not there; one that is there already is made anew.
pub(crate) fn seal(
    disk: &RootDisk,
    dir: &MachineDir,
    sealed: &Utf8Path,
) -> Result<RootDisk, EngineError> {
    let (from, bytes) = open_own(disk, dir)?;
    let partial = sealed.with_extension("partial");
    let make = || -> Result<(), NotCopied> {
        std::fs::remove_file(&partial).or_else(absent_is_fine)?;
        let to = new_file(&partial)?;
        copy(&from, &to, 0)?;
        to.set_len(bytes)?;
        to.set_permissions(std::fs::Permissions::from_mode(0o400))?;
        Ok(std::fs::rename(&partial, sealed)?)
    };
    if let Err(error) = make() {
        std::fs::remove_file(&partial).ok();
        return Err(error.about("make a disk layer", sealed.to_owned()));
    }
    let mut sealed_disk = disk.clone();
    sealed_disk.layers.push(sealed.to_owned());
    sealed_disk.bytes = Some(bytes);
    Ok(sealed_disk)
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn new_file(path: &Utf8Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path)
}

/// Copies a file into an empty one: by reference if the file system can, else without its holes. Refuses
/// if that, and what will be written over it, leaves too little room.
fn copy(from: &File, to: &File, more: u64) -> Result<(), NotCopied> {
    // SAFETY: a system call on integers.
    let shared = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    let metadata = from.metadata()?;
    let own = if shared == 0 { 0 } else { metadata.blocks().saturating_mul(SECTOR) };
    let needed = own.saturating_add(more);
    let place = nix::sys::statvfs::fstatvfs(to).map_err(io::Error::from)?;
    let free = place.blocks_available().saturating_mul(place.fragment_size());
    if free < needed.saturating_add(SPARED) {
        return Err(NotCopied::NoRoom { needed, free });
    }
    if shared == 0 {
        return Ok(());
    }
    to.set_len(metadata.size())?;
    let (mut from, mut to, mut at) = (from, to, 0);
    while let Some((start, end)) = next_data(from, at)? {
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        // Between two files this is done in the kernel, at less than half the price.
        let copied = io::copy(&mut from.take(end - start), &mut to)?;
        if copied < end - start {
            let why = "it became shorter while it was copied";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why).into());
        }
        at = end;
    }
    Ok(())
}

/// The next stretch of a file, from `at` on, that is no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let at = i64::try_from(at).map_err(io::Error::other)?;
    let start = match nix::unistd::lseek(file, at, Whence::SeekData) {
        Err(nix::errno::Errno::ENXIO) => return Ok(None),
        other => other?,
    };
    let end = nix::unistd::lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start.unsigned_abs(), end.unsigned_abs())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    const OWNER: Private = Private { uid: 64123, gid: 64123 };

    fn scratch() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().to_owned();
        (dir, path)
    }

    /// 8 MiB with a little at its ends and in the middle.
    fn image(path: &Utf8Path) -> File {
        let image = new_file(path).unwrap();
        image.set_len(8 << 20).unwrap();
        for at in [0, (4 << 20) + 12, (8 << 20) - 4] {
            image.write_all_at(b"data", at).unwrap();
        }
        image
    }

    #[test]
    fn a_copy_is_equal_and_keeps_its_holes() {
        let (_keep, dir) = scratch();
        let base = dir.join("base");
        image(&base);
        let below = Below::image(base.clone());
        let disk = create(below.clone(), &dir, Some(Mib(16)), OWNER).unwrap();
        assert_eq!(disk.bytes, Some(16 << 20));
        let (was, is) = (std::fs::read(&base).unwrap(), std::fs::read(&disk.file).unwrap());
        assert!(is.starts_with(&was) && is[was.len()..].iter().all(|byte| *byte == 0));
        assert!(disk.file.metadata().unwrap().blocks() * 512 < 1 << 20, "it has holes");
        assert_eq!(disk.file.metadata().unwrap().uid(), OWNER.uid);
        // There is one already.
        create(below.clone(), &dir, None, OWNER).unwrap_err();
        let (_keep, other) = scratch();
        let small = create(below, &other, Some(Mib(4)), OWNER).unwrap_err();
        assert!(matches!(small, EngineError::DiskTooSmall { asked_mib: 4, image_mib: 8 }));
        assert!(!other.join(ROOT_DISK).exists());
    }

    #[test]
    fn a_sealed_layer_does_not_change_with_the_disk() {
        let (_keep, dir) = scratch();
        let base = dir.join("base");
        image(&base);
        let disk = create(Below::image(base), &dir, None, OWNER).unwrap();
        let machine = MachineDir::open(&dir).unwrap();
        for round in 0..2 {
            let sealed = seal(&disk, &machine, &dir.join("layer")).unwrap();
            assert_eq!(sealed.layers, [dir.join("layer")], "{round}");
            let before = std::fs::read(&sealed.layers[0]).unwrap();
            assert_eq!(before, std::fs::read(&disk.file).unwrap());
            let own = File::options().write(true).open(&disk.file).unwrap();
            own.write_all_at(b"later", 1 << 20).unwrap();
            assert_eq!(std::fs::read(&sealed.layers[0]).unwrap(), before);
        }
        // A disk can be made from it.
        let (_keep, other) = scratch();
        let (layers, format) = (vec![dir.join("older"), dir.join("layer")], DiskFormat::Raw);
        let below = Below { layers, format, ..Below::image(dir.join("base")) };
        let heir = create(below, &other, None, OWNER).unwrap();
        assert_eq!(heir.layers, [dir.join("layer")], "the older one need not even exist");
        assert_eq!(std::fs::read(heir.file).unwrap(), std::fs::read(&disk.file).unwrap());
    }

    /// The last room is not taken: a guest that writes would find none. Needs root.
    #[test]
    fn what_does_not_fit_is_refused_before_it_is_copied() {
        let (_keep, place) = scratch();
        let mount = |size: &str| {
            let mounted = std::process::Command::new("mount")
                .args(["-t", "tmpfs", "-o", size, "none", place.as_str()])
                .status();
            assert!(mounted.unwrap().success());
        };
        mount("size=80m");
        let _mounted = Mounted(place.clone());
        let base = place.join("base");
        let image = new_file(&base).unwrap();
        image.set_len(256 << 20).unwrap();
        image.write_all_at(&[1; 6 << 20], 0).unwrap();
        // 74 MiB are free, of which 6 are taken: the holes need none.
        let disk = create(Below::image(base.clone()), &place, None, OWNER).unwrap();
        assert_eq!(disk.bytes, Some(256 << 20));
        // Now 62 would be left.
        let other = place.join("other");
        std::fs::create_dir(&other).unwrap();
        let refused = create(Below::image(base), &other, None, OWNER).unwrap_err();
        assert!(matches!(refused, EngineError::NoSpace { needed_mib: 6, .. }), "{refused:?}");
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), 0);
        let machine = MachineDir::open(&place).unwrap();
        let refused = seal(&disk, &machine, &place.join("layer")).unwrap_err();
        assert!(matches!(refused, EngineError::NoSpace { needed_mib: 6, .. }), "{refused:?}");
        assert!(!place.join("layer").exists() && !place.join("layer.partial").exists());
    }

    /// Unmounted when the test ends, however that is.
    struct Mounted(camino::Utf8PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
        }
    }

    /// A disk that came from an engine with layers: the chain is checked as a whole.
    #[test]
    fn overlays_become_one_file() {
        let (_keep, dir) = scratch();
        let (base, layer) = (dir.join("base"), dir.join("layer"));
        image(&base);
        let make = |bytes: &str| {
            let made = std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", layer.as_str(), bytes])
                .status();
            assert!(made.expect("qemu-img is installed (Debian: qemu-utils)").success());
        };
        make("16M");
        let below = Below { layers: vec![layer.clone()], ..Below::image(base.clone()) };
        let other = Below { bytes: Some(8 << 20), ..below.clone() };
        assert!(create(other, &dir, None, OWNER).is_err(), "another size than is recorded");
        assert!(!dir.join(ROOT_DISK).exists());
        let disk = create(below.clone(), &dir, None, OWNER).unwrap();
        assert_eq!(
            (disk.layers.len(), disk.bytes, disk.format),
            (0, Some(16 << 20), DiskFormat::Raw)
        );
        let (was, is) = (std::fs::read(&base).unwrap(), std::fs::read(&disk.file).unwrap());
        assert!(is.starts_with(&was) && is.len() == 16 << 20);
        std::fs::remove_file(&disk.file).unwrap();
        make("4M");
        assert!(create(below, &dir, None, OWNER).is_err(), "smaller than the image");
        assert!(!dir.join(ROOT_DISK).exists());
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let (_keep, dir) = scratch();
        let file = dir.join(ROOT_DISK);
        let format = DiskFormat::Raw;
        let disk =
            RootDisk { file: file.clone(), base: None, layers: Vec::new(), bytes: None, format };
        let machine = MachineDir::open(&dir).unwrap();
        assert!(open_own(&disk, &machine).is_err(), "there is none");
        std::fs::write(&file, "this is no disk image").unwrap();
        assert!(open_own(&disk, &machine).is_err());
        std::fs::remove_file(&file).unwrap();
        image(&file);
        assert_eq!(open_own(&disk, &machine).unwrap().1, 8 << 20);
        let other = RootDisk { bytes: Some(4 << 20), ..disk.clone() };
        assert!(open_own(&other, &machine).is_err(), "another size");
        let other = RootDisk { file: "/etc/passwd".into(), ..disk };
        assert!(open_own(&other, &machine).is_err(), "not its own");
    }
}
