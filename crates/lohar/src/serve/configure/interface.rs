//! The one network interface, set up with ioctls: an image need not have `ip`.

use std::ffi::c_char;
use std::io;
use std::net::{AddrParseError, IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use bhatti_wire::message::Network;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Most name servers taken; the resolver library uses three.
const MAX_NAMESERVERS: usize = 8;

/// Most addresses looked at, of all interfaces together, and most rounds of removing one.
const MAX_ADDRESSES: usize = 128;

/// The settings make no sense.
#[derive(Debug, thiserror::Error)]
pub enum BadAddress {
    #[error("{field} {text:?} is not an address")]
    NotAnAddress {
        field: &'static str,
        text: String,
        #[source]
        source: AddrParseError,
    },
    #[error("prefix length {0} is not between 1 and 32")]
    Prefix(u32),
    #[error("{0:?} is not the MAC of one interface")]
    Mac(String),
    #[error("more than {MAX_NAMESERVERS} name servers")]
    ManyNameservers,
}

/// The kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error("the machine has no network device")]
    NoDevice,
    #[error("failed to {action}")]
    Kernel {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Checked settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub address: Ipv4Addr,
    pub prefix_len: u32,
    pub gateway: Option<Ipv4Addr>,
    pub nameservers: Vec<IpAddr>,
    pub mac: Option<[u8; 6]>,
}

impl Address {
    /// Checks what the host sent.
    pub fn parse(network: &Network) -> Result<Self, BadAddress> {
        fn address<A: std::str::FromStr<Err = AddrParseError>>(
            field: &'static str,
            text: &str,
        ) -> Result<A, BadAddress> {
            text.parse().map_err(|source| BadAddress::NotAnAddress {
                field,
                text: text.chars().take(64).collect(),
                source,
            })
        }
        if !(1..=32).contains(&network.prefix_len) {
            return Err(BadAddress::Prefix(network.prefix_len));
        }
        if network.nameservers.len() > MAX_NAMESERVERS {
            return Err(BadAddress::ManyNameservers);
        }
        let given = |text: &str| !text.is_empty();
        Ok(Self {
            address: address("address", &network.address)?,
            prefix_len: network.prefix_len,
            gateway: given(&network.gateway)
                .then(|| address("gateway", &network.gateway))
                .transpose()?,
            nameservers: network
                .nameservers
                .iter()
                .map(|text| address("name server", text))
                .collect::<Result<_, _>>()?,
            mac: given(&network.mac).then(|| parse_mac(&network.mac)).transpose()?,
        })
    }

    fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - self.prefix_len))
    }

    fn contains(&self, other: Ipv4Addr) -> bool {
        let mask = self.netmask().to_bits();
        other.to_bits() & mask == self.address.to_bits() & mask
    }

    /// Whether the interface is up with this address.
    pub fn is_applied(&self, known: Option<&str>) -> bool {
        open_device(known).is_ok_and(|(_, interface)| {
            interface.address().is_ok_and(|now| now == self.address)
                && interface.is_up().unwrap_or(false)
        })
    }

    /// Gives the first device these settings and no others. Returns its name, which makes the
    /// next time cheaper as `known`.
    pub fn apply(&self, known: Option<&str>) -> Result<String, InterfaceError> {
        let (name, device) = open_device(known)?;
        if !(known == Some(name.as_str()) && self.moves(&device)?) {
            // Down first: every former route and neighbour goes, and IPv6 addresses. The IPv4
            // ones stay, and so would one a user added to what this is a clone of.
            device.set_up(Up::No)?;
            device.remove_addresses()?;
            // No network of ours carries it (`bhatti-net`), and half a protocol is worse than
            // none. A kernel without IPv6 has no such file.
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").ok();
            if let Some(mac) = self.mac {
                device.set_mac(mac)?;
            }
            device.set_address(self.address)?;
            device.set_netmask(self.netmask())?;
            device.set_up(Up::Yes)?;
        }
        if let Some(gateway) = self.gateway {
            if !self.contains(gateway) {
                device.add_route(gateway, Ipv4Addr::BROADCAST, None)?;
            }
            device.add_route(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, Some(gateway))?;
        }
        Ok(name)
    }

    /// Changes MAC and address while the interface is up, if that leaves nothing behind. Taking
    /// it down and up again costs a clone that has just woken under emulation 20 ms of 57.
    ///
    /// With its only address an interface loses all routes and neighbours, as when it goes down.
    /// IPv6 it has none, or a user switched it on and keeps it.
    fn moves(&self, device: &Interface) -> Result<bool, InterfaceError> {
        let [former, none] = device.labels()?;
        let is_alone = former == Some(device.name) && none.is_none();
        let changes = is_alone && device.address()? != self.address;
        if !(changes && device.is_up()?) {
            return Ok(false);
        }
        // A driver may refuse while the interface is up.
        if self.mac.is_some_and(|mac| device.set_mac(mac).is_err()) {
            return Ok(false);
        }
        // The kernel takes the former address away first.
        device.set_address(self.address)?;
        device.set_netmask(self.netmask())?;
        Ok(true)
    }
}

