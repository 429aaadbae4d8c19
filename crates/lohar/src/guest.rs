//! What the agent knows about its machine: handed down, never global.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bhatti_wire::message::Network;
use tokio::sync::{Notify, Semaphore};

use crate::boot::users::groups_of;
use crate::process::Reaper;
use crate::replace::read_config;
use crate::serve::activity::Counters;
use crate::serve::exec::Killable;
use crate::serve::hold::Hold;
use crate::serve::session::Sessions;
use crate::serve::{archive, file};

/// Who every command runs as.
pub const UID: u32 = 1000;
/// Its group.
pub const GID: u32 = 1000;

/// Most commands that run at one time, attached and detached together.
pub const MAX_COMMANDS: usize = 256;

/// The account of [`UID`] as `/etc/passwd` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub home: String,
    pub shell: String,
    /// The primary group in `/etc/passwd`; commands get it as a supplementary one if it is not
    /// [`GID`].
    pub login_gid: u32,
}

/// The ids a process gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// The machine, as every operation sees it.
#[derive(Debug)]
pub struct Guest {
    pub reaper: Arc<Reaper>,
    pub account: Account,
    pub owner: (u32, u32),
    /// `LANG` of every command.
    pub lang: &'static str,
    /// One permit per running command.
    pub commands: Arc<Semaphore>,
    /// Those of them that the host can kill from another stream.
    pub killable: Killable,
    /// Programs that outlive their clients.
    pub sessions: Sessions,
    /// Wakes the main loop to power off.
    pub power_off: Notify,
    /// What the last activity report counted from.
    pub counters: Mutex<Counters>,
    /// One permit per operation on files.
    pub files: Arc<Semaphore>,
    /// One permit per archive.
    pub archives: Arc<Semaphore>,
    /// The one permit to write all disks out.
    pub quiesce: Arc<Semaphore>,
    /// Whether anything but the agent may run.
    pub hold: Hold,
    settings: Mutex<Settings>,
}

/// What the host configured.
#[derive(Debug, Default)]
pub struct Settings {
    /// [`bhatti_wire::message::Configure`] was applied in this boot.
    pub configured: bool,
    pub env: HashMap<String, String>,
    /// The network settings the interface has now.
    pub network: Option<Network>,
    /// The name of that interface.
    pub device: Option<String>,
}

impl Guest {
    /// A machine nobody configured yet, whose commands run as `owner` (uid, gid).
    pub fn new(reaper: Arc<Reaper>, account: Account, owner: (u32, u32)) -> Self {
        Self {
            reaper,
            account,
            owner,
            lang: installed_lang(Path::new("/usr/lib/locale")),
            commands: Arc::new(Semaphore::new(MAX_COMMANDS)),
            killable: Killable::default(),
            sessions: Sessions::default(),
            power_off: Notify::new(),
            counters: Mutex::default(),
            files: Arc::new(Semaphore::new(file::MAX_OPERATIONS)),
            archives: Arc::new(Semaphore::new(archive::MAX_ARCHIVES)),
            quiesce: Arc::new(Semaphore::new(1)),
            hold: Hold::default(),
            settings: Mutex::default(),
        }
    }

    /// The host's settings. Never hold the guard across an await.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        // Nothing panics while holding it, and PID 1 must not die of a poisoned lock.
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of a new command. `/etc/group` is read each time, so that `usermod -aG` works.
    pub fn identity(&self) -> Identity {
        let (uid, gid) = self.owner;
        let group = read_config(Path::new("/etc/group")).unwrap_or_default();
        let mut groups = groups_of(&group, &self.account.name);
        if self.account.login_gid != gid {
            groups.push(self.account.login_gid);
        }
        Identity { uid, gid, groups }
    }

    /// The environment of a command: ours, then the sandbox's, then the request's.
    pub fn environment(&self, request: &HashMap<String, String>) -> HashMap<String, String> {
        let mut env: HashMap<String, String> = [
            ("PATH", DEFAULT_PATH),
            ("TERM", "xterm-256color"),
            ("LANG", self.lang),
            ("HOME", &self.account.home),
            ("USER", &self.account.name),
            ("LOGNAME", &self.account.name),
            ("SHELL", &self.account.shell),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
        env.extend(self.settings().env.iter().map(|(key, value)| (key.clone(), value.clone())));
        env.extend(request.iter().map(|(key, value)| (key.clone(), value.clone())));
        env
    }
}

/// `PATH` where nobody says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `en_US.UTF-8` where it is installed. Elsewhere `C.UTF-8`, which glibc always has: naming a
/// missing locale makes perl and others warn at every start.
fn installed_lang(locales: &Path) -> &'static str {
    const NAME: &[u8] = b"en_US.utf8";
    // The names in an archive are in its first part; the rest is tables.
    let in_archive = || {
        let mut head = Vec::new();
        let path = locales.join("locale-archive");
        // Opening a FIFO would wait for ever.
        let file = path.is_file().then(|| std::fs::File::open(path))?.ok()?;
        io_read(&mut std::io::Read::take(file, 1 << 20), &mut head)?;
        head.windows(NAME.len()).any(|window| window == NAME).then_some(())
    };
    if locales.join("en_US.utf8").is_dir() || in_archive().is_some() {
        "en_US.UTF-8"
    } else {
        "C.UTF-8"
    }
}

fn io_read(from: &mut impl std::io::Read, into: &mut Vec<u8>) -> Option<usize> {
    from.read_to_end(into).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        let account = Account {
            name: "lohar".into(),
            home: "/home/lohar".into(),
            shell: "/bin/sh".into(),
            login_gid: GID,
        };
        Guest::new(Arc::new(Reaper::default()), account, (UID, GID))
    }

    #[test]
    fn a_request_wins_over_the_sandbox_and_that_over_the_defaults() {
        let guest = guest();
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        guest.settings().env = map(&[("TERM", "dumb"), ("A", "sandbox"), ("B", "sandbox")]);
        let env = guest.environment(&map(&[("B", "request"), ("HOME", "/x")]));
        let expected = [
            ("PATH", DEFAULT_PATH),
            ("TERM", "dumb"),
            ("A", "sandbox"),
            ("B", "request"),
            ("HOME", "/x"),
            ("USER", "lohar"),
            ("LOGNAME", "lohar"),
            ("SHELL", "/bin/sh"),
            ("LANG", guest.lang),
        ];
        assert_eq!(env, map(&expected));
    }

    #[test]
    fn a_fifo_among_the_locales_does_not_hold_up_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&dir.path().join("locale-archive"), mode).unwrap();
        let (found, result) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        std::thread::spawn(move || found.send(installed_lang(&path)));
        let lang = result.recv_timeout(std::time::Duration::from_secs(60)).expect("an answer");
        assert_eq!(lang, "C.UTF-8");
    }

    #[test]
    fn the_language_is_one_that_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(installed_lang(dir.path()), "C.UTF-8");
        std::fs::write(dir.path().join("locale-archive"), b"\0\0de_DE.utf8\0en_US.utf8\0").unwrap();
        assert_eq!(installed_lang(dir.path()), "en_US.UTF-8");
        std::fs::write(dir.path().join("locale-archive"), b"\0\0de_DE.utf8\0").unwrap();
        assert_eq!(installed_lang(dir.path()), "C.UTF-8");
        std::fs::create_dir(dir.path().join("en_US.utf8")).unwrap();
        assert_eq!(installed_lang(dir.path()), "en_US.UTF-8");
    }
}
