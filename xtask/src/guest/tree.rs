//! Turns what mmdebstrap installed into what goes into the image: the user agents work as, no
//! trace of the host, nothing that differs from one build to the next.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// The user commands run as, unless told otherwise.
const USER: &str = "lohar";
const USER_ID: u32 = 1000;

/// Directories whose content is rebuilt on demand or belongs to one machine.
const EMPTIED: &[&str] =
    &["tmp", "var/tmp", "var/log", "var/cache", "var/lib/apt/lists", "run", "boot"];
/// Files that must not be there: back-ups of what we edit, settings of the build, identities.
const REMOVED: &[&str] = &[
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/.pwd.lock",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
];

/// Every installed package as `name=version`, sorted.
pub(crate) fn installed_packages(root: &Path) -> Result<Vec<String>> {
    let admin = format!("--admindir={}", root.join("var/lib/dpkg").display());
    let listing = process::output(Command::new("dpkg-query").args([
        &admin,
        "-W",
        "-f",
        "${Package}=${Version}\\n",
    ]))?;
    let mut packages: Vec<String> = listing.lines().map(str::to_owned).collect();
    packages.sort();
    ensure!(!packages.is_empty(), "mmdebstrap installed nothing");
    Ok(packages)
}

/// Adds the user, by the tree's own programs.
pub(crate) fn add_user(root: &Path) -> Result<()> {
    let id = USER_ID.to_string();
    process::run_quiet(
        Command::new("chroot")
            .arg(root)
            .args(["/usr/sbin/useradd", "--uid", &id, "--user-group", "--create-home"])
            .args(["--groups", "sudo", "--shell", "/bin/bash", USER]),
    )
}

/// Does by hand what packages do when they are configured, as far as a shell and the agent need it,
/// and adds the user: for a tree whose programs do not run here.
pub(crate) fn stand_in_for_configuration(root: &Path) -> Result<()> {
    let master = |name: &str| {
        let path = root.join(format!("usr/share/base-passwd/{name}.master"));
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
    };
    let mut accounts = master("passwd")?;
    accounts += &format!("{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/bash\n");
    let names = accounts.lines().filter_map(|line| line.split(':').next());
    let shadow: String = names.map(|name| format!("{name}:*:0:0:99999:7:::\n")).collect();
    let in_sudo = format!("\nsudo:*:27:{USER}\n");
    let mut groups = master("group")?.replace("\nsudo:*:27:\n", &in_sudo);
    groups += &format!("{USER}:x:{USER_ID}:\n");
    write(root, "etc/passwd", 0o644, &accounts)?;
    write(root, "etc/group", 0o644, &groups)?;
    write(root, "etc/shadow", 0o640, &shadow)?;
    directory_of_user(&root.join("home").join(USER))?;
    for (link, target) in [("bin/sh", "dash"), ("usr/bin/awk", "mawk")] {
        remove(&root.join(link))?;
        std::os::unix::fs::symlink(target, root.join(link))
            .with_context(|| format!("failed to link {link} to {target}"))?;
    }
    Ok(())
}

/// Does everything between the installation, which began at `begun`, and the file system.
pub(crate) fn settle(root: &Path, begun: SystemTime, epoch: i64) -> Result<()> {
    write(root, "etc/sudoers.d/lohar", 0o440, "lohar ALL=(ALL) NOPASSWD: ALL\n")?;
    directory_of_user(&root.join("workspace"))?;
    clean(root)?;
    write(root, "etc/hostname", 0o644, "sandbox\n")?;
    write(root, "etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n")?;
    write(root, "etc/resolv.conf", 0o644, "")?;
    write(root, "etc/machine-id", 0o444, "")?;
    write(root, "etc/fstab", 0o644, "")?;
    settle_shadow(root, epoch)?;
    settle_times(root, begun, epoch)
}

fn directory_of_user(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| chown(path, Some(USER_ID), Some(USER_ID)))
        .with_context(|| format!("failed to create {}", path.display()))
}

fn clean(root: &Path) -> Result<()> {
    for name in EMPTIED {
        empty(&root.join(name))?;
    }
    // Directories their programs do not create themselves.
    for name in ["var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt"] {
        let dir = root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    }
    for name in REMOVED {
        remove(&root.join(name))?;
    }
    let ssh = root.join("etc/ssh");
    if ssh.is_dir() {
        for entry in entries(&ssh)? {
            if entry.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ssh_host_")) {
                remove(&entry)?;
            }
        }
    }
    Ok(())
}

