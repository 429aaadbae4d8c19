//! Replaces small configuration files: a reader sees the old content or the new, never a part.
//!
//! No fsync: ext4 writes the data of a renamed-over file out with the rename, and a machine that
//! loses power before that keeps the old file, which the next boot corrects.

use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The longest configuration file we read. Longer ones are refused, not truncated.
const MAX_CONFIG: u64 = 4 << 20;

/// Whether a call changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    Written,
    /// It already said so.
    Same,
}

/// What `path` says, or nothing if it does not exist.
pub fn read_config(path: &Path) -> io::Result<String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.is_file() || meta.len() > MAX_CONFIG => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a regular file of at most 4 MiB",
            ));
        }
        Ok(_) => {}
    }
    // A stray byte in somebody's comment must not cost the machine its users.
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// Makes `path` say `text`, with the owner and mode it has, or `new_mode` if it is new.
///
/// A symlink at `path` is replaced by a file, not followed.
pub fn replace_config(path: &Path, text: &str, new_mode: u32) -> io::Result<Replaced> {
    let former = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Some(meta),
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if former.is_some() && read_config(path).is_ok_and(|now| now == text) {
        return Ok(Replaced::Same);
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".bhatti-tmp");
    let temporary = Path::new(&temporary);
    let mode = former.as_ref().map_or(new_mode, |meta| meta.mode() & 0o7777);
    write_new(temporary, text, mode)
        .and_then(|()| match &former {
            Some(meta) if meta.uid() != 0 || meta.gid() != 0 => {
                std::os::unix::fs::chown(temporary, Some(meta.uid()), Some(meta.gid()))
            }
            _ => Ok(()),
        })
        .and_then(|()| std::fs::rename(temporary, path))
        .inspect_err(|_| {
            std::fs::remove_file(temporary).ok();
        })?;
    Ok(Replaced::Written)
}

fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    // A crash may have left one; create_new below must not fail for ever because of it.
    std::fs::remove_file(path).ok();
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_keeps_the_mode_and_says_whether_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shadow");
        assert_eq!(replace_config(&path, "a\n", 0o640).unwrap(), Replaced::Written);
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o640);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        assert_eq!(replace_config(&path, "b\n", 0o640).unwrap(), Replaced::Written);
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o604);
        assert_eq!(replace_config(&path, "b\n", 0o640).unwrap(), Replaced::Same);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary stays");
    }

    #[test]
    fn a_symlink_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("resolv.conf"));
        std::fs::write(&target, "theirs").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        replace_config(&link, "ours", 0o644).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "theirs");
        assert!(link.symlink_metadata().unwrap().is_file());
        assert_eq!(read_config(&link).unwrap(), "ours");
        assert_eq!(read_config(&dir.path().join("none")).unwrap(), "");
        assert!(read_config(dir.path()).is_err(), "a directory is no configuration");
    }
}
