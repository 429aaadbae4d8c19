//! Who typed the command, also through sudo.

use std::os::unix::fs::MetadataExt;

use camino::Utf8PathBuf;
use nix::unistd::{Uid, User};

use crate::failure::Failure;

/// The person at the keyboard. Under sudo that is not root: configuration and caches are theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invoker {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: Utf8PathBuf,
    /// The process runs as root on behalf of this user.
    pub(crate) via_sudo: bool,
}

impl Invoker {
    /// From the environment and the user database.
    pub(crate) fn current() -> Result<Self, Failure> {
        let sudo_user = std::env::var("SUDO_USER").ok().filter(|name| name != "root");
        // Anybody may set SUDO_USER; only root may act on it.
        if let Some(name) = sudo_user
            && Uid::effective().is_root()
            && let Ok(Some(user)) = User::from_name(&name)
            && let Ok(home) = Utf8PathBuf::from_path_buf(user.dir)
        {
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            return Ok(Self { name, uid, gid, home, via_sudo: true });
        }
        let uid = Uid::effective();
        let user = User::from_uid(uid).ok().flatten();
        let home = match std::env::var("HOME") {
            Ok(home) if home.starts_with('/') => Utf8PathBuf::from(home),
            _ => user
                .as_ref()
                .and_then(|user| Utf8PathBuf::from_path_buf(user.dir.clone()).ok())
                .ok_or_else(|| Failure::text("no home directory: set HOME"))?,
        };
        let gid = std::fs::metadata("/proc/self").map_or(uid.as_raw(), |meta| meta.gid());
        let name = user.map_or_else(|| uid.to_string(), |user| user.name);
        Ok(Self { name, uid: uid.as_raw(), gid, home, via_sudo: false })
    }
}
