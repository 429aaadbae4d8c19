//! The files that say who this machine is: host name, hosts, machine id, resolvers.
//!
//! Promises:
//! - None of them can keep a machine from being reached: what cannot be written (a full disk, a
//!   read-only one) is returned for the console, and everything else is still done.
//! - What cannot be read is not replaced. Somebody's long `/etc/hosts` is theirs.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::random;
use crate::replace::{read_config, replace_config, rewrite_config};

/// Ends the lines of `/etc/hosts` that are ours to change.
const OURS: &str = "# bhatti";

/// Our lines of `/etc/hosts` leave this much room for a name. So another name changes neither
/// the file's length nor where the lines of others are, and can be written in place.
const NAME_ROOM: usize = 64;

/// A file stays as it was.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {name}")]
pub struct FileError {
    pub action: &'static str,
    /// Below `/etc`.
    pub name: &'static str,
    #[source]
    pub source: io::Error,
}

/// 32 lower-case hex digits.
pub fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Writes `machine-id`, `hostname` and `hosts`. An empty `machine_id` keeps what is there; a
/// machine that has none gets one.
pub fn write_identity(etc: &Path, hostname: &str, machine_id: &str) -> Vec<FileError> {
    // The kernel takes any bytes for a name, a file of lines and words does not.
    let word = |c: char| !c.is_control() && !c.is_whitespace() && c != '#';
    let name = Some(hostname).filter(|name| !name.is_empty() && name.chars().all(word));
    let written = [
        // First: a crash after it must not leave a clone with its parent's id.
        write_machine_id(etc, machine_id),
        name.map_or(Ok(()), |name| write(etc, "hostname", &format!("{name}\n"), 0o644)),
        write_hosts(etc, name),
    ];
    written.into_iter().filter_map(Result::err).collect()
}

/// Writes `resolv.conf`, replacing a link to some service that does not run here.
pub fn write_resolvers(etc: &Path, nameservers: &[IpAddr]) -> Result<(), FileError> {
    let text: String =
        nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
    write(etc, "resolv.conf", &text, 0o644)
}

fn write_machine_id(etc: &Path, wanted: &str) -> Result<(), FileError> {
    const NAME: &str = "machine-id";
    // One that cannot be read is none.
    let present = read_config(&etc.join(NAME)).unwrap_or_default();
    let present = present.trim();
    let id = match wanted {
        "" if is_machine_id(&present.to_ascii_lowercase()) => return Ok(()),
        "" => random::hex::<16>().map_err(|source| FileError {
            action: "make a",
            name: NAME,
            source,
        })?,
        wanted if wanted == present => return Ok(()),
        wanted => wanted.to_owned(),
    };
    write(etc, NAME, &format!("{id}\n"), 0o444)
}

fn write_hosts(etc: &Path, name: Option<&str>) -> Result<(), FileError> {
    const NAME: &str = "hosts";
    let hosts = read_config(&etc.join(NAME)).map_err(|source| FileError {
        action: "read",
        name: NAME,
        source,
    })?;
    let text = hosts_with(&hosts, name);
    if text == hosts || write_own_lines(&etc.join(NAME), &hosts, &text).unwrap_or(false) {
        return Ok(());
    }
    replace_config(&etc.join(NAME), &text, 0o644).map(drop).map_err(|source| FileError {
        action: "write",
        name: NAME,
        source,
    })
}

/// Always as long, unless the name is longer than any the kernel takes.
fn own_lines(name: Option<&str>) -> String {
    let name = name.unwrap_or_default();
    // Bytes, not characters: the room is on the disk.
    let room = " ".repeat(NAME_ROOM.saturating_sub(name.len()));
    format!(
        "127.0.0.1\tlocalhost {name}{room} {OURS}\n::1\tlocalhost ip6-localhost {name}{room} {OURS}\n"
    )
}

/// `hosts` with our lines first and the image's or user's other lines after them.
fn hosts_with(hosts: &str, name: Option<&str>) -> String {
    let mut text = own_lines(name);
    for line in hosts.lines().filter(|line| !line.ends_with(OURS)) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Writes the beginning of `hosts` in place, if that alone makes it say `text`. It is within one
/// sector, so even a power cut leaves the old name or the new.
fn write_own_lines(path: &Path, hosts: &str, text: &str) -> io::Result<bool> {
    let own = own_lines(None).len();
    let rest = text.get(own..);
    let differs_in_ours_only =
        hosts.len() == text.len() && rest.is_some() && hosts.get(own..) == rest;
    if !differs_in_ours_only || !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(false);
    }
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.nlink() != 1 {
        return Ok(false);
    }
    file.write_all_at(&text.as_bytes()[..own], 0)?;
    Ok(true)
}

fn write(etc: &Path, name: &'static str, text: &str, mode: u32) -> Result<(), FileError> {
    rewrite_config(&etc.join(name), text, mode).map(drop).map_err(|source| FileError {
        action: "write",
        name,
        source,
    })
}

#[cfg(test)]
mod tests;
