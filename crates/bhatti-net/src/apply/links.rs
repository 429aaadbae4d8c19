//! Links, addresses and routes of the thread's namespace, changed by netlink.
//!
//! Each run of `ip` costs 5 to 8 ms, which whoever makes a user's first sandbox would wait for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeBooleanOptionFlags, BridgeBooleanOptions, BridgeStpState,
    In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::namespace;
use crate::NetError;
use crate::names::{BRIDGE, UPLINK};
use crate::plan::{GATEWAY_MAC, LinkStep};

/// For a thing that is not there yet.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// For a thing that is there.
const CHANGE: u16 = 0;

/// Takes `steps` in this order, as far as the first that the kernel refuses.
pub(super) fn carry_out(steps: &[LinkStep]) -> Result<(), NetError> {
    let kernel = Kernel::reach().map_err(|source| NetError::Run { program: "netlink", source })?;
    for step in steps {
        let failed = |source| NetError::Link { step: step.to_string(), source };
        kernel.take(step).map_err(failed)?;
    }
    Ok(())
}

/// A socket on which one thing after the other is asked for.
struct Kernel {
    socket: OwnedFd,
}

impl Kernel {
    fn reach() -> io::Result<Self> {
        let family = nix::sys::socket::AddressFamily::Netlink;
        let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        Ok(Self { socket: socket(family, SockType::Raw, flags, protocol)? })
    }

    fn take(&self, step: &LinkStep) -> io::Result<()> {
        match step {
            LinkStep::Delete { dev } => self.ask(Message::DelLink(link(dev)?), CHANGE),
            LinkStep::AddPair { dev, namespace } => {
                let inside = namespace::open(namespace)?;
                let mut peer = named(UPLINK);
                peer.attributes.push(LinkAttribute::NetNsFd(inside.as_raw_fd()));
                let pair = InfoData::Veth(InfoVeth::Peer(peer));
                self.ask(Message::NewLink(of_kind(named(dev), InfoKind::Veth, pair)), NEW)
            }
            LinkStep::AddBridge => {
                let mut bridge = named(BRIDGE);
                bridge.attributes.push(LinkAttribute::Address(GATEWAY_MAC.to_vec()));
                let quick =
                    [InfoBridge::StpState(BridgeStpState::Disabled), InfoBridge::ForwardDelay(0)];
                let quick = InfoData::Bridge(quick.into());
                self.ask(Message::NewLink(of_kind(bridge, InfoKind::Bridge, quick)), NEW)
            }
            LinkStep::DeafBridge => {
                let deaf = BridgeBooleanOptionFlags::NoLinkLocalLearn;
                let deaf = BridgeBooleanOptions { value: deaf, mask: deaf };
                let deaf = InfoData::Bridge(vec![InfoBridge::MultiBoolOpt(deaf)]);
                self.ask(Message::NewLink(of_kind(link(BRIDGE)?, InfoKind::Bridge, deaf)), CHANGE)
            }
            LinkStep::Forget { dev, address } => {
                match self.ask(Message::DelAddress(self::address(dev, *address)?), CHANGE) {
                    // It went with another one of the same range.
                    Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
                    other => other,
                }
            }
            LinkStep::Address { dev, address } => {
                self.ask(Message::NewAddress(self::address(dev, *address)?), NEW)
            }
            LinkStep::UpWithoutIpv6 { dev } => {
                let mut silent = link(dev)?;
                let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
                let none = AfSpecUnspec::Inet6(vec![none]);
                silent.attributes.push(LinkAttribute::AfSpecUnspec(vec![none]));
                self.ask(Message::SetLink(silent), CHANGE)?;
                self.ask(Message::SetLink(up(dev)?), CHANGE)
            }
            LinkStep::Up { dev } => self.ask(Message::SetLink(up(dev)?), CHANGE),
            LinkStep::Default { via } => {
                let mut route = RouteMessage::default();
                route.header = RouteHeader {
                    address_family: AddressFamily::Inet,
                    table: RouteHeader::RT_TABLE_MAIN,
                    protocol: RouteProtocol::Boot,
                    scope: RouteScope::Universe,
                    kind: RouteType::Unicast,
                    ..RouteHeader::default()
                };
                route.attributes = vec![
                    RouteAttribute::Gateway(RouteAddress::Inet(*via)),
                    RouteAttribute::Oif(if_nametoindex(UPLINK)?),
                ];
                self.ask(Message::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
            }
        }
    }

    /// Asks for one thing; `Ok` means that the kernel has said so.
    fn ask(&self, what: Message, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut question = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(what));
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        // The kernel answers before `send` returns, or never.
        let length = match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => return Err(io::Error::other("the kernel does not answer")),
            length => length?,
        };
        let answer = answer.get(..length).unwrap_or_default();
        let answer = NetlinkMessage::<Message>::deserialize(answer).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(answer) if answer.code.is_none() => Ok(()),
            NetlinkPayload::Error(answer) => Err(answer.to_io()),
            _ => Err(io::Error::other("the kernel answers something else")),
        }
    }
}

/// A link that is there.
fn link(dev: &str) -> io::Result<LinkMessage> {
    let mut link = LinkMessage::default();
    link.header.index = if_nametoindex(dev)?;
    Ok(link)
}

/// A link that is to be.
fn named(dev: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(dev.to_owned()));
    link
}

fn of_kind(mut link: LinkMessage, kind: InfoKind, data: InfoData) -> LinkMessage {
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    link
}

fn up(dev: &str) -> io::Result<LinkMessage> {
    let mut link = link(dev)?;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Ok(link)
}

fn address(dev: &str, (address, len): (std::net::Ipv4Addr, u8)) -> io::Result<AddressMessage> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = len;
    message.header.scope = AddressScope::Universe;
    message.header.index = if_nametoindex(dev)?;
    let address = address.into();
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    Ok(message)
}
