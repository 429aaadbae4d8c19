//! Which address and which MAC a new guest gets. Pure.
//!
//! Promises: an address is inside its user's subnet, free, and the lowest such; the gateway, the
//! network and the broadcast address are never given (`lowest_free_is_free_and_lowest`). A MAC is
//! locally administered and unicast.

use std::net::Ipv4Addr;

use bhatti_types::EngineId;

use crate::{NetError, guest_subnet};

/// The last octets guests may have; `.1` is the gateway.
const GUESTS: std::ops::RangeInclusive<u32> = 2..=254;

/// The gateway of user `index`: `.1` of its subnet.
pub(crate) fn gateway(index: u32) -> Result<Ipv4Addr, NetError> {
    Ok(guest_subnet(index)?.at(1))
}

/// The lowest address of user `index` that is not in `used`. Addresses of other users in `used`
/// have no effect.
pub fn lowest_free(index: u32, used: &[Ipv4Addr]) -> Result<Ipv4Addr, NetError> {
    let subnet = guest_subnet(index)?;
    GUESTS
        .map(|offset| subnet.at(offset))
        .find(|address| !used.contains(address))
        .ok_or(NetError::PoolExhausted)
}

/// The MAC of a guest: `02:` (locally administered, unicast) and 40 of the id's random bits.
pub fn guest_mac(id: &EngineId) -> String {
    let mut mac = String::from("02");
    for pair in id.as_str().as_bytes().chunks_exact(2).take(5) {
        mac.push(':');
        mac.extend(pair.iter().copied().map(char::from));
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_pool_says_so() {
        let mut used = Vec::new();
        while let Ok(address) = lowest_free(1, &used) {
            used.push(address);
        }
        assert_eq!(used.len(), 253);
        let error = lowest_free(1, &used).unwrap_err();
        assert_eq!(error.to_string(), "IP pool exhausted (253 VMs per user)");
        assert_eq!(lowest_free(2, &used).unwrap(), Ipv4Addr::new(10, 0, 2, 2));
    }

    #[test]
    fn macs_are_locally_administered_and_unicast() {
        let id: EngineId = "0123456789abcdef".parse().unwrap();
        assert_eq!(guest_mac(&id), "02:01:23:45:67:89");
    }

    proptest! {
        #[test]
        fn lowest_free_is_free_and_lowest(
            index in 0..=crate::MAX_INDEX,
            octets in proptest::collection::btree_set(0u8..=255, 0..=256),
        ) {
            let subnet = guest_subnet(index).unwrap();
            let used: Vec<_> = octets.iter().map(|o| subnet.at(u32::from(*o))).collect();
            match lowest_free(index, &used) {
                Ok(address) => {
                    let last = address.octets()[3];
                    prop_assert!(subnet.contains(address) && (2..=254).contains(&last));
                    prop_assert!(!octets.contains(&last));
                    prop_assert!((2..last).all(|lower| octets.contains(&lower)));
                }
                Err(_) => prop_assert!((2..=254).all(|octet| octets.contains(&octet))),
            }
        }
    }
}
