//! Sandbox names for completion, kept in a file so that completion needs no network.
//!
//! The file is `<tmp>/bhatti-completions-<uid>`, in a directory everybody may write. So it is
//! never followed if it is a link, never believed unless its owner is its user, and always
//! replaced whole. Every failure is ignored: completion is a convenience.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::PathBuf;

use nix::fcntl::OFlag;

use crate::invoker::Invoker;

/// More names than this are not worth completing.
const MAX_BYTES: u64 = 1 << 20;

/// The cache of one user.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    uid: u32,
    gid: u32,
}

impl Cache {
    pub(crate) fn of(invoker: &Invoker) -> Self {
        let path = std::env::temp_dir().join(format!("bhatti-completions-{}", invoker.uid));
        Self { path, uid: invoker.uid, gid: invoker.gid }
    }

    /// The names, or none.
    pub(crate) fn names(&self) -> Vec<String> {
        let text = self.read().unwrap_or_default();
        text.lines().filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// Exactly these, after an unfiltered listing.
    pub(crate) fn replace(&self, names: impl IntoIterator<Item = String>) {
        self.change(|all| *all = names.into_iter().collect());
    }

    pub(crate) fn add(&self, name: &str) {
        self.change(|all| {
            if !all.iter().any(|known| known == name) {
                all.push(name.to_owned());
            }
        });
    }

    pub(crate) fn remove(&self, name: &str) {
        self.change(|all| all.retain(|known| known != name));
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<String>)) {
        let mut names = self.names();
        let before = names.clone();
        edit(&mut names);
        // One that cannot be written is one that cannot be completed from; nothing is lost.
        if names != before || !self.path.exists() {
            self.write(&names.join("\n")).unwrap_or_default();
        }
    }

    fn read(&self) -> io::Result<String> {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || meta.uid() != self.uid || meta.len() > MAX_BYTES {
            return Err(io::Error::other("not our cache"));
        }
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let fresh = self.path.with_extension(format!("{}.tmp", std::process::id()));
        // `create_new` refuses a link somebody left there.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        let written = fchown(&file, Some(self.uid), Some(self.gid))
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&fresh, &self.path));
        if written.is_err() {
            std::fs::remove_file(&fresh).unwrap_or_default();
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn cache(dir: &tempfile::TempDir) -> Cache {
        let meta = dir.path().metadata().unwrap();
        Cache { path: dir.path().join("names-7"), uid: meta.uid(), gid: meta.gid() }
    }

    #[test]
    fn names_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir);
        assert!(cache.names().is_empty());
        cache.replace(["a".to_owned(), "b".to_owned()]);
        cache.add("c");
        cache.add("a");
        cache.remove("b");
        assert_eq!(cache.names(), ["a", "c"]);
        assert_eq!(std::fs::read(&cache.path).unwrap(), b"a\nc");
        let mode = cache.path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "no leftovers");
    }

    #[test]
    fn a_link_is_neither_read_nor_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir);
        let target = dir.path().join("target");
        std::fs::write(&target, "secret").unwrap();
        symlink(&target, &cache.path).unwrap();
        assert!(cache.names().is_empty());
        cache.add("a");
        assert_eq!(std::fs::read(&target).unwrap(), b"secret");
        assert_eq!(cache.names(), ["a"], "the link itself was replaced");
    }

    #[test]
    fn somebody_elses_file_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = cache(&dir);
        cache.add("a");
        cache.uid += 1;
        assert!(cache.names().is_empty());
    }
}