/// Takes every address and route off the first device, and takes it down. Fine without a device.
pub fn clear() -> Result<(), InterfaceError> {
    let (_, device) = match open_device(None) {
        Err(InterfaceError::NoDevice) => return Ok(()),
        found => found?,
    };
    device.set_up(Up::No)?;
    device.remove_addresses()
}

fn parse_mac(text: &str) -> Result<[u8; 6], BadAddress> {
    let bad = || BadAddress::Mac(text.chars().take(64).collect());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
        if !part.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(bad());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    // The lowest bit marks a multicast address, which no interface can have.
    if parts.next().is_some() || mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(bad());
    }
    Ok(mac)
}

/// The device of ours: the one called `known`, if there is one, without a search. In a clone that
/// has just woken under emulation the search took 11 ms.
fn open_device(known: Option<&str>) -> Result<(String, Interface), InterfaceError> {
    if let Some(known) = known {
        let interface = Interface::open(known)?;
        if interface.flags().is_ok() {
            return Ok((known.to_owned(), interface));
        }
    }
    let name = first_device()?;
    let interface = Interface::open(&name)?;
    Ok((name, interface))
}

/// The first interface that is a device; the loopback is not.
fn first_device() -> Result<String, InterfaceError> {
    let entries = std::fs::read_dir("/sys/class/net")
        .map_err(|source| InterfaceError::Kernel { action: "list the network devices", source })?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names.into_iter().next().ok_or(InterfaceError::NoDevice)
}

