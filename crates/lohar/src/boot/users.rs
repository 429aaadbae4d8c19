//! Makes sure that somebody can work here: uid 1000, its home, `/workspace`, sudo.
//!
//! Any image boots, so any `/etc/passwd` is met. Editing is done on text ([`plan`], pure) and
//! written back whole; there is no NSS in a static binary, and none is wanted. An image that has
//! a uid 1000 of its own keeps that account, name and all.
//!
//! Nothing here can fail the boot. Commands run as a number, which needs no file; a machine with a
//! full disk or a broken `/etc` lacks what could not be made and can be repaired from inside.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::console::report;
use crate::guest::{Account, GID, UID};
use crate::replace::{read_config, replace_config};

/// Names tried for a new account or group, in order.
const NAMES: &[&str] = &["lohar", "bhatti", "lohar1000"];

/// The largest file copied into a new home, in bytes.
const MAX_SKELETON: u64 = 1 << 20;

/// A user file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {}", .path.display())]
pub struct UserError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The account files as they should be, and the account.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    passwd: String,
    group: String,
    shadow: Option<String>,
    account: Account,
}

/// Decides what the files must say. `shadow` is `None` where the image has none.
fn plan(passwd: &str, group: &str, shadow: Option<&str>, shell: &str) -> Plan {
    let mut passwd = own_text(passwd);
    let mut group = own_text(group);
    let mut shadow = shadow.map(own_text);
    if passwd.is_empty() {
        passwd.push_str("root:x:0:0:root:/root:/bin/sh\n");
    }
    if group.is_empty() {
        group.push_str("root:x:0:\n");
    }
    if !records(&group).any(|fields| number(&fields, 2) == Some(GID)) {
        let name = free_name(&group);
        group.push_str(&format!("{name}:x:{GID}:\n"));
    }
    let existing = records(&passwd)
        .find(|fields| number(fields, 2) == Some(UID))
        .map(|fields| account_of(&fields, shell));
    let account = existing.unwrap_or_else(|| {
        let name = free_name(&passwd);
        let home = format!("/home/{name}");
        passwd.push_str(&format!("{name}:x:{UID}:{GID}:{name}:{home}:{shell}\n"));
        if let Some(shadow) = &mut shadow
            && !records(shadow).any(|fields| fields[0] == name)
        {
            // No password, but an account: PAM refuses sudo to a user without a shadow entry.
            shadow.push_str(&format!("{name}:*:19700:0:99999:7:::\n"));
        }
        Account { name: name.to_owned(), home, shell: shell.to_owned(), login_gid: GID }
    });
    Plan { passwd, group, shadow, account }
}

fn account_of(fields: &[&str], shell: &str) -> Account {
    let field = |index: usize| fields.get(index).copied().filter(|text| text.starts_with('/'));
    // A home of / or nothing would put dot files into the root directory.
    let home = field(5).filter(|home| *home != "/");
    Account {
        name: fields[0].to_owned(),
        home: home.map_or_else(|| format!("/home/{}", fields[0]), str::to_owned),
        shell: field(6)
            .filter(|shell| !shell.ends_with("/nologin") && !shell.ends_with("/false"))
            .unwrap_or(shell)
            .to_owned(),
        login_gid: number(fields, 3).unwrap_or(GID),
    }
}

/// The groups in `group` that list `user` as a member, at most 64.
pub fn groups_of(group: &str, user: &str) -> Vec<u32> {
    records(group)
        .filter(|fields| {
            fields.get(3).is_some_and(|members| members.split(',').any(|name| name.trim() == user))
        })
        .filter_map(|fields| number(&fields, 2))
        .take(64)
        .collect()
}

/// The colon-separated records of an account file. Every record has a first field.
fn records(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

fn number(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.trim().parse().ok()
}

fn free_name(text: &str) -> &'static str {
    let taken = |name: &str| records(text).any(|fields| fields[0] == name);
    NAMES.iter().copied().find(|name| !taken(name)).unwrap_or("lohar-sandbox")
}

