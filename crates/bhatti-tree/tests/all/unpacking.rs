//! Unpacks anything, and looks at what is around it. Shared with the fuzz target.

use std::fs::File;
use std::path::Path;

use bhatti_tree::{Links, Tally, Unpack};

/// Unpacks `archive` in a directory with others around it. Whatever it is, they stay as they are,
/// and what it makes are files, directories, and links that do not lead out.
pub(crate) fn stays_in_its_box(archive: &[u8]) {
    let around = tempfile::tempdir().expect("a directory");
    let inside = around.path().join("box");
    std::fs::create_dir(&inside).expect("a directory");
    std::fs::write(around.path().join("secret"), "untouched").expect("a file");
    let archive = checked(archive);
    let into = File::open(&inside).expect("it is there").into();
    let unpack = Unpack { into, root: None, owner: None, links: Links::Inside };
    // Most of what comes is refused; that is for other tests.
    drop(unpack.run(&archive[..], &Tally::default()));
    let secret = std::fs::read_to_string(around.path().join("secret")).expect("it is there");
    assert_eq!(secret, "untouched");
    assert_eq!(std::fs::read_dir(around.path()).expect("it is there").count(), 2);
    let real = inside.canonicalize().expect("it is there");
    look(&inside, &real);
}

fn look(directory: &Path, real: &Path) {
    for entry in std::fs::read_dir(directory).expect("a directory of ours") {
        let path = entry.expect("readable").path();
        let kind = path.symlink_metadata().expect("it is there").file_type();
        if kind.is_symlink() {
            let leads = path.canonicalize();
            assert!(leads.is_err() || leads.is_ok_and(|end| end.starts_with(real)), "{path:?}");
        } else if kind.is_dir() {
            look(&path, real);
        } else {
            assert!(kind.is_file(), "{path:?}");
        }
    }
}

/// With right checksums: or hardly any damage would get past them.
fn checked(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512) {
        // Where a header may be; contents of ours do not look like one.
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    archive
}
