//! What is in the sets of a user's rules, and what of it comes and goes with a change. Pure.
//!
//! Promise: the text of an element for `nft` and its bytes for the kernel mean the same
//! (`elements_have_the_bytes_of_their_text`, and every test that applies rules one way and changes them
//! the other).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use bhatti_types::{Egress, EngineId, Ipv4Net};

use super::rules::{BOUND, Guest};
use crate::dial::mark;
use crate::guest_mac;
use crate::names::tap_name;

/// A set of the rules of a namespace that we change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Who may speak as whom, in the bridge.
    Guests,
    Addresses,
    Cidrs,
    Closed,
    Denials,
    Dialled,
    Names,
}

impl Set {
    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Guests => "guests",
            Self::Addresses => "addresses",
            Self::Cidrs => "cidrs",
            Self::Closed => "closed",
            Self::Denials => "denials",
            Self::Dialled => "dialled",
            Self::Names => "names",
        }
    }

    /// Whether it is in the table of the bridge, not in that of the namespace.
    pub(crate) fn is_of_bridge(self) -> bool {
        self == Self::Guests
    }
}

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A device, and the addresses that may be spoken as on it.
    Identity { tap: String, mac: [u8; 6], address: Ipv4Addr },
    /// A guest.
    Guest(Ipv4Addr),
    /// A guest, and a range it may reach.
    Range { guest: Ipv4Addr, range: Ipv4Net },
    /// A guest, and the mark of the host's connections to it.
    Mark { guest: Ipv4Addr, mark: u32 },
    /// A guest, and an address it may reach for as long as bindings last.
    Binding { guest: Ipv4Addr, address: Ipv4Addr },
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity { tap, mac: [a, b, c, d, e, g], address } => {
                write!(f, "\"{tap}\" . {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x} . {address}")
            }
            Self::Guest(address) => write!(f, "{address}"),
            Self::Range { guest, range } => write!(f, "{guest} . {range}"),
            Self::Mark { guest, mark } => write!(f, "{guest} . {mark:#010x}"),
            Self::Binding { guest, address } => write!(f, "{guest} . {address} timeout {BOUND}s"),
        }
    }
}

impl Element {
    /// Its key as the kernel has it, the parts one after the other, each filled up to whole words; for a
    /// range the first key and the last.
    pub(crate) fn key(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            Self::Identity { tap, mac, address } => {
                let mut key = tap.clone().into_bytes();
                key.resize(16, 0);
                key.extend(mac);
                key.extend([0; 2]);
                key.extend(address.octets());
                (key, None)
            }
            Self::Guest(address) => (address.octets().to_vec(), None),
            Self::Range { guest, range } => {
                let pair = |address: Ipv4Addr| [guest.octets(), address.octets()].concat();
                let last = u32::MAX.checked_shr(range.prefix_len().into()).unwrap_or(0);
                let last = Ipv4Addr::from_bits(range.network().to_bits() | last);
                (pair(range.network()), Some(pair(last)))
            }
            // Marks are in the host's order of bytes.
            Self::Mark { guest, mark } => ([guest.octets(), mark.to_ne_bytes()].concat(), None),
            Self::Binding { guest, address } => ([guest.octets(), address.octets()].concat(), None),
        }
    }

    /// How many seconds it lasts, if not for ever.
    pub(crate) fn lasts(&self) -> Option<u32> {
        matches!(self, Self::Binding { .. }).then_some(BOUND)
    }
}

/// Something that comes into a set or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub comes: bool,
    pub set: Set,
    pub element: Element,
}

/// What is in the sets because of one guest.
pub(crate) fn of_guest(address: Ipv4Addr, guest: &Guest) -> Vec<(Set, Element)> {
    let identity = Element::Identity { tap: tap_name(&guest.id), mac: mac(&guest.id), address };
    let mark = Element::Mark { guest: address, mark: mark(&guest.id) };
    let [there, denials] = [Set::Addresses, Set::Denials].map(|set| (set, Element::Guest(address)));
    let mut all = vec![(Set::Guests, identity), there, denials, (Set::Dialled, mark)];
    let ranges = guest.policy.allow_cidrs().iter();
    all.extend(ranges.map(|&range| (Set::Cidrs, Element::Range { guest: address, range })));
    if guest.policy.default_egress() == Egress::Deny {
        all.push((Set::Closed, Element::Guest(address)));
    }
    all
}

