//! Root disks: a qcow2 overlay over a read-only raw image, written without starting a program.
//!
//! Between the two may lie sealed layers: overlays of former times, which nobody writes any more.
//! The one on top is called `root.qcow2`; when it is sealed the next is `root-1.qcow2`, and so on
//! ([`TopName`]). No name is used twice while a VMM lives, because it opens files by name.
//!
//! ```text
//! cluster  0       1               2                3 …
//!          header  refcount table  refcount block   L1 table (all zero: nothing written yet)
//! ```
//!
//! Layers of an engine whose disks are whole files ([`DiskFormat::Raw`]) are no layers here: the
//! topmost takes the place of the image, and the others are not needed.
//!
//! The header names no backing file (or one with an empty name, which is none, after a merge); the
//! command line says what lies below, and QEMU takes its word over a header's. The VMM may rewrite
//! its file, header included, so before each boot [`check_overlay`] refuses what could make the
//! next one use anything else: a backing file, an external data file, encryption, another size.
//! Only the metadata exists; the tests have `qemu-img check` judge it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use bhatti_engine::{Below, DiskFormat, EngineError, Private, RootDisk};
use bhatti_types::Mib;
use camino::{Utf8Path, Utf8PathBuf};

/// Sealed layers below one disk. Each costs a VMM two of the descriptors it may have, and each
/// read of an untouched block a look.
pub(crate) const MAX_LAYERS: usize = 32;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of guest disk one L1 entry covers: a whole L2 table of clusters.
const L1_ENTRY_COVERS: u64 = CLUSTER * (CLUSTER / 8);
const SECTOR: u64 = 512;
/// Below this a new sandbox could not even write its logs.
const HOPELESS: Mib = Mib(64);

/// What the top layer is called: the file in the machine's directory and the node in the VMM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TopName(u32);

impl TopName {
    /// Of a new disk.
    pub(crate) fn first() -> Self {
        Self(0)
    }

    /// Of the layer that comes on top of this one.
    pub(crate) fn next(&self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Out of a file's name; `None` if we never gave that.
    pub(crate) fn of(file: &Utf8Path) -> Option<Self> {
        let number = match file.file_name()?.strip_prefix("root")?.strip_suffix(".qcow2")? {
            "" => 0,
            rest => rest.strip_prefix('-')?.parse().ok()?,
        };
        // "root-01" and "root-0" are names we do not give.
        let name = Self(number);
        (file.file_name() == Some(&name.file())).then_some(name)
    }

    pub(crate) fn file(&self) -> String {
        format!("{}.qcow2", self.node())
    }

    pub(crate) fn node(&self) -> String {
        match self.0 {
            0 => "root".to_owned(),
            number => format!("root-{number}"),
        }
    }
}

/// Makes the overlay in `dir`, owned by `owner`. On failure nothing is left.
pub(crate) fn create(
    below: Below,
    dir: &Utf8Path,
    size: Option<Mib>,
    owner: Private,
) -> Result<RootDisk, EngineError> {
    let recorded = below.bytes;
    let Below { base, layers, .. } = on_qcow2(below);
    let mut below_bytes = image_size(&base)?;
    for layer in &layers {
        // A layer may be larger than what it lies on, never smaller: it was made that way.
        below_bytes = open_layer(layer)?.1;
    }
    if let Some(recorded) = recorded.filter(|recorded| *recorded != below_bytes) {
        let why = format!("it has {below_bytes} bytes and was made with {recorded}");
        return Err(EngineError::File {
            action: "make a disk on",
            path: layers.last().unwrap_or(&base).clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, why),
        });
    }
    if layers.len() > MAX_LAYERS {
        let why = format!("more than {MAX_LAYERS} layers");
        return Err(EngineError::File {
            action: "put another layer on",
            path: layers.last().unwrap_or(&base).clone(),
            source: io::Error::new(io::ErrorKind::InvalidInput, why),
        });
    }
    let bytes = virtual_size(below_bytes, size)?;
    let free = free_space(dir)?;
    if free < HOPELESS {
        return Err(EngineError::NoSpace {
            needed_mib: u64::from(HOPELESS.0),
            free_mib: u64::from(free.0),
        });
    }
    let file = create_overlay(dir, &TopName::first(), bytes, owner)?;
    Ok(RootDisk { file, base: Some(base), layers, bytes: Some(bytes), format: DiskFormat::Qcow2 })
}

