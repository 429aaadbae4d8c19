//! What must be true of the network, as steps for the kernel and text for `nft -f`. Pure.
//!
//! The wanted state (who has a network, what its guests may do) and what was observed come in;
//! commands come out. Nothing here runs anything.
//!
//! Promises:
//! - From any observed state the commands lead to the wanted one, and applied to the wanted state
//!   they keep its links (`repair_completes_every_partial_state`).
//! - A rule set replaces the former one in one transaction: there is no moment without rules
//!   (`rule_sets_are_transactions`).
//! - The host's rules do not depend on which users exist, so creating one cannot break another's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bhatti_types::NEVER;

use crate::address::TransitPair;
use crate::names::{BRIDGE, UPLINK};
use crate::{Ipv4Net, NetError, guest_subnet, pool};

mod elements;
mod link;
mod rules;

pub use crate::names::Names;
pub use elements::{Element, Set, Step, bind, change, unbound};
pub use link::LinkStep;
pub(crate) use rules::BOUND;
pub use rules::{Carried, Guest, namespace_rules};

/// The gateway's MAC: the same in every namespace, so that a guest that wakes behind a rebuilt
/// bridge still has the right neighbour entry. Guests' begin with `02:`.
pub(crate) const GATEWAY_MAC: [u8; 6] = [6, 0, 0, 0, 0, 1];

/// The most connections of a user, all guests together, that the host tracks at a time.
const MAX_FLOWS: u32 = 8192;

/// The wanted state of one user's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The user.
    pub index: u32,
    /// Their guests, by address.
    pub guests: BTreeMap<Ipv4Addr, Guest>,
}

/// A link as it was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface name.
    pub name: String,
    /// Interface index in its namespace.
    pub index: u32,
    /// For a veth: the interface index of the other end in the other namespace.
    pub peer: Option<u32>,
    /// IPv4 addresses with their prefix lengths.
    pub addresses: Vec<(Ipv4Addr, u8)>,
}

/// What is at the place of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// A file that is no namespace: whoever made it crashed half-way.
    Stale,
    /// A namespace.
    Present,
}

/// What exists of one user's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The namespace's file.
    pub namespace: Seen,
    /// The host's end of the veth pair.
    pub host: Option<Link>,
    /// All links in the namespace.
    pub inside: Vec<Link>,
    /// What its rules have learned.
    pub carried: Carried,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The namespace has to be made first; [`Seen::Stale`] ones are removed before.
    pub create_namespace: bool,
    /// `nft` rules for the namespace, loaded before any link in it is up.
    pub rules: String,
    /// What such rules lack that were loaded for nobody; instead of `rules`, where a namespace with them
    /// ([`nobodys_rules`]) takes the place of the one to be made.
    pub elements: Vec<Step>,
    /// In the namespace, to make room: an uplink that leads elsewhere.
    pub clear: Vec<LinkStep>,
    /// On the host.
    pub host: Vec<LinkStep>,
    /// In the namespace.
    pub inside: Vec<LinkStep>,
}

/// Everything about one user's network that follows from the wanted state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPlan {
    /// The namespace.
    pub namespace: String,
    /// The host's end of the veth pair.
    pub veth: String,
    /// The guests' range.
    pub subnet: Ipv4Net,
    /// The guests' gateway, on the bridge.
    pub gateway: Ipv4Addr,
    pair: TransitPair,
    names: Names,
    wanted: Wanted,
}

impl UserPlan {
    /// The plan for `wanted`, with `transit` between namespaces and host.
    pub fn new(names: &Names, transit: Ipv4Net, wanted: Wanted) -> Result<Self, NetError> {
        crate::address::check_transit(transit)?;
        let index = wanted.index;
        Ok(Self {
            subnet: guest_subnet(index)?,
            gateway: pool::gateway(index)?,
            namespace: names.namespace(index),
            veth: names.veth(index),
            pair: TransitPair::of(transit, index),
            names: names.clone(),
            wanted,
        })
    }

    /// The tables of its namespace are called this.
    pub(crate) fn table(&self) -> &str {
        self.names.table()
    }

