//! Both ends without I/O, and what the fuzz targets do with them. Shared with `fuzz/`.
//!
//! A script is any byte string. It is read as a sequence of steps that build what a peer sends:
//! valid records and frames, damaged ones, noise. So random input gets past checksum and epoch,
//! where plain noise would stop.

use std::task::{Context, Poll, Waker};

use bhatti_wire::Violation;
use bhatti_wire::codec;
use bhatti_wire::frame::{self, Body, Frame, MAX_FRAME, MAX_PAYLOAD};
use bhatti_wire::message::{
    ActivityReply, ArchiveReply, DirectoryPart, ExecInput, ExecOutput, FileReply, HelloReply,
    MAX_MESSAGE, PortsReply, Reply, Request, SessionInput, SessionList, SessionOutput,
};
use bhatti_wire::mux::{MAX_STREAMS, Mux, Role, WINDOW};
use bhatti_wire::record::{BURST_RECORDS, Nonce, Record, RecordKind};
use bhatti_wire::session::{GuestEvent, GuestSession, HostEvent, HostSession};

/// A guest with an application that keeps every stream it is given.
#[derive(Default)]
pub(crate) struct GuestEnd {
    pub(crate) session: GuestSession,
    pub(crate) mux: Option<Mux>,
    pub(crate) accepted: Vec<u32>,
    pub(crate) acks: usize,
    rest: Vec<u8>,
}

impl GuestEnd {
    /// Takes bytes as a carrier brings them.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let mut input = std::mem::take(&mut self.rest);
        input.extend_from_slice(bytes);
        let mut used = 0;
        loop {
            let (taken, event) = self.session.next(&input[used..]);
            used += taken;
            match event {
                None => break,
                Some(GuestEvent::Started(nonce)) => {
                    self.mux = Some(Mux::new(Role::Guest, nonce));
                    self.accepted.clear();
                    self.acks += 1;
                }
                Some(GuestEvent::Lost(_)) => self.mux = None,
                Some(GuestEvent::Frame(frame)) => {
                    let mux = self.mux.as_mut().expect("a frame belongs to a session");
                    match mux.receive(frame) {
                        Ok(opened) => self.accepted.extend(opened),
                        Err(_) => {
                            self.session.abandon();
                            self.mux = None;
                        }
                    }
                }
            }
        }
        input.drain(..used);
        assert!(input.len() < MAX_FRAME, "waits for more than a frame");
        self.rest = input;
        if let Some(mux) = &self.mux {
            check_bounds(mux);
        }
    }
}

/// A host in or before its session.
pub(crate) struct HostEnd {
    pub(crate) session: HostSession,
    pub(crate) mux: Mux,
    rest: Vec<u8>,
}

impl HostEnd {
    pub(crate) fn new(nonce: Nonce) -> Self {
        let (session, mux) = (HostSession::new(nonce), Mux::new(Role::Host, nonce));
        Self { session, mux, rest: Vec::new() }
    }

    /// Takes bytes as a carrier brings them. An error is the end of the link.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut input = std::mem::take(&mut self.rest);
        input.extend_from_slice(bytes);
        let mut used = 0;
        loop {
            let (taken, event) = self.session.next(&input[used..])?;
            used += taken;
            match event {
                None => break,
                Some(HostEvent::Ready | HostEvent::Established) => {}
                Some(HostEvent::Frame(frame)) => {
                    assert_eq!(self.mux.receive(frame)?, None, "a guest opened a stream");
                }
            }
        }
        input.drain(..used);
        assert!(input.len() < MAX_FRAME, "waits for more than a frame");
        self.rest = input;
        check_bounds(&self.mux);
        Ok(())
    }
}

fn check_bounds(mux: &Mux) {
    assert!(mux.known_streams() <= 2 * MAX_STREAMS, "too many streams");
    assert!(mux.held_bytes() <= mux.known_streams() * 2 * WINDOW, "too many bytes");
}

fn nonce(byte: u8) -> Nonce {
    Nonce::new([byte; 16])
}

/// Builds what a peer in session `current` sends, step by step, and hands over each piece.
fn play(script: &[u8], mut current: Nonce, mut sink: impl FnMut(&[u8]) -> bool) {
    let mut steps = script.iter().copied();
    while let Some(step) = steps.next() {
        let mut next = || steps.next().unwrap_or(0);
        let (a, b) = (next(), next());
        let stream = u32::from(a % 8);
        let data = vec![b; (1 + usize::from(b) * 300).min(MAX_PAYLOAD)];
        let body = match step % 16 {
            0..3 => Body::Open,
            3..7 => Body::Data(&data),
            7 => Body::Fin,
            8 => Body::Reset,
            9 | 10 => Body::Window(u32::from(b) * 512),
            11 => {
                let kind =
                    [RecordKind::Hello, RecordKind::Ack, RecordKind::Ready][usize::from(b % 3)];
                if kind == RecordKind::Hello {
                    current = nonce(a);
                }
                if !sink(&Record::new(kind, nonce(a)).encode()) {
                    return;
                }
                continue;
            }
            12 => {
                // A record or a header that stops short.
                let record = Record::new(RecordKind::Hello, nonce(a)).encode();
                if !sink(&record[..usize::from(b % 32)]) {
                    return;
                }
                continue;
            }
            13 => {
                if !sink(&[a, b, step]) {
                    return;
                }
                continue;
            }
            _ => Body::Data(&data[..1]),
        };
        let mut bytes = Vec::new();
        frame::encode(Frame { stream, body }, &current, &mut bytes);
        match step >> 4 {
            // Cut short.
            1 => bytes.truncate(bytes.len() * usize::from(a) / 256),
            // Damaged.
            2 => {
                let at = usize::from(a) % bytes.len();
                bytes[at] ^= b | 1;
            }
            // In small pieces.
            3 => {
                for piece in bytes.chunks(1 + usize::from(a)) {
                    if !sink(piece) {
                        return;
                    }
                }
                continue;
            }
            _ => {}
        }
        if !sink(&bytes) {
            return;
        }
    }
}