/// The same disk with layers that are overlays, if it has any.
fn on_qcow2(below: Below) -> Below {
    match (below.format, below.layers.last()) {
        (DiskFormat::Raw, Some(whole)) => {
            Below { bytes: below.bytes, ..Below::image(whole.clone()) }
        }
        (DiskFormat::Raw, None) | (DiskFormat::Qcow2, _) => below,
    }
}

/// Makes an empty overlay of that name. On failure nothing is left.
pub(crate) fn create_overlay(
    dir: &Utf8Path,
    name: &TopName,
    bytes: u64,
    owner: Private,
) -> Result<Utf8PathBuf, EngineError> {
    let path = dir.join(name.file());
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|source| EngineError::File { action: "create", path: path.clone(), source })?;
    let written = write_overlay(&file, bytes)
        .and_then(|()| std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid)));
    if let Err(source) = written {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, %path, "cannot remove a half-made disk");
        }
        return Err(EngineError::File { action: "write", path, source });
    }
    Ok(path)
}

/// Opens a sealed layer; also gives the size of its device.
pub(crate) fn open_layer(path: &Utf8Path) -> Result<(File, u64), EngineError> {
    let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let checked = opened.and_then(|file| Ok((check_overlay(&file, None)?, file)));
    checked.map(|(bytes, file)| (file, bytes)).map_err(|source| EngineError::File {
        action: "use disk layer",
        path: path.to_owned(),
        source,
    })
}

/// Bytes in the image, which must look like a disk.
fn image_size(base: &Utf8Path) -> Result<u64, EngineError> {
    File::open(base).and_then(|file| check_image(&file)).map_err(|source| EngineError::File {
        action: "use image",
        path: base.to_owned(),
        source,
    })
}

/// The size of an open image in bytes; an error if it cannot be a disk.
pub(crate) fn check_image(image: &File) -> io::Result<u64> {
    let metadata = image.metadata()?;
    let bytes = metadata.size();
    if !metadata.is_file() || bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        let why = "not a regular file of whole, at least one, 512-byte sectors";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(bytes)
}

/// The size of the device in an open overlay; an error if QEMU would use more than this file
/// and what the command line names.
pub(crate) fn check_overlay(overlay: &File, recorded: Option<u64>) -> io::Result<u64> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let mut header = [0u8; 104];
    let long = |header: &[u8; 104], at: usize| {
        header[at..at + 8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if !overlay.metadata()?.is_file() || overlay.read_exact_at(&mut header, 0).is_err() {
        return refuse("not a qcow2 file");
    }
    if header[..8] != *b"QFI\xfb\0\0\0\x03" {
        return refuse("not a qcow2 file of version 3");
    }
    let bytes = long(&header, 24);
    // Not where the name is, but how long: when layers are merged, QEMU writes an empty name down,
    // which is none when it is read.
    if header[16..20] != [0; 4] {
        return refuse("its header names a backing file");
    }
    if header[32..36] != [0; 4] {
        return refuse("its header says it is encrypted");
    }
    // QEMU itself says more about the two it sets in use: not closed in order, and corrupt.
    if long(&header, 72) & !0b11 != 0 {
        return refuse("its header asks for an external data file or another unusual feature");
    }
    if recorded.is_some_and(|recorded| recorded != bytes) {
        return refuse("its header says another size than it was made with");
    }
    Ok(bytes)
}

/// The most bytes the file of such a device may have: all of it, and its tables twice over.
pub(crate) fn largest_file(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 1024).saturating_add(64 << 20)
}

/// Size of the device the guest sees.
fn virtual_size(image_bytes: u64, asked: Option<Mib>) -> Result<u64, EngineError> {
    match asked {
        None => Ok(image_bytes),
        Some(asked) if asked < Mib::holding(image_bytes) => Err(EngineError::DiskTooSmall {
            asked_mib: u64::from(asked.0),
            image_mib: u64::from(Mib::holding(image_bytes).0),
        }),
        Some(asked) => Ok(asked.bytes()),
    }
}

fn free_space(dir: &Utf8Path) -> Result<Mib, EngineError> {
    let stat =
        nix::sys::statvfs::statvfs(dir.as_std_path()).map_err(|errno| EngineError::File {
            action: "ask the free space of",
            path: dir.to_owned(),
            source: errno.into(),
        })?;
    let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
    Ok(Mib(u32::try_from(bytes >> 20).unwrap_or(u32::MAX)))
}

