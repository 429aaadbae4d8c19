//! Replaces small configuration files: a reader sees the old content or the new, never a part.
//!
//! Two ways. A new file is renamed over the old one. A short file of ours is written in place,
//! which in a clone that has just woken takes a quarter of the time (see [`rewrite_config`]).
//!
//! No fsync: ext4 writes the data of a renamed-over file out with the rename, and a machine that
//! loses power before that keeps the old file, which the next boot corrects.

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The longest configuration file we read. Longer ones are refused, not truncated.
const MAX_CONFIG: u64 = 4 << 20;

/// What a disk writes at once, whole or not at all.
const SECTOR: usize = 512;

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

/// As [`replace_config`], for a file that is wholly ours to correct at the next boot: hence in
/// place, where that can be done without a reader seeing a mixture.
///
/// That is: within one sector, in one write. What is shorter than before ends in blank lines
/// until it is cut; what is longer finds room made with blank lines. So `text` must be of a kind
/// that blank lines do not hurt. A power cut may leave either text cut to the other's length.
pub fn rewrite_config(path: &Path, text: &str, new_mode: u32) -> io::Result<Replaced> {
    match rewrite(path, text) {
        Ok(Some(replaced)) => Ok(replaced),
        // A link, a large file, one with other names, one that cannot be written to: replacing
        // it is another permission, and gives the error that counts.
        Ok(None) | Err(_) => replace_config(path, text, new_mode),
    }
}

/// `Ok(None)`: not in place.
fn rewrite(path: &Path, text: &str) -> io::Result<Option<Replaced>> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        // Opening a FIFO that nobody reads would stop PID 1.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let meta = file.metadata()?;
    let (old, new) = (meta.len(), text.len());
    let is_plain = meta.is_file() && meta.nlink() == 1;
    if !is_plain || old == 0 || old > SECTOR as u64 || new > SECTOR {
        return Ok(None);
    }
    let old = old as usize;
    let mut present = vec![0; old];
    file.read_exact_at(&mut present, 0)?;
    if present == text.as_bytes() {
        return Ok(Some(Replaced::Same));
    }
    if new > old {
        file.write_all_at(&vec![b'\n'; new - old], old as u64)?;
    }
    let mut padded = text.as_bytes().to_vec();
    padded.resize(new.max(old), b'\n');
    file.write_all_at(&padded, 0)?;
    if new < old {
        file.set_len(new as u64)?;
    }
    Ok(Some(Replaced::Written))
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

    #[test]
    fn a_short_file_is_rewritten_in_place_whatever_its_length_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostname");
        std::fs::write(&path, "golden\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        let inode = path.metadata().unwrap().ino();
        for text in ["box\n", "a-much-longer-name\n", "same-length-as-name\n", "b\n"] {
            assert_eq!(rewrite_config(&path, text, 0o644).unwrap(), Replaced::Written);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            assert_eq!(rewrite_config(&path, text, 0o644).unwrap(), Replaced::Same);
        }
        let after = path.metadata().unwrap();
        assert_eq!((after.ino(), after.mode() & 0o7777), (inode, 0o604));
    }

    #[test]
    fn what_others_can_see_under_another_name_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("ours"));
        std::fs::write(&theirs, "theirs\n").unwrap();
        std::fs::hard_link(&theirs, &ours).unwrap();
        rewrite_config(&ours, "ours\n", 0o644).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        rewrite_config(&link, "ours\n", 0o644).unwrap();
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs\n");
        for path in [&ours, &link, &dir.path().join("new")] {
            rewrite_config(path, "ours\n", 0o644).unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), "ours\n");
        }
        let long = "x".repeat(SECTOR + 1);
        rewrite_config(&ours, &long, 0o644).unwrap();
        assert_eq!(std::fs::read_to_string(&ours).unwrap(), long);
    }
}