/// The day of the last password change is the day of the build; make it that of the epoch.
fn settle_shadow(root: &Path, epoch: i64) -> Result<()> {
    let path = root.join("etc/shadow");
    let text =
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    fs::write(&path, with_change_day(&text, epoch / 86_400))
        .with_context(|| format!("failed to write {}", path.display()))
}

fn with_change_day(shadow: &str, day: i64) -> String {
    let line = |line: &str| {
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        if let Some(changed) = fields.get_mut(2) {
            *changed = day.to_string();
        }
        fields.join(":") + "\n"
    };
    shadow.lines().map(line).collect()
}

/// What was written during the build gets the epoch as its time. Times from packages stay: Python
/// compares them with what its compiled files remember.
fn settle_times(root: &Path, begun: SystemTime, epoch: i64) -> Result<()> {
    let begun = begun.duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
    let begun = i64::try_from(begun.as_secs()).context("the clock is far in the future")?;
    let epoch_time = SystemTime::UNIX_EPOCH + Duration::from_secs(epoch.unsigned_abs());
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let found = fs::symlink_metadata(&path)
            .with_context(|| format!("failed to look at {}", path.display()))?;
        if found.is_dir() {
            todo.extend(entries(&path)?);
        }
        if found.mtime() < begun {
            continue;
        }
        if found.is_file() || found.is_dir() {
            let times = FileTimes::new().set_accessed(epoch_time).set_modified(epoch_time);
            fs::File::open(&path)
                .and_then(|file| file.set_times(times))
                .with_context(|| format!("failed to set the time of {}", path.display()))?;
        } else {
            // Links and devices cannot be opened for that.
            process::run_quiet(
                Command::new("touch").args(["-h", "-d", &format!("@{epoch}")]).arg(&path),
            )?;
        }
    }
    Ok(())
}

fn write(root: &Path, name: &str, mode: u32, content: &str) -> Result<()> {
    let path = root.join(name);
    // It may be a link that leads out of the tree.
    remove(&path)?;
    fs::write(&path, content)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
        .with_context(|| format!("failed to write {}", path.display()))
}

fn empty(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for path in entries(dir)? {
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("failed to remove {}", path.display()))?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if !process::is_missing(&error) => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn entries(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .with_context(|| format!("failed to list {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_change_day_is_replaced_and_nothing_else() {
        let shadow = "root:*:20779:0:99999:7:::\nlohar:!:20779:0:99999:7:::\n";
        let settled = with_change_day(shadow, 20454);
        assert_eq!(settled, "root:*:20454:0:99999:7:::\nlohar:!:20454:0:99999:7:::\n");
    }

    #[test]
    fn new_files_get_the_epoch_and_old_ones_keep_their_time() {
        let begun = SystemTime::now();
        let dir = tempfile::tempdir().expect("a scratch directory");
        fs::create_dir_all(dir.path().join("var/lib/dpkg")).expect("created");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for path in [&old, &new] {
            fs::write(path, "x").expect("written");
        }
        let before = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let file = fs::File::open(&old).expect("opened");
        file.set_times(FileTimes::new().set_modified(before)).expect("set");
        std::os::unix::fs::symlink("new", dir.path().join("link")).expect("linked");

        settle_times(dir.path(), begun, 1_500_000_000).expect("settled");

        let time = |name: &str| fs::symlink_metadata(dir.path().join(name)).expect("there").mtime();
        assert_eq!(time("old"), 1_000_000_000);
        for name in ["new", "link", "var/lib/dpkg", "."] {
            assert_eq!(time(name), 1_500_000_000, "{name}");
        }
    }

    #[test]
    fn emptying_keeps_the_directory_and_follows_no_link() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir_all(inside.join("deep")).expect("created");
        fs::create_dir_all(&outside).expect("created");
        fs::write(outside.join("precious"), "x").expect("written");
        std::os::unix::fs::symlink(&outside, inside.join("way-out")).expect("linked");
        empty(&inside).expect("emptied");
        assert_eq!(entries(&inside).expect("listed").len(), 0);
        assert!(outside.join("precious").exists());
    }
}
