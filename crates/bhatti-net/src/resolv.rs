//! Which name servers a guest can use: those of the host that a guest can reach.
//!
//! Guests have IPv4 only, may not talk to the host itself and not to link-local addresses, so a
//! server on any of those would only make every look-up time out.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// Where name servers are read from, in this order. The second is where systemd-resolved keeps the
/// real ones when the first only names its stub on a loopback address.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// More of such a file is not read.
const MAX_FILE: u64 = 64 * 1024;
/// The C library of a guest reads no more than this many.
const MAX_SERVERS: usize = 3;
const FALLBACK: [&str; 2] = ["1.1.1.1", "8.8.8.8"];

/// The host's name servers that a guest can reach, else 1.1.1.1 and 8.8.8.8.
pub fn host_nameservers() -> Vec<String> {
    for path in FILES {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
        if read.is_err() {
            continue;
        }
        let servers = reachable(&String::from_utf8_lossy(&text), is_own_address);
        if !servers.is_empty() {
            return servers;
        }
    }
    FALLBACK.map(str::to_owned).to_vec()
}

/// Only an address of this host can be bound to.
fn is_own_address(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn reachable(text: &str, is_own: impl Fn(Ipv4Addr) -> bool) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            match words.next()?.parse().ok()? {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }
        })
        .filter(|a| !a.is_loopback() && !a.is_link_local() && !a.is_unspecified() && !is_own(*a))
        .take(MAX_SERVERS)
        .map(|address| address.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_a_guest_can_reach_are_used() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 127.0.0.53\nnameserver ::1\n\
                    nameserver 169.254.169.253\nnameserver 192.0.2.53\n\tnameserver 192.0.2.2\n\
                    nameserver x\nnameserver\nnameserver 192.0.2.54 # second\n";
        let own = |address| address == Ipv4Addr::new(192, 0, 2, 2);
        assert_eq!(reachable(text, own), ["192.0.2.53", "192.0.2.54"]);
        assert!(reachable("", own).is_empty());
    }

    #[test]
    fn a_loopback_address_is_the_hosts_own() {
        assert!(is_own_address(Ipv4Addr::LOCALHOST));
        assert!(!is_own_address(Ipv4Addr::new(192, 0, 2, 200)));
    }

    #[test]
    fn there_is_always_a_server() {
        let servers = host_nameservers();
        assert!(!servers.is_empty());
        assert!(servers.iter().all(|server| server.parse::<Ipv4Addr>().is_ok()));
    }
}
