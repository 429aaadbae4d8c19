//! Carriers with a past, and guests that mean harm.

use std::io::ErrorKind;

use bhatti_link::{LinkEnd, LinkError, Mode, connect, ready_record};
use bhatti_wire::frame::{self, Body, Frame, MAX_PAYLOAD};
use bhatti_wire::record::{Nonce, Record, RecordKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::support::{guest, soon};

fn hello(nonce: [u8; 16]) -> [u8; 32] {
    Record::new(RecordKind::Hello, Nonce::new(nonce)).encode()
}

fn frame_bytes(nonce: [u8; 16], stream: u32, body: Body<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(Frame { stream, body }, &Nonce::new(nonce), &mut bytes);
    bytes
}

/// Reads until the guest's acknowledgement of `nonce`.
async fn until_ack(io: &mut DuplexStream, nonce: [u8; 16]) {
    let ack = Record::new(RecordKind::Ack, Nonce::new(nonce)).encode();
    let mut last = [0; 32];
    while last != ack {
        last.rotate_left(1);
        last[31] = soon(io.read_u8()).await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_cut_mid_frame_is_won_back() {
    let (mut carrier, guest_io) = duplex(64 * 1024);
    let mut accepted = guest(guest_io);
    // A former host: its last frame lacks all but a hundred bytes.
    carrier.write_all(&hello([1; 16])).await.unwrap();
    carrier.write_all(&frame_bytes([1; 16], 1, Body::Open)).await.unwrap();
    let long = frame_bytes([1; 16], 1, Body::Data(&[7; MAX_PAYLOAD]));
    carrier.write_all(&long[..100]).await.unwrap();
    let mut old = soon(accepted.recv()).await.unwrap();

    let (link, driver) = soon(connect(carrier, [2; 16], Mode::Reconnect)).await.unwrap();
    tokio::spawn(driver);
    let mut former = Vec::new();
    let error = soon(old.read_to_end(&mut former)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    assert!(former.is_empty(), "the handshake ended up in a former stream");
    let mut stream = link.open().unwrap();
    stream.write_all(b"new life").await.unwrap();
    let mut got = [0; 8];
    soon(soon(accepted.recv()).await.unwrap().read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"new life");
}

#[tokio::test]
async fn a_host_skips_what_a_former_life_left_behind() {
    let (host_io, mut guest_io) = duplex(1 << 20);
    let mut left = frame_bytes([1; 16], 1, Body::Data(&[66; 5000]))[99..].to_vec();
    left.extend(Record::new(RecordKind::Ack, Nonce::new([1; 16])).encode());
    left.extend(&ready_record()[..20]);
    guest_io.write_all(&left).await.unwrap();
    let connecting = tokio::spawn(connect(host_io, [2; 16], Mode::Reconnect));
    let mut got = [0; 32];
    soon(guest_io.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, hello([2; 16]));
    guest_io.write_all(&Record::new(RecordKind::Ack, Nonce::new([2; 16])).encode()).await.unwrap();
    assert!(soon(connecting).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_guest_that_starts_to_listen_late_is_greeted_again() {
    let (host_io, mut guest_io) = duplex(4096);
    let connecting = tokio::spawn(connect(host_io, [2; 16], Mode::FirstBoot));
    let mut lost = [0; 32];
    soon(guest_io.read_exact(&mut lost)).await.unwrap();
    guest_io.write_all(&ready_record()).await.unwrap();
    let _accepted = guest(guest_io);
    assert!(soon(connecting).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_new_session_on_the_same_carrier_replaces_the_old_one() {
    let (mut carrier, guest_io) = duplex(64 * 1024);
    let mut accepted = guest(guest_io);
    carrier.write_all(&hello([1; 16])).await.unwrap();
    carrier.write_all(&frame_bytes([1; 16], 5, Body::Open)).await.unwrap();
    let mut old = soon(accepted.recv()).await.unwrap();
    carrier.write_all(&hello([2; 16])).await.unwrap();
    carrier.write_all(&frame_bytes([2; 16], 5, Body::Open)).await.unwrap();
    until_ack(&mut carrier, [2; 16]).await;
    let new = soon(accepted.recv()).await.unwrap();
    assert_eq!(soon(old.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    // Same number, another stream: giving up the old one must not touch it.
    drop(old);
    carrier.write_all(&frame_bytes([2; 16], 5, Body::Data(b"x"))).await.unwrap();
    let mut byte = [0];
    soon((&new).read_exact(&mut byte)).await.unwrap();
}

/// Everything a hostile guest sends after a proper handshake ends the link, with its streams.
#[tokio::test]
async fn a_hostile_guest_costs_the_link_and_no_more() {
    let n = [2; 16];
    let too_much = frame_bytes(n, 1, Body::Data(&[0; MAX_PAYLOAD])).repeat(5);
    let mut cut = frame_bytes(n, 1, Body::Data(b"abc"));
    cut.truncate(20);
    cut.extend(frame_bytes(n, 1, Body::Fin));
    let attacks: [(&str, Vec<u8>); 9] = [
        ("noise", vec![0xff; 100]),
        ("a frame of another session", frame_bytes([3; 16], 1, Body::Fin)),
        ("a stream that was never opened", frame_bytes(n, 9, Body::Data(b"x"))),
        ("a stream the guest opens", frame_bytes(n, 2, Body::Open)),
        ("more than the window", too_much),
        ("credit nobody asked for", frame_bytes(n, 1, Body::Window(1))),
        ("data after the end", frame_bytes(n, 1, Body::Fin).repeat(2)),
        ("another handshake", ready_record().to_vec()),
        ("a frame that was cut", cut),
    ];
    for (what, bytes) in attacks {
        let (host_io, mut guest_io) = duplex(1 << 20);
        let connecting = tokio::spawn(connect(host_io, n, Mode::FirstBoot));
        guest_io.write_all(&Record::new(RecordKind::Ack, Nonce::new(n)).encode()).await.unwrap();
        let (link, driver) = soon(connecting).await.unwrap().unwrap();
        let mut stream = link.open().unwrap();
        guest_io.write_all(&bytes).await.unwrap();
        let end = soon(driver).await;
        assert!(matches!(end, LinkEnd::Violation(_)), "{what}: {end:?}");
        let mut rest = Vec::new();
        let read = soon(stream.read_to_end(&mut rest)).await;
        assert!(read.is_err() || what == "data after the end", "{what}");
        assert!(matches!(link.open(), Err(LinkError::Closed)), "{what}");
    }
}

#[tokio::test]
async fn an_acknowledgement_of_an_unknown_version_is_refused() {
    let (host_io, mut guest_io) = duplex(4096);
    let connecting = tokio::spawn(connect(host_io, [2; 16], Mode::FirstBoot));
    let mut ack = Record::new(RecordKind::Ack, Nonce::new([2; 16]));
    ack.version = 9;
    guest_io.write_all(&ack.encode()).await.unwrap();
    let result = soon(connecting).await.unwrap();
    assert!(matches!(result, Err(LinkError::Violation(_))));
}
