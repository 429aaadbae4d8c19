//! How long a small stream waits for large ones.

use std::task::{Context, Poll, Waker};

use bhatti_wire::frame::{self, Body};
use bhatti_wire::mux::{CHUNK, Mux, Role, SHARED_CHUNK};
use bhatti_wire::record::Nonce;

const NONCE: Nonce = Nonce::new([3; 16]);

fn fill(mux: &mut Mux, id: u32) -> usize {
    let mut context = Context::from_waker(Waker::noop());
    let mut total = 0;
    while let Poll::Ready(Ok(n)) = mux.poll_write(id, &mut context, &[1; 50_000]) {
        total += n;
    }
    total
}

/// The streams whose data is in `out`, in order, with the offset of each frame.
fn data_frames(mut out: &[u8]) -> Vec<(u32, usize)> {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some((frame, len)) = frame::decode(out, &NONCE).expect("our own frames are good") {
        if matches!(frame.body, Body::Data(_)) {
            frames.push((frame.stream, at));
        }
        out = &out[len..];
        at += len;
    }
    frames
}

#[test]
fn a_newcomer_goes_first_in_the_next_chunk() {
    let mut mux = Mux::new(Role::Host, NONCE);
    let bulk: Vec<u32> = (0..100).map(|_| mux.open().unwrap()).collect();
    for &id in &bulk {
        fill(&mut mux, id);
    }
    // One chunk is being written while the small one arrives.
    let mut under_way = Vec::new();
    mux.transmit(&mut under_way);
    assert!(under_way.len() <= SHARED_CHUNK);
    let small = mux.open().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(mux.poll_write(small, &mut context, b"key"), Poll::Ready(Ok(3)));
    let mut next = Vec::new();
    mux.transmit(&mut next);
    assert!(next.len() <= SHARED_CHUNK);
    let frames = data_frames(&next);
    let (_, at) = frames.iter().find(|(id, _)| *id == small).expect("in the next chunk");
    // The others are new as well until their first turn, so not quite the first frame.
    assert!(under_way.len() + at <= 2 * SHARED_CHUNK, "waits behind {at} bytes");
}

#[test]
fn a_small_stream_that_comes_back_overtakes_the_busy() {
    let mut mux = Mux::new(Role::Host, NONCE);
    let bulk: Vec<u32> = (0..4).map(|_| mux.open().unwrap()).collect();
    let small = mux.open().unwrap();
    for &id in &bulk {
        fill(&mut mux, id);
    }
    mux.transmit(&mut Vec::new());
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..5 {
        assert_eq!(mux.poll_write(small, &mut context, b"key"), Poll::Ready(Ok(3)));
        let mut out = Vec::new();
        mux.transmit(&mut out);
        let frames = data_frames(&out);
        assert_eq!(frames.first(), Some(&(small, 0)), "{frames:?}");
        assert!(frames.len() == 1 || frames.iter().any(|(id, _)| *id != small));
    }
}

#[test]
fn all_busy_streams_advance_alike() {
    let mut mux = Mux::new(Role::Host, NONCE);
    let ids: Vec<u32> = (0..4).map(|_| mux.open().unwrap()).collect();
    for &id in &ids {
        fill(&mut mux, id);
    }
    let mut counts = [0usize; 5];
    let mut out = Vec::new();
    mux.transmit(&mut out);
    mux.transmit(&mut out);
    for (id, _) in data_frames(&out) {
        counts[id as usize] += 1;
    }
    let (least, most) = (counts[1..].iter().min(), counts[1..].iter().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
}

#[test]
fn the_queue_is_bounded_and_leaves_room_for_everyone() {
    let mut mux = Mux::new(Role::Host, NONCE);
    let ids: Vec<u32> = (0..500).map(|_| mux.open().unwrap()).collect();
    let queued: Vec<usize> = ids.iter().map(|&id| fill(&mut mux, id)).collect();
    let total: usize = queued.iter().sum();
    assert!(queued.iter().all(|&n| n >= 16 * 1024), "somebody could queue nothing");
    assert!(total <= (1 << 20) + 500 * 16 * 1024, "{total} bytes are queued");
}

#[test]
fn one_stream_alone_gets_large_chunks() {
    let mut mux = Mux::new(Role::Host, NONCE);
    let id = mux.open().unwrap();
    fill(&mut mux, id);
    let mut out = Vec::new();
    mux.transmit(&mut out);
    assert!((CHUNK - 64 * 1024..=CHUNK).contains(&out.len()), "{}", out.len());
}