fn mac(id: &EngineId) -> [u8; 6] {
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(guest_mac(id).split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap_or_default();
    }
    mac
}

/// What turns loaded rules for `old` into rules for `new`, in one transaction. For guests without
/// bindings: those the kernel forgets by itself, so what it has of them is not known exactly, and loading
/// everything anew is the way.
pub fn change(old: &BTreeMap<Ipv4Addr, Guest>, new: &BTreeMap<Ipv4Addr, Guest>) -> Vec<Step> {
    let (old, new) = (memberships(old), memberships(new));
    let step = |comes| {
        move |(set, element, _): &(Set, Element, &str)| Step {
            comes,
            set: *set,
            element: element.clone(),
        }
    };
    let going = old.difference(&new).map(step(false));
    going.chain(new.difference(&old).map(step(true))).collect()
}

/// Elements, and whose they are: what one guest leaves behind, the next at its address does not take over.
fn memberships(guests: &BTreeMap<Ipv4Addr, Guest>) -> BTreeSet<(Set, Element, &str)> {
    let mut all = BTreeSet::new();
    for (&address, guest) in guests {
        let elements = of_guest(address, guest).into_iter();
        all.extend(elements.map(|(set, element)| (set, element, guest.id.as_str())));
    }
    all
}

/// The guests among `old` whose bindings a change to `new` makes void.
pub fn unbound<'a>(
    old: &'a BTreeMap<Ipv4Addr, Guest>,
    new: &'a BTreeMap<Ipv4Addr, Guest>,
) -> impl Iterator<Item = Ipv4Addr> + 'a {
    old.iter()
        .filter(|(address, guest)| {
            new.get(*address).is_none_or(|now| {
                now.id != guest.id || now.policy.allow_hosts() != guest.policy.allow_hosts()
            })
        })
        .map(|(address, _)| *address)
}

/// What binds `addresses` to the permission of `guest`, from now on. An element that exists would keep its
/// age if it were only added, so it goes first; and since only what exists can be deleted, it is added
/// before that. All in one transaction: no packet meets the moment between.
pub fn bind(guest: Ipv4Addr, addresses: &[Ipv4Addr]) -> Vec<Step> {
    let step = |comes| {
        move |&address: &Ipv4Addr| Step {
            comes,
            set: Set::Names,
            element: Element::Binding { guest, address },
        }
    };
    [true, false, true].into_iter().flat_map(|comes| addresses.iter().map(step(comes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_have_the_bytes_of_their_text() {
        let [guest, address] = ["10.0.1.2", "192.0.2.9"].map(|text| text.parse().unwrap());
        let mac = [2, 1, 0x23, 0x45, 0x67, 0x89];
        let identity = Element::Identity { tap: "t01234567".to_owned(), mac, address: guest };
        assert_eq!(identity.to_string(), r#""t01234567" . 02:01:23:45:67:89 . 10.0.1.2"#);
        let (key, end) = identity.key();
        assert_eq!(&key[..16], b"t01234567\0\0\0\0\0\0\0");
        assert_eq!(key[16..], [2, 1, 0x23, 0x45, 0x67, 0x89, 0, 0, 10, 0, 1, 2]);
        assert_eq!(end, None);
        let range = Element::Range { guest, range: "192.168.6.0/23".parse().unwrap() };
        let [first, last] =
            [[192, 168, 6, 0], [192, 168, 7, 255]].map(|b| [[10, 0, 1, 2], b].concat());
        assert_eq!(range.key(), (first, Some(last)));
        let binding = Element::Binding { guest, address };
        assert_eq!(binding.key(), (vec![10, 0, 1, 2, 192, 0, 2, 9], None));
        assert_eq!(binding.to_string(), "10.0.1.2 . 192.0.2.9 timeout 600s");
        assert_eq!((binding.lasts(), range.lasts()), (Some(600), None));
    }
}
