//! A guest as small as can be: it sits behind a TAP descriptor where a VMM would, answers ARP and
//! echo requests, takes connections to one port, sends echo requests and datagrams, and remembers what it saw.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::DEADLINE;

type Mac = [u8; 6];

/// The header that IFF_VNET_HDR puts before each frame; all zeroes means nothing special.
const VNET_HEADER: [u8; 10] = [0; 10];
/// How long one question of a neighbour waits for its answer.
const RETRY: Duration = Duration::from_millis(100);
const ETHERNET: usize = 14;
pub(crate) const ARP: [u8; 2] = [8, 6];
pub(crate) const IPV4: [u8; 2] = [8, 0];
pub(crate) const IPV6: [u8; 2] = [0x86, 0xdd];
pub(crate) const VLAN: [u8; 2] = [0x81, 0];
const BROADCAST: Mac = [0xff; 6];
const ICMP: u8 = 1;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// The flag of a TCP segment that says no.
const RESET: u8 = 4;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// The port on which a guest takes connections.
const OPEN: u8 = 80;
/// The port a guest speaks from.
const PORT: u16 = 9999;

/// A running guest. Dropping it closes the TAP.
pub(crate) struct Guest {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    tap: File,
    mac: Mac,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    stop: AtomicBool,
    seen: Mutex<Vec<Vec<u8>>>,
    arrived: Condvar,
}