    /// The commands that lead from `observed` to this plan. Links that are right are kept, and
    /// with them the TAPs of running machines.
    pub fn repair(&self, observed: &Observed) -> Repair {
        let Self { namespace, veth, gateway, subnet, pair, .. } = self;
        let inside = |name: &str| observed.inside.iter().find(|link| link.name == name);
        let uplink = inside(UPLINK);
        let mut repair = Repair {
            create_namespace: observed.namespace != Seen::Present,
            rules: namespace_rules(&self.names, &self.wanted.guests, &observed.carried),
            elements: change(&BTreeMap::new(), &self.wanted.guests),
            clear: Vec::new(),
            host: Vec::new(),
            inside: Vec::new(),
        };

        // A pair is right only if each end is the other's peer: after a crash and a rebuilt
        // namespace the host's end can belong to a namespace that is about to vanish.
        let paired = match (&observed.host, uplink) {
            (Some(host), Some(uplink)) => {
                host.peer == Some(uplink.index) && uplink.peer == Some(host.index)
            }
            (None, _) | (_, None) => false,
        };
        let host = &mut repair.host;
        if !paired {
            if uplink.is_some() {
                repair.clear.push(LinkStep::Delete { dev: UPLINK.to_owned() });
            }
            if observed.host.is_some() {
                host.push(LinkStep::Delete { dev: veth.clone() });
            }
            host.push(LinkStep::AddPair { dev: veth.clone(), namespace: namespace.clone() });
        }
        let kept = observed.host.as_ref().filter(|_| paired);
        host.extend(address(veth, kept, (pair.host, TransitPair::LEN)));
        host.push(LinkStep::UpWithoutIpv6 { dev: veth.clone() });

        let up = |dev: &str| LinkStep::Up { dev: dev.to_owned() };
        let steps = &mut repair.inside;
        steps.push(up("lo"));
        if inside(BRIDGE).is_none() {
            steps.push(LinkStep::AddBridge);
        }
        steps.push(LinkStep::DeafBridge);
        steps.extend(address(BRIDGE, inside(BRIDGE), (*gateway, subnet.prefix_len())));
        steps.push(up(BRIDGE));
        let kept = uplink.filter(|_| paired);
        steps.extend(address(UPLINK, kept, (pair.inside, TransitPair::LEN)));
        steps.push(up(UPLINK));
        steps.push(LinkStep::Default { via: pair.host });
        repair
    }
}

/// Steps that leave `wanted` as the only IPv4 address of `dev`.
fn address(dev: &str, link: Option<&Link>, wanted: (Ipv4Addr, u8)) -> Vec<LinkStep> {
    let seen = link.map(|link| link.addresses.as_slice()).unwrap_or_default();
    if seen == [wanted] {
        return Vec::new();
    }
    let forget = |&address| LinkStep::Forget { dev: dev.to_owned(), address };
    let mut steps: Vec<_> = seen.iter().map(forget).collect();
    steps.push(LinkStep::Address { dev: dev.to_owned(), address: wanted });
    steps
}

/// The `nft` input that makes `body` the whole of `table`; one file of it is one transaction. Naming
/// the table first lets the deletion succeed when there is none.
fn transaction(family: &str, table: &str, body: &str) -> String {
    let table = format!("{family} {table}");
    format!("table {table}\ndelete table {table}\ntable {table} {{\n{body}}}\n")
}

/// The `nft` input that removes our table, whether or not it exists.
pub fn no_rules(names: &Names) -> String {
    let table = names.table();
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// The rules of a namespace that nobody has yet: they let nothing through.
pub fn nobodys_rules(names: &Names) -> String {
    namespace_rules(names, &BTreeMap::new(), &Carried::default())
}

/// The host's rules. A user's namespace cannot be trusted to have kept its own, so the host
/// repeats what matters: no other user, no host, nothing of what is never reachable, no false source,
/// no IPv6. Nor what the host makes of its own address (a container's published port): no policy has
/// judged that. Who asks the host is told no, not left waiting. And its table of connections is not filled
/// by one user: their namespace comes and goes, and forgets; this one remembers.
pub fn host_rules(names: &Names, transit: Ipv4Net) -> String {
    let veths = format!("\"{}*\"", names.veth_prefix());
    let never = NEVER.map(|range| range.to_string()).join(", ");
    let users = crate::MAX_INDEX + 1;
    let body = format!(
        "\
\tset flows {{
\t\ttype ipv4_addr; flags dynamic; size {users}
\t}}
\tchain refused {{
\t\tmeta l4proto tcp reject with tcp reset
\t\treject with icmp admin-prohibited
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter - 5; policy accept;
\t\tiifname {veths} jump from_users
\t\toifname {veths} jump to_users
\t}}
\tchain from_users {{
\t\toifname {veths} drop
\t\tmeta nfproto != ipv4 drop
\t\tct status dnat goto refused
\t\tfib saddr . iif oif missing drop
\t\tip daddr {{ {never} }} drop
\t\tct status & confirmed == 0 add @flows {{ ip saddr ct count over {MAX_FLOWS} }} counter goto refused
\t}}
\tchain to_users {{
\t\tct state established,related accept
\t\tdrop
\t}}
\tchain input {{
\t\ttype filter hook input priority filter - 5; policy accept;
\t\tiifname {veths} jump to_host
\t}}
\tchain to_host {{
\t\tct state established,related accept
\t\tmeta nfproto != ipv4 drop
\t\tgoto refused
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr {transit} oifname != {veths} masquerade
\t}}
"
    );
    transaction("inet", names.table(), &body)
}

#[cfg(test)]
mod tests;
