//! The files that say who this machine is: host name, hosts, machine id, resolvers.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::ConfigureError;
use crate::replace::{read_config, replace_config};
use crate::serve::write_file::random_hex;

/// Ends the lines of `/etc/hosts` that are ours to change.
const OURS: &str = "# bhatti";

/// Writes `hostname`, `hosts` and, for a machine that has become another one, `machine-id`.
pub fn write_identity(etc: &Path, hostname: &str) -> Result<(), ConfigureError> {
    let write = |path: &'static str, text: &str| {
        replace_config(&etc.join(path), text, 0o644)
            .map_err(|source| ConfigureError::File { path, source })
    };
    let former = read_config(&etc.join("hostname")).unwrap_or_default();
    let hosts = read_config(&etc.join("hosts")).unwrap_or_default();
    // Before the host name: a crash between the two must not leave a clone with its parent's id.
    if former.trim() != hostname || !has_machine_id(etc) {
        let id = random_hex::<16>()
            .map_err(|source| ConfigureError::File { path: "machine-id", source })?;
        write("machine-id", &format!("{id}\n"))?;
    }
    write("hostname", &format!("{hostname}\n"))?;
    write("hosts", &hosts_with(&hosts, hostname))?;
    Ok(())
}

fn has_machine_id(etc: &Path) -> bool {
    read_config(&etc.join("machine-id")).is_ok_and(|text| {
        text.trim().len() == 32 && text.trim().bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// `hosts` with our lines first and the image's or user's other lines after them.
fn hosts_with(hosts: &str, hostname: &str) -> String {
    let mut text = format!(
        "127.0.0.1\tlocalhost {hostname} {OURS}\n::1\tlocalhost ip6-localhost {hostname} {OURS}\n"
    );
    for line in hosts.lines().filter(|line| !line.ends_with(OURS)) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Writes `resolv.conf`, replacing a link to some service that does not run here.
pub fn write_resolvers(etc: &Path, nameservers: &[IpAddr]) -> Result<(), ConfigureError> {
    let text: String =
        nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
    let failed = |source: io::Error| ConfigureError::File { path: "/etc/resolv.conf", source };
    replace_config(&etc.join("resolv.conf"), &text, 0o644).map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_is_a_new_identity_and_the_same_name_is_not() {
        let etc = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(etc.path().join(name)).unwrap();
        std::fs::write(etc.path().join("hosts"), "10.0.0.1 db\n").unwrap();
        std::fs::write(etc.path().join("machine-id"), "uninitialized\n").unwrap();
        write_identity(etc.path(), "one").unwrap();
        let first = read("machine-id");
        assert_eq!(first.trim().len(), 32);
        assert_eq!(read("hostname"), "one\n");

        write_identity(etc.path(), "one").unwrap();
        assert_eq!(read("machine-id"), first, "a reboot keeps it");

        write_identity(etc.path(), "two").unwrap();
        assert_ne!(read("machine-id"), first, "a clone gets its own");
        assert_eq!(
            read("hosts"),
            "127.0.0.1\tlocalhost two # bhatti\n::1\tlocalhost ip6-localhost two # bhatti\n10.0.0.1 db\n"
        );
    }

    #[test]
    fn resolvers_replace_a_dangling_link() {
        let etc = tempfile::tempdir().unwrap();
        let path = etc.path().join("resolv.conf");
        std::os::unix::fs::symlink("/run/systemd/resolve/stub-resolv.conf", &path).unwrap();
        write_resolvers(etc.path(), &["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
            .unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "nameserver 10.1.0.1\nnameserver fd00::1\n"
        );
    }
}