/// A copy that ends with a line break, so that a record can be appended.
fn own_text(text: &str) -> String {
    let mut text = text.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Applies the plan to the machine whose root is `root` (`/`, or a directory in tests). Also
/// returns what could not be done. A file that cannot be read is not written.
pub fn ensure_user(root: &Path) -> (Account, Vec<UserError>) {
    let mut problems = Problems::default();
    let etc = root.join("etc");
    problems.note("make", &etc, std::fs::create_dir_all(&etc));
    let [passwd, group, shadow] = ["passwd", "group", "shadow"].map(|name| etc.join(name));
    let passwd_text = problems.note("read", &passwd, read_config(&passwd));
    let group_text = problems.note("read", &group, read_config(&group));
    let shadow_text =
        if shadow.exists() { problems.note("read", &shadow, read_config(&shadow)) } else { None };
    let shell = if root.join("bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let plan = plan(
        passwd_text.as_deref().unwrap_or_default(),
        group_text.as_deref().unwrap_or_default(),
        shadow_text.as_deref(),
        shell,
    );

    let files = [
        (&group, group_text.is_some().then_some(&plan.group), 0o644),
        (&passwd, passwd_text.is_some().then_some(&plan.passwd), 0o644),
        (&shadow, plan.shadow.as_ref(), 0o640),
    ];
    for (path, text, mode) in files {
        if let Some(text) = text {
            problems.note("write", path, replace_config(path, text, mode));
        }
    }
    let home = root.join(plan.account.home.trim_start_matches('/'));
    if !home.is_dir() && problems.note("make", &home, own_directory(&home)).is_some() {
        copy_skeleton(&etc.join("skel"), &home);
    }
    let workspace = root.join("workspace");
    problems.note("make", &workspace, own_directory(&workspace));
    allow_sudo(root, &plan.account.name);
    (plan.account, problems.0)
}

/// What could not be done.
#[derive(Default)]
struct Problems(Vec<UserError>);

impl Problems {
    fn note<T>(&mut self, action: &'static str, path: &Path, outcome: io::Result<T>) -> Option<T> {
        outcome
            .map_err(|source| self.0.push(UserError { action, path: path.to_owned(), source }))
            .ok()
    }
}

fn own_directory(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    }
    chown(path, Some(UID), Some(GID))
}

/// Copies the small plain files of `/etc/skel`: `.profile`, `.bashrc`. Without them a home works
/// too.
fn copy_skeleton(skeleton: &Path, home: &Path) {
    let Ok(entries) = std::fs::read_dir(skeleton) else { return };
    for entry in entries.flatten().take(64) {
        // Of the entry itself: a link is not followed.
        if entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_SKELETON) {
            let target = home.join(entry.file_name());
            let copied = std::fs::copy(entry.path(), &target)
                .and_then(|_| chown(&target, Some(UID), Some(GID)))
                .inspect_err(|_| {
                    std::fs::remove_file(&target).ok();
                });
            if let Err(error) = copied {
                report(format_args!("{} not copied: {error}", target.display()));
            }
        }
    }
}

/// The machine belongs to its user: sudo asks for no password, where there is a sudo.
fn allow_sudo(root: &Path, name: &str) {
    let directory = root.join("etc/sudoers.d");
    if !directory.is_dir() && !root.join("usr/bin/sudo").exists() {
        return;
    }
    let path = directory.join("lohar");
    let outcome = std::fs::create_dir_all(&directory)
        .and_then(|()| {
            replace_config(&path, &format!("{name} ALL=(ALL:ALL) NOPASSWD:ALL\n"), 0o440)
        })
        // sudo ignores a file that others may write.
        .and_then(|_| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)));
    if let Err(error) = outcome {
        report(format_args!("no passwordless sudo: {error}"));
    }
}

#[cfg(test)]
mod tests;
