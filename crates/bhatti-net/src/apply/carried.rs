//! What the rules of a namespace have learned: bindings of names, and how often something was denied.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::Deserialize;

use super::{nft_inside, parse};
use crate::NetError;
use crate::plan::{BOUND, Carried};

/// What `nft -j list sets` prints.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    table: String,
    name: String,
    #[serde(default)]
    elem: Vec<serde_json::Value>,
}

/// An element of one of the two sets; those of others are not read.
#[derive(Deserialize)]
struct Element {
    elem: Content,
}

#[derive(Deserialize)]
struct Content {
    val: serde_json::Value,
    expires: Option<u32>,
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    packets: u64,
}

/// Something a guest wanted and was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) guest: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: &'static str,
    pub(crate) port: u16,
}

/// What is in the sets of `table`. A namespace without the table has learned nothing.
pub(crate) async fn carried(namespace: &str, table: &str) -> Result<Carried, NetError> {
    let args = &["-j", "list", "sets", "inet"];
    let text = nft_inside(namespace, "list a namespace's sets", args, String::new()).await?;
    Ok(read(parse("nft", &text)?, table))
}

fn read(listing: Listing, table: &str) -> Carried {
    let mut carried = Carried::default();
    let sets = listing.nftables.into_iter().filter_map(|item| item.set);
    for set in sets.filter(|set| set.table == table) {
        let elements = || set.elem.iter().filter_map(|value| Element::deserialize(value).ok());
        match set.name.as_str() {
            "names" => carried.bindings = elements().filter_map(binding).collect(),
            "denials" => carried.denials = elements().filter_map(denial).collect(),
            _ => {}
        }
    }
    carried
}

/// What guests wanted of late and were denied.
pub(crate) async fn attempts(namespace: &str, table: &str) -> Result<BTreeSet<Attempt>, NetError> {
    let args = &["-j", "list", "sets", "inet"];
    let text = nft_inside(namespace, "list a namespace's sets", args, String::new()).await?;
    let listing: Listing = parse("nft", &text)?;
    let sets = listing.nftables.into_iter().filter_map(|item| item.set);
    let ours = sets.filter(|set| set.table == table && set.name == "attempts");
    let elements = ours.flat_map(|set| set.elem);
    Ok(elements.filter_map(|value| attempt(Element::deserialize(value).ok()?)).collect())
}

fn attempt(Element { elem }: Element) -> Option<Attempt> {
    let [guest, to, protocol, port] = elem.val.get("concat")?.as_array()?.as_slice() else {
        return None;
    };
    // A number where the host has no `/etc/protocols`, as Debian without `netbase`.
    let protocol = match (protocol.as_str(), protocol.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => "tcp",
        (Some("udp"), _) | (_, Some(17)) => "udp",
        _ => return None,
    };
    Some(Attempt {
        guest: guest.as_str()?.parse().ok()?,
        to: to.as_str()?.parse().ok()?,
        protocol,
        port: u16::try_from(port.as_u64()?).ok()?,
    })
}

fn binding(Element { elem }: Element) -> Option<(Ipv4Addr, Ipv4Addr, u32)> {
    let [guest, address] = elem.val.get("concat")?.as_array()?.as_slice() else { return None };
    let [guest, address] = [guest, address].map(|value| value.as_str()?.parse().ok());
    // One that is about to go gets a second: 0 would be for ever.
    Some((guest?, address?, elem.expires?.clamp(1, BOUND)))
}

fn denial(Element { elem }: Element) -> Option<(Ipv4Addr, u64)> {
    Some((elem.val.as_str()?.parse().ok()?, elem.counter?.packets))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_listing_is_read_and_what_is_not_ours_is_not() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"set": {"family": "inet", "name": "names", "table": "t", "type": ["ipv4_addr", "ipv4_addr"],
              "flags": ["timeout"], "timeout": 600, "elem": [
              {"elem": {"val": {"concat": ["10.0.1.3", "192.0.2.9"]}, "timeout": 300, "expires": 299}},
              {"elem": {"val": {"concat": ["10.0.1.3", {"prefix": {"addr": "192.0.2.0", "len": 24}}]}}}]}},
            {"set": {"family": "inet", "name": "never", "table": "t", "elem": [
              {"prefix": {"addr": "0.0.0.0", "len": 8}}]}},
            {"set": {"family": "inet", "name": "names", "table": "other", "elem": [
              {"elem": {"val": {"concat": ["10.0.1.4", "192.0.2.9"]}, "expires": 9}}]}},
            {"set": {"family": "inet", "name": "denials", "table": "t", "elem": [
              {"elem": {"val": "10.0.1.3", "counter": {"packets": 7, "bytes": 9}}}]}}]}"#;
        let carried = read(parse("nft", text.as_bytes()).unwrap(), "t");
        let [guest, address] = ["10.0.1.3", "192.0.2.9"].map(|text| text.parse().unwrap());
        for (printed, protocol) in [("\"tcp\"", "tcp"), ("6", "tcp"), ("17", "udp")] {
            let concat = format!(r#"["10.0.1.3", "192.0.2.9", {printed}, 443]"#);
            let text = format!(r#"{{"elem": {{"val": {{"concat": {concat}}}, "expires": 59}}}}"#);
            let expected = Attempt { guest, to: address, protocol, port: 443 };
            assert_eq!(attempt(serde_json::from_str(&text).unwrap()), Some(expected));
        }
        assert_eq!(carried.bindings, [(guest, address, 299)]);
        assert_eq!(carried.denials, BTreeMap::from([(guest, 7)]));
    }
}
