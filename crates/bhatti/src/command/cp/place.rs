//! Where a copy goes. Pure, and the same in both directions.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bhatti_tree::root_name;

/// What is at a path, symlinks followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    File,
    Directory,
}

/// A directory, and what the copy is called in it: `.` if only what is in the source goes there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) name: OsString,
    /// The directory is not there yet, and is the copy.
    pub(super) make: bool,
}

/// Decides as `cp -r` does.
pub(super) fn place(
    src: &Path,
    src_kind: Kind,
    dst: &Path,
    dst_kind: Kind,
) -> Result<Place, String> {
    let contents = root_name(src) == ".";
    let whole = |directory: &Path, name: &OsStr| Place {
        directory: directory.to_owned(),
        name: name.to_owned(),
        make: false,
    };
    match (src_kind, dst_kind) {
        (Kind::Nothing, _) => Err(format!("{}: file not found", src.display())),
        (_, Kind::Directory) => Ok(whole(dst, root_name(src))),
        (Kind::Directory, Kind::File) => {
            Err(format!("{} is a directory, and {} is none", src.display(), dst.display()))
        }
        (Kind::File, Kind::Nothing | Kind::File) if wants_directory(dst) => {
            Err(format!("{} is not a directory", dst.display()))
        }
        (Kind::File, Kind::Nothing | Kind::File) => Ok(whole(parent(dst), file_name(dst)?)),
        (Kind::Directory, Kind::Nothing) if contents => {
            Ok(Place { directory: dst.to_owned(), name: ".".into(), make: true })
        }
        (Kind::Directory, Kind::Nothing) => Ok(whole(parent(dst), file_name(dst)?)),
    }
}

/// A path that ends like this can only be a directory.
fn wants_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.")
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn file_name(path: &Path) -> Result<&OsStr, String> {
    path.file_name().ok_or_else(|| format!("{} is no name for a copy", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Directory, File, Nothing};

    #[test]
    fn a_copy_goes_where_cp_would_put_it() {
        let check = |src: &str, src_kind, dst: &str, dst_kind, directory: &str, name: &str| {
            let made = place(Path::new(src), src_kind, Path::new(dst), dst_kind);
            let made = made.unwrap_or_else(|error| panic!("{src} {dst}: {error}"));
            let wanted = Place { directory: directory.into(), name: name.into(), make: false };
            assert_eq!(made, wanted, "{src} {dst}");
        };
        check("a/f", File, "/w", Directory, "/w", "f");
        check("a/f", File, "/w/g", Nothing, "/w", "g");
        check("a/f", File, "/w/g", File, "/w", "g");
        check("f", File, "g", Nothing, ".", "g");
        check("a/d", Directory, "/w", Directory, "/w", "d");
        check("a/d/", Directory, "/w/", Directory, "/w/", "d");
        check("a/d", Directory, "/w/e", Nothing, "/w", "e");
        check("a/d", Directory, "/w/e/", Nothing, "/w", "e");
        check("a/d/.", Directory, "/w", Directory, "/w", ".");
        check(".", Directory, "/w", Directory, "/w", ".");
        check("a/..", Directory, "/w", Directory, "/w", ".");
        check("/", Directory, "/w", Directory, "/w", ".");
    }

    #[test]
    fn only_what_is_in_a_directory_may_become_a_new_one() {
        let made = place(Path::new("d/."), Directory, Path::new("/w/e"), Nothing).unwrap();
        assert_eq!(made, Place { directory: "/w/e".into(), name: ".".into(), make: true });
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (src, src_kind, dst, dst_kind) in [
            ("none", Nothing, "/w", Directory),
            ("d", Directory, "/w/f", File),
            ("f", File, "/w/new/", Nothing),
            ("f", File, "/w/g/.", File),
            ("f", File, "..", Nothing),
        ] {
            let made = place(Path::new(src), src_kind, Path::new(dst), dst_kind);
            assert!(made.is_err(), "{src} {dst}: {made:?}");
        }
    }
}
