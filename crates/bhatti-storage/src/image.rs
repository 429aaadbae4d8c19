//! Root file system images: finding the built-in ones, and telling an image from something else.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use bhatti_types::Mib;
use camino::{Utf8Path, Utf8PathBuf};

/// Why a file cannot be a sandbox's root.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("image file {path} does not exist")]
    Missing { path: Utf8PathBuf },
    #[error("failed to read image {path}")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not an ext4 file system image")]
    NotAnImage { path: Utf8PathBuf },
}

/// A built-in image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `minimal`, `browser`, …
    pub tier: String,
    /// `amd64` or `arm64`.
    pub arch: String,
    pub file: Utf8PathBuf,
    pub size: Mib,
}

/// Where ext4 keeps its superblock's magic, in bytes from the start, and the magic.
const MAGIC_AT: u64 = 1024 + 56;
const MAGIC: [u8; 2] = [0x53, 0xef];

/// Checks that `path` holds an ext4 file system and returns the size of the file.
pub fn check_image(path: &Utf8Path) -> Result<Mib, ImageError> {
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ImageError::Missing { path: path.to_owned() },
        _ => read(error),
    })?;
    let metadata = file.metadata().map_err(read)?;
    let not_an_image = || ImageError::NotAnImage { path: path.to_owned() };
    if !metadata.is_file() {
        return Err(not_an_image());
    }
    let mut magic = [0; 2];
    file.seek(SeekFrom::Start(MAGIC_AT)).map_err(read)?;
    match file.read_exact(&mut magic) {
        Ok(()) if magic == MAGIC => Ok(Mib::holding(metadata.len())),
        Ok(()) => Err(not_an_image()),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(not_an_image()),
        Err(error) => Err(read(error)),
    }
}

/// Finds `rootfs-<tier>-<arch>.ext4` for this `arch` in `dir`, sorted by tier. Files of that
/// name which are no images come back as errors, to be told to the operator.
pub fn discover(dir: &Utf8Path, arch: &str) -> std::io::Result<(Vec<Found>, Vec<ImageError>)> {
    let mut found = Vec::new();
    let mut rejected = Vec::new();
    for entry in dir.read_dir_utf8()? {
        let file = entry?.into_path();
        let Some(tier) = tier_of(file.file_name().unwrap_or_default(), arch) else { continue };
        match check_image(&file) {
            Ok(size) => found.push(Found {
                tier: tier.to_owned(),
                arch: arch.to_owned(),
                file: file.clone(),
                size,
            }),
            Err(error) => rejected.push(error),
        }
    }
    found.sort_by(|a, b| a.tier.cmp(&b.tier));
    Ok((found, rejected))
}

fn tier_of<'n>(file_name: &'n str, arch: &str) -> Option<&'n str> {
    let tier = file_name.strip_prefix("rootfs-")?.strip_suffix(".ext4")?.strip_suffix(arch)?;
    tier.strip_suffix('-').filter(|tier| !tier.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Utf8Path, name: &str, magic: &[u8]) -> Utf8PathBuf {
        let path = dir.join(name);
        let mut bytes = vec![0; 4096];
        bytes[MAGIC_AT as usize..][..magic.len()].copy_from_slice(magic);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn built_in_images_are_found_and_others_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        image(dir, "rootfs-minimal-amd64.ext4", &MAGIC);
        image(dir, "rootfs-broken-amd64.ext4", b"xx");
        image(dir, "rootfs-minimal-arm64.ext4", &MAGIC);
        image(dir, "rootfs--amd64.ext4", &MAGIC);
        std::fs::write(dir.join("rootfs-empty-amd64.ext4"), "").unwrap();
        std::fs::write(dir.join("notes.txt"), "").unwrap();
        let (found, rejected) = discover(dir, "amd64").unwrap();
        assert_eq!(found.iter().map(|f| f.tier.as_str()).collect::<Vec<_>>(), ["minimal"]);
        assert_eq!(found[0].size, Mib(1));
        assert_eq!(rejected.len(), 2, "{rejected:?}");
    }

    #[test]
    fn what_is_no_image_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        assert!(matches!(check_image(&dir.join("no")), Err(ImageError::Missing { .. })));
        assert!(matches!(check_image(dir), Err(ImageError::NotAnImage { .. })));
    }
}