impl Guest {
    pub(crate) fn new(tap: OwnedFd, mac: &str, address: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        let mut bytes = [0; 6];
        for (byte, text) in bytes.iter_mut().zip(mac.split(':')) {
            *byte = u8::from_str_radix(text, 16).unwrap();
        }
        let shared = Arc::new(Shared {
            tap: tap.into(),
            mac: bytes,
            address,
            gateway,
            stop: AtomicBool::new(false),
            seen: Mutex::default(),
            arrived: Condvar::new(),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.serve()
        });
        Self { shared, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.shared.address
    }

    /// Whether `to` answers an echo request.
    pub(crate) fn pings(&self, to: Ipv4Addr) -> bool {
        let id = self.request_echo(to);
        self.shared.wait_for(DEADLINE, |frame| is_reply(frame, id)).is_some()
    }

    /// Whether `to` stays silent although `fence`, which is asked afterwards, answers.
    pub(crate) fn gets_no_answer(&self, to: Ipv4Addr, fence: Ipv4Addr) -> bool {
        let id = self.request_echo(to);
        self.fence(fence);
        !self.shared.seen.lock().unwrap().iter().any(|frame| is_reply(frame, id))
    }

    /// Returns when everything sent before has had time to take effect: `to` has answered what
    /// was sent later, several times.
    pub(crate) fn fence(&self, to: Ipv4Addr) {
        for _ in 0..3 {
            assert!(self.pings(to), "{to} answers");
        }
    }

    /// Sends a datagram.
    pub(crate) fn send(&self, to: Ipv4Addr, port: u16, text: &str) {
        self.send_as(self.shared.address, to, port, text);
    }

    /// Sends a datagram that claims to come from `from`.
    pub(crate) fn send_as(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &str) {
        self.send_bytes(from, to, port, text.as_bytes());
    }

    pub(crate) fn send_bytes(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16, bytes: &[u8]) {
        self.send_packet(from, to, UDP, &udp(port, bytes));
    }

    /// Sends a datagram to each of `ports` beyond the gateway.
    pub(crate) fn send_to_each(&self, to: Ipv4Addr, ports: impl Iterator<Item = u16>) {
        let hop = self.resolve(self.shared.gateway);
        for port in ports {
            let payload = packet(self.shared.address, to, UDP, &udp(port, b"to each"));
            self.shared.send_frame(hop, IPV4, &payload);
        }
    }

    /// What a datagram is as a packet.
    pub(crate) fn datagram(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &str) -> Vec<u8> {
        packet(from, to, UDP, &udp(port, text.as_bytes()))
    }

    /// The same, as the first of several fragments.
    pub(crate) fn fragment(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &str) -> Vec<u8> {
        let mut first = self.datagram(from, to, port, text);
        first[6] = 0x20; // more follow
        first[10..12].fill(0);
        let sum = checksum(&first[..20]);
        first[10..12].copy_from_slice(&sum);
        first
    }

    /// Sends a frame as it is.
    pub(crate) fn send_raw(&self, to: Mac, from: Mac, kind: [u8; 2], payload: &[u8]) {
        let frame = [&VNET_HEADER[..], &to, &from, &kind, payload].concat();
        (&self.shared.tap).write_all(&frame).unwrap();
    }

    pub(crate) fn mac(&self) -> Mac {
        self.shared.mac
    }

    /// Asks a name server, until it answers; gives the answer.
    pub(crate) fn ask(&self, server: Ipv4Addr, question: &[u8]) -> Vec<u8> {
        let is_answer = |frame: &[u8]| {
            frame[12..14] == IPV4
                && frame[23] == UDP
                && frame[26..30] == server.octets()
                && frame[34..36] == [0, 53]
                && frame.get(42..44) == question.get(..2)
        };
        let end = Instant::now() + DEADLINE;
        let frame = loop {
            self.send_bytes(self.shared.address, server, 53, question);
            // Again and again, as every resolver does.
            if let Some(frame) = self.shared.wait_for(Duration::from_secs(1), is_answer) {
                break frame;
            }
            assert!(Instant::now() < end, "{server} does not answer for names");
        };
        let len = usize::from(u16::from_be_bytes([frame[38], frame[39]]));
        frame[42..34 + len].to_vec()
    }

    /// The type and code of the first ICMP message that is no echo, as soon as there is one. Forgets
    /// what it has seen.
    pub(crate) fn refused_with(&self) -> Option<(u8, u8)> {
        let is_error = |frame: &[u8]| {
            frame[12..14] == IPV4 && frame[23] == ICMP && !matches!(frame[34], 0 | 8)
        };
        let frame = self.shared.wait_for(DEADLINE, is_error)?;
        self.shared.seen.lock().unwrap().clear();
        Some((frame[34], frame[35]))
    }

    /// Whether a connection to port 7 of `to` is reset.
    pub(crate) fn is_reset_by(&self, to: Ipv4Addr) -> bool {
        self.answer_to_syn(to, 7) & RESET != 0
    }

    /// Whether somebody takes a connection to `port` of `to`, in the name of that address; if not, it is
    /// reset.
    pub(crate) fn connects_to(&self, to: Ipv4Addr, port: u16) -> bool {
        self.answer_to_syn(to, port) & RESET == 0
    }

    /// The flags of what comes back when a connection is asked for. Forgets what it has seen.
    fn answer_to_syn(&self, to: Ipv4Addr, port: u16) -> u8 {
        let is_answer = |frame: &[u8]| {
            frame[12..14] == IPV4
                && frame[23] == TCP
                && frame[26..30] == to.octets()
                && frame[34..36] == port.to_be_bytes()
        };
        let syn = tcp_syn(self.shared.address, to, port);
        self.send_packet(self.shared.address, to, TCP, &syn);
        let answer = self.shared.wait_for(DEADLINE, is_answer).expect("an answer to a SYN");
        self.shared.seen.lock().unwrap().clear();
        answer[47]
    }

    /// Whether a frame with `text` in it has arrived so far.
    pub(crate) fn saw(&self, text: &str) -> bool {
        self.shared.seen.lock().unwrap().iter().any(|frame| contains(frame, text))
    }

    /// The request for a connection that has arrived at the open port, if one has.
    pub(crate) fn was_asked(&self) -> Option<Vec<u8>> {
        let asks = |frame: &&Vec<u8>| {
            frame[12..14] == IPV4 && frame[23] == TCP && frame[47] & (SYN | ACK) == SYN
        };
        self.shared.seen.lock().unwrap().iter().find(asks).cloned()
    }

    /// Sends the first bytes of a connection that was begun like this, whoever has taken it.
    pub(crate) fn says_on(&self, request: &[u8], text: &str) {
        self.shared.send_segment(request, 1, ACK, text);
    }

    fn request_echo(&self, to: Ipv4Addr) -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut message = [0x0800, 0, id, 1].map(u16::to_be_bytes).concat();
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
        self.send_packet(self.shared.address, to, ICMP, &message);
        id
    }

    fn send_packet(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let near = to.octets()[..3] == self.shared.address.octets()[..3];
        let hop = self.resolve(if near { to } else { self.shared.gateway });
        self.shared.send_frame(hop, IPV4, &packet(from, to, protocol, payload));
    }

    fn resolve(&self, address: Ipv4Addr) -> Mac {
        let is_answer = |frame: &[u8]| {
            frame[12..14] == ARP && frame[20..22] == [0, 2] && frame[28..32] == address.octets()
        };
        let end = Instant::now() + DEADLINE;
        loop {
            // Asked again, as every stack does: the bridge of a first guest is told by a worker of
            // the kernel that it has a carrier, and answers nothing before.
            self.shared.send_frame(BROADCAST, ARP, &self.shared.arp(1, [0; 6], address));
            if let Some(frame) = self.shared.wait_for(RETRY, is_answer) {
                return frame[22..28].try_into().unwrap();
            }
            assert!(Instant::now() < end, "{address} does not answer ARP");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the guest's thread");
        }
    }
}

