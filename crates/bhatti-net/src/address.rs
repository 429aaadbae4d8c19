//! Address arithmetic: IPv4 ranges, a user's guest subnet, a user's transit pair. Pure.
//!
//! Promise: two users never share a guest subnet or a transit address, for every index up to
//! [`MAX_INDEX`] (`ranges_of_different_users_are_apart`).

use std::net::Ipv4Addr;

use bhatti_types::Ipv4Net;

use crate::NetError;

/// The largest user index: a transit range (a /16) holds this many pairs.
pub const MAX_INDEX: u32 = 0x7fff;

/// How long a transit range's prefix is.
const TRANSIT_LEN: u8 = 16;

/// The /24 of user `index`: `10.hi.lo.0/24` with `hi = index / 255`, `lo = index % 255`.
pub fn guest_subnet(index: u32) -> Result<Ipv4Net, NetError> {
    if index > MAX_INDEX {
        return Err(NetError::IndexTooLarge { index, max: MAX_INDEX });
    }
    // MAX_INDEX / 255 is below 256, so both halves fit their octet.
    let [.., hi] = (index / 255).to_be_bytes();
    let [.., lo] = (index % 255).to_be_bytes();
    Ok(Ipv4Net::around(Ipv4Addr::new(10, hi, lo, 0), 24))
}

/// The two ends of the veth pair of user `index`: a /31 of the transit range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransitPair {
    /// On the host.
    pub(crate) host: Ipv4Addr,
    /// In the namespace.
    pub(crate) inside: Ipv4Addr,
}

impl TransitPair {
    /// The prefix length of both ends.
    pub(crate) const LEN: u8 = 31;

    /// The pair of `index`, which is at most [`MAX_INDEX`], in a range that [`check_transit`] passed.
    pub(crate) fn of(transit: Ipv4Net, index: u32) -> Self {
        Self { host: transit.at(2 * index), inside: transit.at(2 * index + 1) }
    }
}

/// A transit range is a /16 outside the guests' 10.0.0.0/8.
pub(crate) fn check_transit(transit: Ipv4Net) -> Result<(), NetError> {
    let guests = Ipv4Net::around(Ipv4Addr::new(10, 0, 0, 0), 8);
    if transit.prefix_len() == TRANSIT_LEN && !transit.overlaps(guests) {
        Ok(())
    } else {
        Err(NetError::BadTransit { transit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_follow_the_contract() {
        for (index, subnet) in [
            (1, "10.0.1.0/24"),
            (254, "10.0.254.0/24"),
            (255, "10.1.0.0/24"),
            (256, "10.1.1.0/24"),
            (510, "10.2.0.0/24"),
        ] {
            assert_eq!(guest_subnet(index).unwrap(), net(subnet));
        }
        assert!(guest_subnet(MAX_INDEX).is_ok());
        assert!(matches!(guest_subnet(MAX_INDEX + 1), Err(NetError::IndexTooLarge { .. })));
    }

    #[test]
    fn a_transit_range_is_a_16_outside_the_guests() {
        assert!(check_transit(net("100.127.0.0/16")).is_ok());
        for bad in ["100.127.0.0/17", "100.64.0.0/10", "10.9.0.0/16"] {
            assert!(check_transit(net(bad)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn ranges_of_different_users_are_apart(a in 0..=MAX_INDEX, b in 0..=MAX_INDEX) {
            prop_assume!(a != b);
            prop_assert!(!guest_subnet(a).unwrap().overlaps(guest_subnet(b).unwrap()));
            let transit = net("100.127.0.0/16");
            let (x, y) = (TransitPair::of(transit, a), TransitPair::of(transit, b));
            let all = std::collections::BTreeSet::from([x.host, x.inside, y.host, y.inside]);
            prop_assert_eq!(all.len(), 4);
            prop_assert!(all.into_iter().all(|address| transit.contains(address)));
            let pair = Ipv4Net::new(x.host, TransitPair::LEN).unwrap();
            prop_assert!(pair.contains(x.inside));
        }
    }
}
