//! What is done to links, addresses and routes, and how `ip` would be told. Pure.

use std::fmt;
use std::net::Ipv4Addr;

use super::GATEWAY_MAC;
use crate::names::{BRIDGE, UPLINK};

/// One change to the links of a namespace; printed, the line of `ip -batch` that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStep {
    /// Removes a link, and with one end of a pair the other.
    Delete { dev: String },
    /// Makes a pair, one end here and the uplink in `namespace`.
    AddPair { dev: String, namespace: String },
    /// Makes the bridge.
    AddBridge,
    /// Has the bridge learn nothing from what is addressed to it as such (LLDP): that passes no rule.
    DeafBridge,
    /// Takes an address from a link.
    Forget { dev: String, address: (Ipv4Addr, u8) },
    /// Gives a link an address.
    Address { dev: String, address: (Ipv4Addr, u8) },
    /// Brings a link up that has no address of its own making.
    UpWithoutIpv6 { dev: String },
    /// Brings a link up.
    Up { dev: String },
    /// Where everything goes that nothing else says.
    Default { via: Ipv4Addr },
}

impl fmt::Display for LinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete { dev } => write!(f, "link delete dev {dev}"),
            Self::AddPair { dev, namespace } => {
                write!(f, "link add name {dev} type veth peer name {UPLINK} netns {namespace}")
            }
            Self::AddBridge => {
                let [a, b, c, d, e, g] = GATEWAY_MAC;
                let mac = format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}");
                write!(
                    f,
                    "link add name {BRIDGE} address {mac} type bridge stp_state 0 forward_delay 0"
                )
            }
            Self::DeafBridge => {
                write!(f, "link set dev {BRIDGE} type bridge no_linklocal_learn 1")
            }
            Self::Forget { dev, address: (address, len) } => {
                write!(f, "address delete {address}/{len} dev {dev}")
            }
            Self::Address { dev, address: (address, len) } => {
                write!(f, "address add {address}/{len} dev {dev}")
            }
            Self::UpWithoutIpv6 { dev } => write!(f, "link set dev {dev} addrgenmode none up"),
            Self::Up { dev } => write!(f, "link set dev {dev} up"),
            Self::Default { via } => write!(f, "route replace default via {via} dev {UPLINK}"),
        }
    }
}
