//! Archives made by hand, and trees compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bhatti_tree::{Links, Problems, Source, Tally, Unpack, UnpackError};
use tar::{EntryType, Header};

/// Packs `from` under `name`.
pub(crate) fn packed(from: &Path, name: &str) -> (Vec<u8>, Tally) {
    let (mut archive, tally) = (Vec::new(), Tally::default());
    Source::open(from).unwrap().pack(OsStr::new(name), &mut archive, &tally).unwrap();
    (archive, tally)
}

/// How a stranger's archive is unpacked.
pub(crate) fn strict(into: &Path, root: Option<&str>) -> Unpack {
    let root = root.map(Into::into);
    Unpack { into: File::open(into).unwrap().into(), root, owner: None, links: Links::Inside }
}

pub(crate) fn unpacked(archive: &[u8], into: &Path) -> Result<Problems, UnpackError> {
    strict(into, None).run(archive, &Tally::default())
}

/// One entry of an archive, written down.
pub(crate) struct Member {
    pub(crate) kind: EntryType,
    pub(crate) name: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) content: Vec<u8>,
    /// What the header says of its length, if that is not true.
    pub(crate) claims: Option<u64>,
}

impl Member {
    pub(crate) fn new(kind: EntryType, name: &str) -> Self {
        let (name, target, content) = (name.into(), Vec::new(), Vec::new());
        Self { kind, name, target, mode: 0o644, content, claims: None }
    }

    pub(crate) fn file(name: &str, content: &str) -> Self {
        Self { content: content.into(), ..Self::new(EntryType::Regular, name) }
    }

    pub(crate) fn link(name: &str, target: &str) -> Self {
        Self { target: target.into(), ..Self::new(EntryType::Symlink, name) }
    }
}

/// An archive of `members`, whatever they say.
pub(crate) fn archive(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let mut header = Header::new_gnu();
        let fields = header.as_old_mut();
        fields.name[..member.name.len()].copy_from_slice(&member.name);
        fields.linkname[..member.target.len()].copy_from_slice(&member.target);
        header.set_entry_type(member.kind);
        header.set_size(member.claims.unwrap_or(member.content.len() as u64));
        header.set_mode(member.mode);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&member.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// Everything beneath a directory: kind and mode, time, content or target.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_dir() {
                left.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                std::fs::read(&path).unwrap()
            };
            let below = path.strip_prefix(root).unwrap().to_owned();
            found.insert(below, (meta.mode(), meta.mtime(), content));
        }
    }
    found
}

/// The names beneath a directory, in order.
pub(crate) fn names(root: &Path) -> Vec<String> {
    tree(root).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect()
}
