//! Writes the uncompressed `newc` archive a kernel takes as its initramfs.
//!
//! The same entries give the same bytes: order by name, time zero, owner root, inodes counted up.

use std::collections::BTreeMap;

/// What one name in the archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A directory anybody may enter.
    Directory,
    /// A regular file with its permission bits.
    File { mode: u32, content: Vec<u8> },
    /// A character device.
    CharDevice { mode: u32, major: u32, minor: u32 },
}

/// Entries by path without a leading slash. Parents must be entered by the caller; the order of
/// names puts them first.
pub(crate) type Tree = BTreeMap<String, Entry>;

/// The archive of a tree.
pub(crate) fn archive(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, (name, entry)) in (1u32..).zip(tree) {
        let (mode, content, device) = match entry {
            Entry::Directory => (0o040_755, [].as_slice(), (0, 0)),
            Entry::File { mode, content } => (0o100_000 | mode, content.as_slice(), (0, 0)),
            Entry::CharDevice { mode, major, minor } => {
                (0o020_000 | mode, [].as_slice(), (*major, *minor))
            }
        };
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        record(&mut out, name, Header { inode, mode, links, device }, content);
    }
    record(&mut out, "TRAILER!!!", Header { inode: 0, mode: 0, links: 1, device: (0, 0) }, &[]);
    out
}

struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
}

fn record(out: &mut Vec<u8>, name: &str, header: Header, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("a file in the initramfs is below 4 GiB");
    let name_size = u32::try_from(name.len() + 1).expect("a name in the initramfs is short");
    out.extend_from_slice(b"070701");
    let fields = [
        header.inode,
        header.mode,
        0, // uid
        0, // gid
        header.links,
        0, // mtime
        size,
        0, // device the file is on
        0,
        header.device.0,
        header.device.1,
        name_size,
        0, // checksum, unused in this variant
    ];
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        Tree::from([
            ("init".to_owned(), Entry::File { mode: 0o755, content: b"hello".to_vec() }),
            ("dev".to_owned(), Entry::Directory),
            ("dev/console".to_owned(), Entry::CharDevice { mode: 0o600, major: 5, minor: 1 }),
        ])
    }

    #[test]
    fn is_the_same_twice_and_aligned() {
        let archive_bytes = archive(&sample());
        assert_eq!(archive_bytes, archive(&sample()));
        assert_eq!(archive_bytes.len() % 4, 0);
    }

    #[test]
    fn headers_are_110_bytes_and_names_follow_in_order() {
        let bytes = archive(&sample());
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<usize> = ["dev\0", "dev/console\0", "init\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).expect("the name is in the archive"))
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(places[0], 110);
        assert!(text.contains("hello"));
    }

    #[test]
    fn the_usual_tool_reads_it_back() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let file = dir.path().join("ird.cpio");
        std::fs::write(&file, archive(&sample())).expect("written");
        // cpio is not on every machine; where it is, it has to agree with us.
        let Ok(listing) =
            std::process::Command::new("cpio").args(["-itv", "--quiet", "-F"]).arg(&file).output()
        else {
            return;
        };
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        let expected = ["drwxr-xr-x", "crw-------", "-rwxr-xr-x", "5,   1", "init"];
        for word in expected {
            assert!(listing.contains(word), "{word:?} is not in\n{listing}");
        }
    }
}