impl Shared {
    fn serve(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(20u8)).unwrap() == 0 {
                continue;
            }
            let mut buffer = [0; 2048];
            let len = (&self.tap).read(&mut buffer).unwrap();
            let frame = &buffer[VNET_HEADER.len()..len];
            self.answer(frame);
            self.seen.lock().unwrap().push(frame.to_vec());
            self.arrived.notify_all();
        }
    }

    fn answer(&self, frame: &[u8]) {
        let sender: Mac = frame[6..12].try_into().unwrap();
        let own = self.address.octets();
        if frame[12..14] == ARP && frame[20..22] == [0, 1] && frame[38..42] == own {
            let asker: [u8; 4] = frame[28..32].try_into().unwrap();
            self.send_frame(sender, ARP, &self.arp(2, sender, asker.into()));
        }
        let asks = frame.get(47).is_some_and(|flags| flags & (SYN | ACK) == SYN);
        if asks && frame[12..14] == IPV4 && frame[23] == TCP && frame[36..38] == [0, OPEN] {
            self.send_segment(frame, 0, SYN | ACK, "");
        }
        let is_echo = frame[12..14] == IPV4 && frame[23] == ICMP && frame.get(34) == Some(&8);
        if is_echo && frame[30..34] == own {
            let asker: [u8; 4] = frame[26..30].try_into().unwrap();
            let len = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let mut message = frame[34..ETHERNET + len].to_vec();
            message[..4].fill(0);
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
            self.send_frame(sender, IPV4, &packet(self.address, asker.into(), ICMP, &message));
        }
    }

    /// Answers a segment with another one of the same connection. Ours begins with number zero.
    fn send_segment(&self, frame: &[u8], sequence: u32, flags: u8, text: &str) {
        let number = u32::from_be_bytes(frame[38..42].try_into().unwrap()).wrapping_add(1);
        let mut segment = [&frame[36..38], &frame[34..36]].concat();
        segment.extend(sequence.to_be_bytes());
        segment.extend(number.to_be_bytes());
        segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(text.as_bytes());
        let asker: [u8; 4] = frame[26..30].try_into().unwrap();
        let segment = summed(self.address, asker.into(), segment);
        let packet = packet(self.address, asker.into(), TCP, &segment);
        self.send_frame(frame[6..12].try_into().unwrap(), IPV4, &packet);
    }

    fn arp(&self, operation: u8, target: Mac, address: Ipv4Addr) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&head[..], &self.mac, &self.address.octets(), &target, &address.octets()].concat()
    }

    fn send_frame(&self, to: Mac, kind: [u8; 2], payload: &[u8]) {
        let frame = [&VNET_HEADER[..], &to, &self.mac, &kind, payload].concat();
        (&self.tap).write_all(&frame).unwrap();
    }

    fn wait_for(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        let mut seen = self.seen.lock().unwrap();
        loop {
            if let Some(frame) = seen.iter().find(|frame| wanted(frame)) {
                return Some(frame.clone());
            }
            let left = end.checked_duration_since(Instant::now())?;
            seen = self.arrived.wait_timeout(seen, left).unwrap().0;
        }
    }
}

fn udp(port: u16, bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + bytes.len()).unwrap();
    // Checksum 0: none, which IPv4 allows.
    let mut datagram = [PORT, port, len, 0].map(u16::to_be_bytes).concat();
    datagram.extend(bytes);
    datagram
}

fn tcp_syn(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut segment = [PORT, port].map(u16::to_be_bytes).concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
    summed(from, to, segment)
}

/// A segment with its checksum.
fn summed(from: Ipv4Addr, to: Ipv4Addr, mut segment: Vec<u8>) -> Vec<u8> {
    let length = u8::try_from(segment.len()).unwrap();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, TCP, 0, length], &segment].concat();
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum);
    segment
}

fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    header.extend(payload);
    header
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn is_reply(frame: &[u8], id: u16) -> bool {
    frame[12..14] == IPV4
        && frame.len() >= 42
        && frame[23] == ICMP
        && frame[34] == 0
        && frame[38..40] == id.to_be_bytes()
}

fn contains(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len()).any(|window| window == text.as_bytes())
}
