//! The rules of one user's namespace, as text for `nft -f`. Pure.
//!
//! The chains are the same for everybody; what differs is in sets, so that a policy changes by
//! elements that come and go, in one transaction, and no packet ever meets half a policy. And rules that
//! are loaded before anybody knows whose they will be need nothing but elements.
//!
//! - `guests` (in the bridge): which device may speak with which hardware and which IPv4 address.
//!   Whatever else comes out of a guest, be it IPv6, a false source or a lie in ARP, ends there.
//! - `addresses`: the guests there are.
//! - `closed`: guests whose policy denies what no rule allows.
//! - `cidrs`: guest and range that its policy allows.
//! - `names`: guest and address that an allowed name was resolved to for it; each element goes when
//!   it has not been used for [`BOUND`].
//! - `dialled`: guest and the mark of the host's connections to it, which nobody else's packets bear.
//! - `denials`: how often each guest was denied something.
//! - `flows`: the connections that each guest has; beyond so many, new ones are refused. Only what begins
//!   one is looked at: what continues it is not counted again.
//! - `attempts`: what was denied, of late and as far as there is room, for whoever wants to tell.
//!
//! A private address is opened by a range alone: a name may lead there while the range is allowed, and
//! what it has bound must not outlive that.
//!
//! A name server that is out of a guest's reach is answered for by the one on the gateway, in its name:
//! sandboxes that were made before there was one still ask whom the host asked then.
//!
//! Every packet is judged, in both directions and whatever connection it belongs to: so what a new
//! policy denies is cut at its next packet.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bhatti_types::{EngineId, Ipv4Net, NEVER, NetPolicy, PRIVATE};

use super::elements::{Set, of_guest};
use crate::names::{BRIDGE, UPLINK};
use crate::plan::Names;

/// How many seconds an address stays bound to a name's permission without a packet.
pub(crate) const BOUND: u32 = 600;
/// How many seconds something that was denied is remembered.
const REMEMBERED: u32 = 60;
/// The most bindings in a namespace. When it is full nothing more is bound, and names are not
/// resolved.
const MAX_BINDINGS: u32 = 65_536;

/// The most connections of a guest that are tracked at a time. Counting takes the kernel time for each
/// one there is.
const MAX_FLOWS: u32 = 4096;
/// Where clouds have their name servers.
const LINK_LOCAL: &str = "169.254.0.0/16";

/// A guest, as far as the network cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What its siblings call it.
    pub name: String,
    /// Whose TAP and hardware address follow from it.
    pub id: EngineId,
    /// What it may reach beyond its siblings.
    pub policy: NetPolicy,
}

/// What the kernel has learned since the rules were loaded, and new ones must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Guest, bound address, and how many seconds the binding is still good for.
    pub bindings: Vec<(Ipv4Addr, Ipv4Addr, u32)>,
    /// Guest, and how many packets of it were denied.
    pub denials: BTreeMap<Ipv4Addr, u64>,
}

/// The rules of a namespace with these guests, in place of all it had.
pub fn namespace_rules(
    names: &Names,
    guests: &BTreeMap<Ipv4Addr, Guest>,
    carried: &Carried,
) -> String {
    let table = names.table();
    let (filter, bridge) = (filter_body(guests, carried), bridge_body(guests));
    super::transaction("inet", table, &filter) + &super::transaction("bridge", table, &bridge)
}

fn bridge_body(guests: &BTreeMap<Ipv4Addr, Guest>) -> String {
    let elements = elements(members(guests, Set::Guests));
    format!(
        "\
\tset guests {{
\t\ttype ifname . ether_addr . ipv4_addr
{elements}\t}}
\tchain prerouting {{
\t\ttype filter hook prerouting priority -300; policy drop;
\t\tether type ip iifname . ether saddr . ip saddr @guests accept
\t\tether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 \
             iifname . ether saddr . arp saddr ip @guests \
             iifname . arp saddr ether . arp saddr ip @guests accept
\t}}
"
    )
}