/// Brings an interface up that needs nothing else: the loopback.
pub fn up(name: &str) -> io::Result<()> {
    let interface = Interface::open(name).map_err(io::Error::other)?;
    interface.set_up(Up::Yes).map_err(|error| match error {
        InterfaceError::Kernel { source, .. } => source,
        InterfaceError::NoDevice => io::Error::other(error),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Up {
    Yes,
    No,
}

/// What an address is called: its interface, perhaps with a colon and more.
type Label = [c_char; libc::IFNAMSIZ];

/// One interface and a socket to talk about it.
struct Interface {
    socket: OwnedFd,
    name: Label,
}

impl Interface {
    fn open(name: &str) -> Result<Self, InterfaceError> {
        let failed = |source| InterfaceError::Kernel { action: "open an interface", source };
        if name.len() >= libc::IFNAMSIZ {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let mut buffer = [0; libc::IFNAMSIZ];
        for (to, from) in buffer.iter_mut().zip(name.bytes()) {
            *to = from as c_char;
        }
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { socket, name: buffer })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: `ifreq` is plain data; all zeros is a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request
    }

    fn ioctl<T>(
        &self,
        action: &'static str,
        number: u32,
        argument: &mut T,
    ) -> Result<(), InterfaceError> {
        // SAFETY: every caller passes the structure that `number` is documented to take, with
        // all pointers in it valid for the call.
        let returned = unsafe {
            libc::ioctl(self.socket.as_raw_fd(), number as _, std::ptr::from_mut(argument))
        };
        if returned == -1 {
            return Err(InterfaceError::Kernel { action, source: io::Error::last_os_error() });
        }
        Ok(())
    }

    fn flags(&self) -> Result<i16, InterfaceError> {
        let mut request = self.request();
        self.ioctl("read the interface's flags", libc::SIOCGIFFLAGS as u32, &mut request)?;
        // SAFETY: the kernel filled this member.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    fn is_up(&self) -> Result<bool, InterfaceError> {
        Ok(self.flags()? & libc::IFF_UP as i16 != 0)
    }

    fn set_up(&self, up: Up) -> Result<(), InterfaceError> {
        let mut request = self.request();
        let others = self.flags()? & !(libc::IFF_UP as i16);
        request.ifr_ifru.ifru_flags =
            if up == Up::Yes { others | libc::IFF_UP as i16 } else { others };
        self.ioctl("bring the interface up or down", libc::SIOCSIFFLAGS as u32, &mut request)
    }

    fn set_mac(&self, mac: [u8; 6]) -> Result<(), InterfaceError> {
        let mut request = self.request();
        // SAFETY: `sockaddr` is plain data; all zeros is a value of it.
        let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
        address.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as c_char;
        }
        request.ifr_ifru.ifru_hwaddr = address;
        self.ioctl("set the MAC", libc::SIOCSIFHWADDR as u32, &mut request)
    }

    fn address(&self) -> Result<Ipv4Addr, InterfaceError> {
        let mut request = self.request();
        self.ioctl("read the address", libc::SIOCGIFADDR as u32, &mut request)?;
        // SAFETY: the kernel filled this member with an IPv4 address.
        let data = unsafe { request.ifr_ifru.ifru_addr.sa_data };
        let [_, _, a, b, c, d, ..] = data.map(|byte| byte as u8);
        Ok(Ipv4Addr::new(a, b, c, d))
    }

    /// Removes all IPv4 addresses, under whatever label (`eth0:1`) they are.
    fn remove_addresses(&self) -> Result<(), InterfaceError> {
        // Each round that finds one removes one: what a round adds is somebody's at work now.
        for _ in 0..MAX_ADDRESSES {
            let [Some(label), _] = self.labels()? else { return Ok(()) };
            let labelled =
                Self { socket: self.socket.try_clone().map_err(no_handle)?, name: label };
            labelled.set_address(Ipv4Addr::UNSPECIFIED)?;
        }
        Ok(())
    }

    /// The labels of this interface's first two addresses.
    fn labels(&self) -> Result<[Option<Label>; 2], InterfaceError> {
        // SAFETY: `ifreq` is plain data; all zeros is a value of it.
        let mut found: [libc::ifreq; MAX_ADDRESSES] = unsafe { std::mem::zeroed() };
        let mut list = libc::ifconf {
            ifc_len: size_of_val(&found) as libc::c_int,
            ifc_ifcu: libc::__c_anonymous_ifc_ifcu { ifcu_req: found.as_mut_ptr() },
        };
        self.ioctl("list the addresses", libc::SIOCGIFCONF as u32, &mut list)?;
        let count = usize::try_from(list.ifc_len).unwrap_or(0) / size_of::<libc::ifreq>();
        let labels = found.iter().take(count).map(|request| request.ifr_name);
        let mut ours = labels.filter(|label| is_label_of(label, &self.name));
        Ok([ours.next(), ours.next()])
    }

    fn set_address(&self, address: Ipv4Addr) -> Result<(), InterfaceError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = internet(address);
        self.ioctl("set the address", libc::SIOCSIFADDR as u32, &mut request)
    }

    fn set_netmask(&self, netmask: Ipv4Addr) -> Result<(), InterfaceError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_netmask = internet(netmask);
        self.ioctl("set the netmask", libc::SIOCSIFNETMASK as u32, &mut request)
    }

    fn add_route(
        &self,
        to: Ipv4Addr,
        netmask: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), InterfaceError> {
        let mut name = self.name;
        // SAFETY: `rtentry` is plain data; all zeros is a value of it.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = internet(to);
        route.rt_genmask = internet(netmask);
        route.rt_flags = libc::RTF_UP;
        if netmask == Ipv4Addr::BROADCAST {
            route.rt_flags |= libc::RTF_HOST;
        }
        if let Some(gateway) = gateway {
            route.rt_gateway = internet(gateway);
            route.rt_flags |= libc::RTF_GATEWAY;
        }
        route.rt_dev = name.as_mut_ptr();
        self.ioctl("add a route", libc::SIOCADDRT as u32, &mut route)
    }
}

/// `eth0` and `eth0:1` are labels of `eth0`, `eth01` is none.
fn is_label_of(label: &[c_char], device: &[c_char]) -> bool {
    let end = |byte: &&c_char| **byte != 0;
    let mut rest = label.iter().take_while(end);
    let same = device.iter().take_while(end).all(|byte| rest.next() == Some(byte));
    same && rest.next().is_none_or(|byte| *byte == b':' as c_char)
}

fn no_handle(source: io::Error) -> InterfaceError {
    InterfaceError::Kernel { action: "open an interface", source }
}

/// A socket address without a port, in the shape these old calls want.
fn internet(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: `sockaddr` is plain data; all zeros is a value of it.
    let mut socket_address: libc::sockaddr = unsafe { std::mem::zeroed() };
    socket_address.sa_family = libc::AF_INET as libc::sa_family_t;
    // Port in 0..2, address in 2..6, both in network order.
    for (to, from) in socket_address.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as c_char;
    }
    socket_address
}

#[cfg(test)]
mod tests;
