//! Which name servers the host asks.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};

/// Where they are written down.
const FILE: &str = "/etc/resolv.conf";
/// More of such a file is not read.
const MAX_FILE: u64 = 64 * 1024;
/// The C library reads no more than this many.
const MAX_SERVERS: usize = 3;
const FALLBACK: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)), IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8))];

/// The host's name servers, else 1.1.1.1 and 8.8.8.8.
pub fn host_nameservers() -> Vec<IpAddr> {
    let mut text = Vec::new();
    let read = File::open(FILE).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
    let servers = match read {
        Ok(_) => servers(&String::from_utf8_lossy(&text)),
        Err(_) => Vec::new(),
    };
    if servers.is_empty() { FALLBACK.to_vec() } else { servers }
}

fn servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            // An address with a scope (`fe80::1%eth0`) is not understood, and left out.
            words.next()?.parse().ok()
        })
        .take(MAX_SERVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_name_a_server_are_read() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 127.0.0.53\nnameserver ::1\n\
                    nameserver x\nnameserver\nnameserver fe80::1%eth0\n\
                    nameserver 192.0.2.54 # third\nnameserver 192.0.2.55\n";
        let expected: Vec<IpAddr> =
            ["127.0.0.53", "::1", "192.0.2.54"].map(|text| text.parse().unwrap()).into();
        assert_eq!(servers(text), expected);
        assert!(servers("").is_empty());
    }

    #[test]
    fn there_is_always_a_server() {
        assert!(!host_nameservers().is_empty());
    }
}