fn write_overlay(file: &File, bytes: u64) -> io::Result<()> {
    let l1_entries = bytes.div_ceil(L1_ENTRY_COVERS);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let used_clusters = 3 + l1_clusters;
    file.set_len(used_clusters * CLUSTER)?;
    file.write_all_at(&header(bytes, l1_entries)?, 0)?;
    // The first refcount table entry: the refcount block in cluster 2.
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    // 16-bit counts, each cluster used once. One block counts 32768 clusters; Mib is 32 bits, so
    // the L1 table takes at most 1024 of them.
    let counts = 1u16.to_be_bytes().repeat(usize::try_from(used_clusters).unwrap_or(usize::MAX));
    file.write_all_at(&counts, 2 * CLUSTER)
}

/// Version 3, without a backing file name or any feature bit.
fn header(bytes: u64, l1_entries: u64) -> io::Result<[u8; 112]> {
    const HEADER_BYTES: u32 = 104;
    let l1_entries = u32::try_from(l1_entries)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "disk too large for qcow2"))?;
    let mut header = [0u8; 112];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &bytes.to_be_bytes());
    put(36, &l1_entries.to_be_bytes());
    put(40, &(3 * CLUSTER).to_be_bytes()); // L1 table
    put(48, &CLUSTER.to_be_bytes()); // refcount table
    put(56, &1u32.to_be_bytes()); // its clusters
    put(96, &4u32.to_be_bytes()); // refcounts of 2^4 bits
    put(100, &HEADER_BYTES.to_be_bytes());
    // The 8 zero bytes that follow are the end of the (empty) list of header extensions.
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn scratch(image_bytes: u64) -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().to_owned();
        File::create(path.join("base")).unwrap().set_len(image_bytes).unwrap();
        (dir, path)
    }

    fn me() -> Private {
        Private { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() }
    }

    fn judge(subcommand: &str, file: &Utf8Path) -> serde_json::Value {
        let output = Command::new("qemu-img")
            .args([subcommand, "--output=json", "-f", "qcow2", file.as_str()])
            .output()
            .expect("qemu-img is installed (Debian: qemu-utils)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn qemu_img_finds_nothing_wrong() {
        // From less than a cluster over a non-multiple of one to more than one L1 cluster.
        for (image, asked, expected) in [
            (512, None, 512u64),
            (3 << 20, None, 3 << 20),
            ((1 << 20) + 512, None, (1 << 20) + 512),
            ((1 << 20) + 512, Some(Mib(2)), 2 << 20),
            (1 << 20, Some(Mib(513)), 513 << 20),
            (1 << 20, Some(Mib(6 << 20)), 6 << 40),
        ] {
            let (_keep, dir) = scratch(image);
            let disk = create(Below::image(dir.join("base")), &dir, asked, me()).unwrap();
            let check = judge("check", &disk.file);
            assert_eq!(check["check-errors"], 0, "{check}");
            assert!(check.get("leaks").is_none() && check.get("corruptions").is_none(), "{check}");
            let info = judge("info", &disk.file);
            assert_eq!(info["virtual-size"], expected);
            assert!(info.get("backing-filename").is_none(), "{info}");
        }
    }

    #[test]
    fn a_rewritten_header_is_refused() {
        let (_keep, dir) = scratch(1 << 20);
        let disk = create(Below::image(dir.join("base")), &dir, Some(Mib(2)), me()).unwrap();
        let file = File::options().read(true).write(true).open(&disk.file).unwrap();
        let check = || check_overlay(&file, disk.bytes);
        assert_eq!((check().unwrap(), disk.bytes), (2 << 20, Some(2 << 20)));
        // Offset of the byte, what it becomes, what is said about it.
        for (at, value, word) in [
            (0, b'X', "version 3"),
            (7, 2, "version 3"),
            (19, 1, "backing file"),
            (16, 1, "backing file"),
            (24, 1, "another size"),
            (35, 1, "encrypted"),
            (79, 4, "external data file"),
            (72, 1, "unusual feature"),
        ] {
            let mut former = [0];
            file.read_exact_at(&mut former, at).unwrap();
            file.write_all_at(&[value], at).unwrap();
            let error = check().unwrap_err().to_string();
            assert!(error.contains(word), "{at}: {error}");
            file.write_all_at(&former, at).unwrap();
            check().unwrap();
        }
        file.write_all_at(&[1], 79).unwrap();
        check().expect("not closed in order: QEMU repairs it");
        file.set_len(50).unwrap();
        assert!(check().is_err(), "cut short");
    }

    /// A name in a header is refused, whoever wrote it. An empty one is none, for QEMU too, whatever
    /// the bytes are that it points at.
    #[test]
    fn a_name_of_no_length_names_nothing() {
        let (_keep, dir) = scratch(1 << 20);
        let file = dir.join("hostile");
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw"])
            .args([file.as_str(), "1M"])
            .status();
        assert!(status.unwrap().success());
        assert_eq!(judge("info", &file)["backing-filename"], "/etc/shadow");
        let opened = File::options().read(true).write(true).open(&file).unwrap();
        let error = check_overlay(&opened, None).unwrap_err().to_string();
        assert!(error.contains("backing file"), "{error}");

        let mut place = [0; 8];
        opened.read_exact_at(&mut place, 8).unwrap();
        let mut name = [0; 11];
        opened.read_exact_at(&mut name, u64::from_be_bytes(place)).unwrap();
        assert_eq!(&name, b"/etc/shadow");
        opened.write_all_at(&[0; 4], 16).unwrap();
        check_overlay(&opened, None).unwrap();
        let info = judge("info", &file);
        assert!(info.get("backing-filename").is_none(), "{info}");
    }

    #[test]
    fn a_full_disk_fits_its_limit() {
        for mib in [1u64, 2048, 1 << 20] {
            // A table entry of 8 bytes and a count of 2 for each cluster, and tables of those.
            let bytes = mib << 20;
            let clusters = bytes.div_ceil(CLUSTER);
            let tables = clusters * 10 + clusters / 100 + 16 * CLUSTER;
            assert!(bytes + tables < largest_file(bytes), "{mib}");
        }
    }

    #[test]
    fn asking_less_than_the_image_is_refused() {
        let (_keep, dir) = scratch((2 << 20) + 512);
        let error = create(Below::image(dir.join("base")), &dir, Some(Mib(2)), me()).unwrap_err();
        assert!(
            matches!(error, EngineError::DiskTooSmall { asked_mib: 2, image_mib: 3 }),
            "{error}"
        );
        assert!(!dir.join("root.qcow2").exists());
    }

    #[test]
    fn what_is_not_a_disk_is_refused() {
        for bytes in [0, 100, 513] {
            let (_keep, dir) = scratch(bytes);
            assert!(create(Below::image(dir.join("base")), &dir, None, me()).is_err(), "{bytes}");
            assert!(!dir.join("root.qcow2").exists());
        }
        let (_keep, dir) = scratch(512);
        assert!(create(Below::image(dir.clone()), &dir, None, me()).is_err(), "a directory");
        assert!(create(Below::image(dir.join("absent")), &dir, None, me()).is_err());
    }

    /// A disk that came from an engine without layers.
    #[test]
    fn a_whole_layer_takes_the_place_of_the_image() {
        let (_keep, dir) = scratch(1 << 20);
        let layers: Vec<_> = ["older", "newest"].map(|name| dir.join(name)).into();
        File::create(&layers[1]).unwrap().set_len(2 << 20).unwrap();
        let below = Below { layers, format: DiskFormat::Raw, ..Below::image(dir.join("base")) };
        let newest = below.layers[1].clone();
        let recorded = |bytes| Below { bytes: Some(bytes), ..below.clone() };
        assert!(create(recorded(3 << 20), &dir, None, me()).is_err(), "another size");
        let disk = create(recorded(2 << 20), &dir, None, me()).unwrap();
        assert_eq!(disk.base, Some(newest));
        assert!(disk.layers.is_empty(), "the older one need not even exist");
        assert_eq!((disk.bytes, disk.format), (Some(2 << 20), DiskFormat::Qcow2));
    }

    #[test]
    fn an_existing_disk_is_never_overwritten() {
        let (_keep, dir) = scratch(1 << 20);
        std::fs::write(dir.join("root.qcow2"), "precious").unwrap();
        assert!(create(Below::image(dir.join("base")), &dir, None, me()).is_err());
        assert_eq!(std::fs::read_to_string(dir.join("root.qcow2")).unwrap(), "precious");
    }
}
