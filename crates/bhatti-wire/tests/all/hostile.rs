//! The fuzz targets over pseudo-random and mutated input, so that every test run exercises them.

use bhatti_wire::codec;
use bhatti_wire::frame::{self, Body, Frame, MAX_FRAME, MAX_PAYLOAD};
use bhatti_wire::message::{Exec, Operation, Request};
use bhatti_wire::mux::{MAX_STREAMS, Mux, Role};
use bhatti_wire::record::{Nonce, Record, RecordKind};
use proptest::prelude::*;

use super::drive::{GuestEnd, guest_reads, guest_reads_noise, host_reads, messages, recovers};

/// A small generator: the runs must be the same on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let len = self.next() % most;
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn scripts_of_thousands_of_peers() {
    let mut dice = Dice(0x5eed);
    for _ in 0..1000 {
        let script = dice.bytes(200);
        guest_reads(&script);
        host_reads(&script);
    }
}

#[test]
fn noise_and_mutated_messages() {
    let mut dice = Dice(0xbad5eed);
    let exec = Exec { argv: vec!["sh".into(), "-c".into()], cwd: "/".into(), ..Exec::default() };
    let mut good = bytes::BytesMut::new();
    codec::encode(&Request { operation: Some(Operation::Exec(exec)) }, &mut good).unwrap();
    for _ in 0..2000 {
        let noise = dice.bytes(400);
        guest_reads_noise(&noise);
        messages(&noise);
        let mut mutated = good.to_vec();
        for _ in 0..1 + dice.next() % 4 {
            let at = dice.next() as usize % mutated.len();
            mutated[at] = dice.next() as u8;
        }
        messages(&mutated);
    }
}

/// The rule behind [`BURST_RECORDS`](bhatti_wire::record::BURST_RECORDS), at its edges: the
/// longest frame there is, cut at any place.
#[test]
fn recovers_from_anything() {
    let old = Nonce::new([1; 16]);
    let mut longest = Vec::new();
    let body = Body::Data(&[b'B'; MAX_PAYLOAD]);
    frame::encode(Frame { stream: 1, body }, &old, &mut longest);
    assert_eq!(longest.len(), MAX_FRAME);
    let cuts = (0..60).chain(65_000..65_032).chain(MAX_FRAME - 40..MAX_FRAME);
    for cut in cuts {
        let mut guest = GuestEnd::default();
        guest.feed(&Record::new(RecordKind::Hello, old).encode());
        guest.feed(&longest[..cut]);
        recovers(&mut guest);
        assert_eq!(guest.acks, 2, "cut at {cut}");
    }
}

#[test]
fn a_guest_refuses_more_streams_than_it_can_hold() {
    let nonce = Nonce::new([1; 16]);
    let mut mux = Mux::new(Role::Guest, nonce);
    let opened = (1..=MAX_STREAMS as u32 + 10)
        .filter(|&id| mux.receive(Frame { stream: id, body: Body::Open }).unwrap().is_some())
        .count();
    assert_eq!(opened, MAX_STREAMS);
    let (mut out, mut resets) = (Vec::new(), Vec::new());
    mux.transmit(&mut out);
    let mut rest = &out[..];
    while let Some((frame, len)) = frame::decode(rest, &nonce).unwrap() {
        assert_eq!(frame.body, Body::Reset);
        resets.push(frame.stream);
        rest = &rest[len..];
    }
    assert_eq!(resets, (MAX_STREAMS as u32 + 1..=MAX_STREAMS as u32 + 10).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn guests_survive(script in proptest::collection::vec(any::<u8>(), 0..600)) {
        guest_reads(&script);
    }

    #[test]
    fn hosts_survive(script in proptest::collection::vec(any::<u8>(), 0..600)) {
        host_reads(&script);
    }
}
