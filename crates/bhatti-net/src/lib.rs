//! Each user's network: a pure plan, and the small module that applies it.
//!
//! ```text
//!   guest          guest                 namespace <prefix><index>            host
//!   ┌──┴───┐      ┌──┴───┐   ┌───────────────────────────────────────┐
//!   │ t… (TAP) ───┤ t…   ├───┤ br0 10.hi.lo.1/24 ──route──▶ up0      ├──veth──▶ bh<tag>-<index>
//!   └──────┘      └──────┘   │                   masquerade, filter  │          masquerade, filter ──▶ world
//!                            └───────────────────────────────────────┘
//! ```
//!
//! One user is one network namespace with one bridge. The VMM gets an open TAP descriptor and
//! needs no privilege. Addresses are translated twice: leaving the namespace, so that guest ranges
//! never appear on the host and cannot collide with its LANs, and leaving the host.
//!
//! Promises, each with the test that holds it (`tests/all/`):
//! - Siblings reach each other, and the world as the host reaches it (`siblings_and_world`).
//! - Another user, the host and the link-local (metadata) range are unreachable, and a false
//!   source address goes nowhere (`other_user_is_unreachable`, `host_and_metadata_are_unreachable`,
//!   `false_source_goes_nowhere`).
//! - After release and close nothing is left on the host (`nothing_is_left`).
//! - Applying twice changes nothing; applying after a crash at any step repairs, and does not
//!   disturb the TAPs of running machines (`twice_is_once`, `half_built_is_repaired`).
//! - The filter of a namespace is loaded before its links come up, so no window is open.
//! - Every future may be dropped at any point; the work it asked for still completes.
//! - Nothing on the host is touched but interfaces, namespaces, one table and one route of our
//!   own names, and `net.ipv4.ip_forward` if it was off (it stays on).
//!
//! - A guest speaks with its own addresses or not at all (`no_lie_crosses_the_bridge`), and reaches
//!   what its policy allows, from its first packet on and through every change
//!   (`private_networks_are_denied_unless_they_are_named`,
//!   `a_changed_policy_holds_for_connections_there_are`).
//! - Names are answered on the gateway: siblings as the directory knows them at that moment, the
//!   rest as the asker's policy has it (`tests/all/names.rs`).
//!
//! Not here: which sandbox has which address and policy ([`Directory`]), publishing, IPv6. A host firewall
//! that drops forwarded packets (Docker sets one) still drops ours; [`Networks::open`] warns. A
//! service that flushes all rules takes ours too; [`Networks::open_tap`] puts them back.

mod address;
mod apply;
mod bindings;
mod dial;
mod directory;
mod dns;
mod error;
mod names;
mod networks;
mod next;
pub mod plan;
mod pool;
mod resolv;

pub use address::{MAX_INDEX, guest_subnet};
pub use bhatti_types::{BadNet, Ipv4Net};
pub use directory::{Denied, Directory};
pub use dns::Upstreams;
#[cfg(any(test, feature = "hostile"))]
pub use dns::hostile;
pub use error::NetError;
pub use networks::{Closed, NetConfig, Networks, Released};
pub use pool::{guest_mac, lowest_free};
pub use resolv::host_nameservers;
