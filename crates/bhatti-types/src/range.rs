//! IPv4 ranges, and which of them a guest does not reach.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range: a network address and how many bits of it are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Net {
    network: Ipv4Addr,
    len: u8,
}

/// Text or numbers that are not an IPv4 range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 range such as 100.127.0.0/16")]
pub struct BadNet {
    text: String,
}

/// What no guest ever reaches, whatever its policy: this host by any name (0/8, 127/8), link-local
/// and with it every cloud's metadata service, multicast, and what has never been given out.
pub const NEVER: [Ipv4Net; 4] = [
    Ipv4Net { network: Ipv4Addr::new(0, 0, 0, 0), len: 8 },
    Ipv4Net { network: Ipv4Addr::new(127, 0, 0, 0), len: 8 },
    Ipv4Net { network: Ipv4Addr::new(169, 254, 0, 0), len: 16 },
    Ipv4Net { network: Ipv4Addr::new(224, 0, 0, 0), len: 3 },
];

/// What a guest reaches only if its policy names it: the networks of those who run the host. Private
/// ranges (RFC 1918), shared address space (RFC 6598), the IETF's own (RFC 6890) and that for
/// benchmarks (RFC 2544).
pub const PRIVATE: [Ipv4Net; 6] = [
    Ipv4Net { network: Ipv4Addr::new(10, 0, 0, 0), len: 8 },
    Ipv4Net { network: Ipv4Addr::new(100, 64, 0, 0), len: 10 },
    Ipv4Net { network: Ipv4Addr::new(172, 16, 0, 0), len: 12 },
    Ipv4Net { network: Ipv4Addr::new(192, 0, 0, 0), len: 24 },
    Ipv4Net { network: Ipv4Addr::new(192, 168, 0, 0), len: 16 },
    Ipv4Net { network: Ipv4Addr::new(198, 18, 0, 0), len: 15 },
];

impl Ipv4Net {
    /// A range; host bits must be zero.
    pub fn new(network: Ipv4Addr, len: u8) -> Result<Self, BadNet> {
        if len <= 32 && network.to_bits() & !mask(len) == 0 {
            Ok(Self { network, len })
        } else {
            Err(BadNet { text: format!("{network}/{len}") })
        }
    }

    /// The range of `len` fixed bits that `address` lies in.
    pub fn around(address: Ipv4Addr, len: u8) -> Self {
        let len = len.min(32);
        Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(len)), len }
    }

    /// The first address.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The prefix length.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether `address` lies in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.len) == self.network.to_bits()
    }

    /// Whether every address of `other` lies in the range.
    pub fn covers(self, other: Self) -> bool {
        self.len <= other.len && self.contains(other.network)
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The address `offset` after the first. Callers stay inside the range.
    pub fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits().wrapping_add(offset))
    }
}

fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.len)
    }
}

impl FromStr for Ipv4Net {
    type Err = BadNet;
    fn from_str(text: &str) -> Result<Self, BadNet> {
        let bad = || BadNet { text: text.chars().take(64).collect() };
        let (network, len) = text.split_once('/').ok_or_else(bad)?;
        Self::new(network.parse().map_err(|_| bad())?, len.parse().map_err(|_| bad())?)
            .map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_parse_and_print() {
        for good in ["0.0.0.0/0", "100.127.0.0/16", "10.0.0.1/32"] {
            assert_eq!(net(good).to_string(), good);
        }
        for bad in ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "::/0", "10.0.0.0/x", "1.2.3/8"] {
            assert!(bad.parse::<Ipv4Net>().is_err(), "{bad}");
        }
        for range in NEVER.into_iter().chain(PRIVATE) {
            assert_eq!(net(&range.to_string()), range, "host bits are zero");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_covering_is_not() {
        for (a, b, overlap, covers) in [
            ("100.127.0.0/16", "100.64.0.0/10", true, false),
            ("100.127.0.0/16", "100.127.4.0/31", true, true),
            ("100.127.0.0/16", "100.126.0.0/16", false, false),
            ("0.0.0.0/0", "192.0.2.2/32", true, true),
        ] {
            assert_eq!(net(a).overlaps(net(b)), overlap, "{a} {b}");
            assert_eq!(net(b).overlaps(net(a)), overlap, "{b} {a}");
            assert_eq!(net(a).covers(net(b)), covers, "{a} {b}");
        }
        assert_eq!(Ipv4Net::around(Ipv4Addr::new(10, 0, 1, 77), 24), net("10.0.1.0/24"));
    }
}