fn filter_body(guests: &BTreeMap<Ipv4Addr, Guest>, carried: &Carried) -> String {
    let bindings = carried.bindings.iter().filter(|(guest, ..)| guests.contains_key(guest));
    let bindings = bindings.map(|(guest, address, seconds)| {
        format!("{guest} . {address} timeout {BOUND}s expires {seconds}s")
    });
    let denials = guests.keys().map(|address| {
        let packets = carried.denials.get(address).copied().unwrap_or(0);
        format!("{address} counter packets {packets} bytes 0")
    });
    let addresses = elements(members(guests, Set::Addresses));
    let dialled = elements(members(guests, Set::Dialled));
    let never = elements(NEVER.iter().map(Ipv4Net::to_string));
    let private = elements(PRIVATE.iter().map(Ipv4Net::to_string));
    let cidrs = elements(members(guests, Set::Cidrs));
    let closed = elements(members(guests, Set::Closed));
    let bindings = elements(bindings);
    let denials = elements(denials);
    // What belongs to no connection any more is one that only the guest still knows of: no denial.
    // Bridged frames between siblings pass `forward` too where br_netfilter is loaded. A router
    // that reports an error on the way is rarely whom the guest spoke to.
    format!(
        "\
\tset never {{
\t\ttype ipv4_addr; flags interval
{never}\t}}
\tset private {{
\t\ttype ipv4_addr; flags interval
{private}\t}}
\tset addresses {{
\t\ttype ipv4_addr
{addresses}\t}}
\tset cidrs {{
\t\ttype ipv4_addr . ipv4_addr; flags interval
{cidrs}\t}}
\tset names {{
\t\ttype ipv4_addr . ipv4_addr; flags dynamic,timeout; size {MAX_BINDINGS}; timeout {BOUND}s
{bindings}\t}}
\tset closed {{
\t\ttype ipv4_addr
{closed}\t}}
\tset denials {{
\t\ttype ipv4_addr; counter
{denials}\t}}
\tset flows {{
\t\ttype ipv4_addr; flags dynamic; size 256
\t}}
\tset dialled {{
\t\ttype ipv4_addr . mark
{dialled}\t}}
\tset attempts {{
\t\ttype ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic,timeout
\t\tsize 1024; timeout {REMEMBERED}s
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy drop;
\t\tiifname \"{BRIDGE}\" ct status & confirmed == 0 jump room
\t\tiifname \"{BRIDGE}\" oifname \"{BRIDGE}\" accept
\t\tct state invalid drop
\t\tiifname \"{BRIDGE}\" oifname \"{UPLINK}\" ip saddr @addresses goto egress
\t\tiifname \"{UPLINK}\" oifname \"{BRIDGE}\" ct state established,related goto replies
\t}}
\tchain egress {{
\t\tip daddr @never goto denied
\t\tip saddr . ip daddr @cidrs accept
\t\tip daddr @private goto denied
\t\tip saddr . ip daddr @names update @names {{ ip saddr . ip daddr timeout {BOUND}s }} accept
\t\tip saddr @closed goto denied
\t\taccept
\t}}
\tchain replies {{
\t\tmeta l4proto icmp ct state related accept
\t\tip saddr @never drop
\t\tip daddr . ip saddr @cidrs accept
\t\tip saddr @private drop
\t\tip daddr . ip saddr @names update @names {{ ip daddr . ip saddr timeout {BOUND}s }} accept
\t\tip daddr @closed drop
\t\taccept
\t}}
\tchain room {{
\t\tip saddr @addresses add @flows {{ ip saddr ct count over {MAX_FLOWS} }} goto refused
\t}}
\tchain denied {{
\t\tmeta l4proto {{ tcp, udp }} update @attempts {{ ip saddr . ip daddr . meta l4proto . th dport }}
\t\tgoto refused
\t}}
\tchain refused {{
\t\tip saddr @denials
\t\tmeta l4proto tcp reject with tcp reset
\t\treject with icmp admin-prohibited
\t}}
\tchain input {{
\t\ttype filter hook input priority filter; policy drop;
\t\tiifname \"lo\" accept
\t\tct mark != 0 ip saddr . ct mark != @dialled drop
\t\tct state established,related accept
\t\tiifname \"{BRIDGE}\" ct status & confirmed == 0 jump room
\t\tiifname \"{BRIDGE}\" ip saddr @addresses fib daddr . iif type local jump at_gateway
\t\tiifname \"{BRIDGE}\" ip saddr @addresses goto denied
\t}}
\tchain at_gateway {{
\t\tmeta l4proto {{ tcp, udp }} th dport 53 accept
\t\ticmp type echo-request accept
\t\ttcp flags & (syn | ack) != syn reject with tcp reset
\t}}
\tchain output {{
\t\ttype filter hook output priority filter; policy accept;
\t\tmeta mark 0 accept
\t\tip daddr . meta mark != @dialled drop
\t\tct mark set meta mark
\t}}
\tchain prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tiifname \"{BRIDGE}\" ip saddr @addresses meta l4proto {{ tcp, udp }} th dport 53 goto questions
\t}}
\tchain questions {{
\t\tfib daddr . iif type local accept
\t\tip daddr @addresses accept
\t\tip daddr {LINK_LOCAL} redirect
\t\tip saddr . ip daddr @cidrs accept
\t\tip daddr @private redirect
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\toifname \"{UPLINK}\" masquerade
\t}}
"
    )
}

/// What of `guests` is in one of the sets.
fn members(guests: &BTreeMap<Ipv4Addr, Guest>, of: Set) -> impl Iterator<Item = String> {
    let all = guests.iter().flat_map(|(address, guest)| of_guest(*address, guest));
    all.filter(move |(set, _)| *set == of).map(|(_, element)| element.to_string())
}

/// The line of a set that says what is in it; `nft` refuses an empty one.
fn elements(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() {
        String::new()
    } else {
        format!("\t\telements = {{ {} }}\n", all.join(", "))
    }
}
