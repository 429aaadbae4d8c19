//! What things of one daemon are called on the host. Pure.
//!
//! Promise: names are recognised only if this daemon could have made them, so a sweep never
//! touches a namespace or an interface of anybody else (`only_own_names_are_recognised`).

use bhatti_types::EngineId;

use crate::{MAX_INDEX, NetError};

/// The bridge of a namespace.
pub(crate) const BRIDGE: &str = "br0";
/// The namespace's end of the veth pair.
pub(crate) const UPLINK: &str = "up0";

/// The TAP of machine `id`.
pub(crate) fn tap_name(id: &EngineId) -> String {
    // An id is 16 ASCII hex digits; all of them would not fit an interface name with room to spare.
    format!("t{:.8}", id.as_str())
}

/// The names of one daemon, derived from its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    hash: u32,
}

impl Names {
    /// Names under `prefix`: a letter, up to eleven letters or digits, and a dash.
    pub fn new(prefix: &str) -> Result<Self, NetError> {
        let stem = prefix.strip_suffix('-').unwrap_or_default();
        let ok = stem.len() <= 12
            && stem.starts_with(|c: char| c.is_ascii_lowercase())
            && stem.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !ok {
            return Err(NetError::BadPrefix { prefix: prefix.chars().take(64).collect() });
        }
        // FNV-1a. Stable for ever: it names things that outlive the daemon.
        let hash = stem
            .bytes()
            .fold(0x811c_9dc5, |h: u32, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Ok(Self { prefix: prefix.to_owned(), hash })
    }

    /// The nftables table, on the host and in each namespace.
    pub fn table(&self) -> &str {
        self.prefix.trim_end_matches('-')
    }

    /// The namespace of user `index`.
    pub fn namespace(&self, index: u32) -> String {
        format!("{}{index}", self.prefix)
    }

    /// The host's end of the veth pair of user `index`; at most 14 of 15 characters.
    pub fn veth(&self, index: u32) -> String {
        format!("{}{index}", self.veth_prefix())
    }

    /// What the names of all our veths begin with.
    pub fn veth_prefix(&self) -> String {
        format!("bh{:06x}-", self.hash >> 8)
    }

    /// The metric of the route that claims our transit range: it tells our claim from the claim of
    /// another daemon, and is worse than the metric of any other route.
    pub fn claim_metric(&self) -> u32 {
        self.hash | 0x8000_0000
    }

    /// The user whose namespace `name` is.
    pub(crate) fn index_of_namespace(&self, name: &str) -> Option<u32> {
        index(name.strip_prefix(&self.prefix)?)
    }

    /// The user whose veth `name` is.
    pub(crate) fn index_of_veth(&self, name: &str) -> Option<u32> {
        index(name.strip_prefix(&self.veth_prefix())?)
    }
}

/// A number exactly as we print it.
fn index(digits: &str) -> Option<u32> {
    let index: u32 = digits.parse().ok().filter(|index| *index <= MAX_INDEX)?;
    (index.to_string() == digits).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let (a, b) = (Names::new("bhatti-").unwrap(), Names::new("bht1-").unwrap());
        assert_eq!(a.namespace(7), "bhatti-7");
        assert_eq!(a.table(), "bhatti");
        assert!(a.veth(MAX_INDEX).len() <= 15);
        assert_ne!(a.veth_prefix(), b.veth_prefix());
        assert_ne!(a.claim_metric(), b.claim_metric());
        for bad in ["", "-", "bhatti", "Bhatti-", "1a-", "a b-", "abcdefghijklm-", "a--", "../x-"] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_own_names_are_recognised() {
        let names = Names::new("bhatti-").unwrap();
        assert_eq!(names.index_of_namespace("bhatti-12"), Some(12));
        assert_eq!(names.index_of_veth(&names.veth(12)), Some(12));
        for other in ["bhatti-", "bhatti-x", "bhatti-012", "bhatti-+1", "bhatti-99999", "bhatti12"]
        {
            assert_eq!(names.index_of_namespace(other), None, "{other}");
        }
        assert_eq!(names.index_of_veth("bh000000-1"), None);
    }
}