/// One step of an application that uses its streams as the script says.
fn use_streams(mux: &mut Mux, streams: &mut Vec<u32>, dice: u8) {
    let mut context = Context::from_waker(Waker::noop());
    let Some(&id) = streams.get(usize::from(dice) % streams.len().max(1)) else { return };
    let mut buffer = [0; 10_000];
    match dice % 7 {
        0 | 1 => drop(mux.poll_read(id, &mut context, &mut buffer)),
        2 | 3 => drop(mux.poll_write(id, &mut context, &buffer)),
        4 => drop(mux.shutdown(id)),
        5 => {
            mux.release(id);
            streams.retain(|&other| other != id);
        }
        _ => {
            let mut out = Vec::new();
            mux.transmit(&mut out);
        }
    }
    drop(mux.take_wakers());
}

/// Fuzz target: whatever a guest reads, it stays within bounds, and a burst wins it back.
pub(crate) fn guest_reads(script: &[u8]) {
    let mut guest = GuestEnd::default();
    guest.feed(&Record::new(RecordKind::Hello, nonce(0)).encode());
    let mut streams = Vec::new();
    play(script, nonce(0), |piece| {
        guest.feed(piece);
        match &mut guest.mux {
            Some(mux) => {
                streams.append(&mut guest.accepted);
                use_streams(mux, &mut streams, piece.iter().fold(0, |sum, b| sum ^ b));
            }
            None => streams.clear(),
        }
        true
    });
    recovers(&mut guest);
}

/// Fuzz target: the same for bytes that are nothing but noise.
pub(crate) fn guest_reads_noise(bytes: &[u8]) {
    let mut guest = GuestEnd::default();
    for piece in bytes.chunks(17) {
        guest.feed(piece);
    }
    recovers(&mut guest);
}

/// A burst of hellos, as a host sends it that gets no answer, and then real work.
pub(crate) fn recovers(guest: &mut GuestEnd) {
    let fresh = Nonce::new(*b"fresh randomness");
    let hello = Record::new(RecordKind::Hello, fresh);
    guest.feed(&hello.encode().repeat(BURST_RECORDS));
    assert_eq!(guest.session.current(), Some(fresh), "the guest was not won back");
    let mut work = Vec::new();
    frame::encode(Frame { stream: 1, body: Body::Open }, &fresh, &mut work);
    frame::encode(Frame { stream: 1, body: Body::Data(b"work") }, &fresh, &mut work);
    guest.accepted.clear();
    guest.feed(&work);
    assert_eq!(guest.accepted, [1]);
    let mux = guest.mux.as_mut().expect("in session");
    let mut got = [0; 8];
    let read = mux.poll_read(1, &mut Context::from_waker(Waker::noop()), &mut got);
    assert_eq!(read, Poll::Ready(Ok(4)));
    assert_eq!(&got[..4], b"work");
}

/// Fuzz target: whatever a host reads, it stays within bounds or ends the link.
pub(crate) fn host_reads(script: &[u8]) {
    let mut host = HostEnd::new(nonce(0));
    let ack = Record::new(RecordKind::Ack, nonce(0)).encode();
    host.feed(&ack).expect("the acknowledgement is in order");
    let mut streams: Vec<u32> = (0..6).filter_map(|_| host.mux.open().ok()).collect();
    play(script, nonce(0), |piece| {
        if host.feed(piece).is_err() {
            host.mux.kill();
            return false;
        }
        use_streams(&mut host.mux, &mut streams, piece.iter().fold(0, |sum, b| sum ^ b));
        true
    });
    for id in streams {
        host.mux.release(id);
    }
}

/// Fuzz target: decoding any message from any bytes.
pub(crate) fn messages(bytes: &[u8]) {
    fn all<M: prost::Message + Default>(bytes: &[u8]) {
        let mut input = bytes::BytesMut::from(bytes);
        while let Ok(Some(message)) = codec::decode::<M>(&mut input, MAX_MESSAGE) {
            let mut again = bytes::BytesMut::new();
            // Decoding may only ever shorten: unknown fields are dropped.
            codec::encode(&message, &mut again).expect("what was read can be written");
        }
    }
    all::<Request>(bytes);
    all::<ExecOutput>(bytes);
    all::<SessionOutput>(bytes);
    all::<SessionList>(bytes);
    all::<SessionInput>(bytes);
    all::<ExecInput>(bytes);
    all::<FileReply>(bytes);
    all::<DirectoryPart>(bytes);
    all::<ArchiveReply>(bytes);
    all::<PortsReply>(bytes);
    all::<ActivityReply>(bytes);
    all::<HelloReply>(bytes);
    all::<Reply>(bytes);
}
