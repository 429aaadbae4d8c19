//! The files that say who this machine is: host name, hosts, machine id, resolvers.
//!
//! Promises:
//! - None of them can keep a machine from being reached: what cannot be written (a full disk, a
//!   read-only one) is returned for the console, and everything else is still done.
//! - What cannot be read is not replaced. Somebody's long `/etc/hosts` is theirs.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::replace::{read_config, replace_config};
use crate::serve::write_file::random_hex;

/// Ends the lines of `/etc/hosts` that are ours to change.
const OURS: &str = "# bhatti";

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
        "" => random_hex::<16>().map_err(|source| FileError {
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
    write(etc, NAME, &hosts_with(&hosts, name), 0o644)
}

/// `hosts` with our lines first and the image's or user's other lines after them.
fn hosts_with(hosts: &str, name: Option<&str>) -> String {
    let own = name.map(|name| format!(" {name}")).unwrap_or_default();
    let mut text =
        format!("127.0.0.1\tlocalhost{own} {OURS}\n::1\tlocalhost ip6-localhost{own} {OURS}\n");
    for line in hosts.lines().filter(|line| !line.ends_with(OURS)) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn write(etc: &Path, name: &'static str, text: &str, mode: u32) -> Result<(), FileError> {
    replace_config(&etc.join(name), text, mode).map(drop).map_err(|source| FileError {
        action: "write",
        name,
        source,
    })
}

#[cfg(test)]
mod tests;
