//! However the carrier cuts the bytes and however streams interleave, each delivers exactly what
//! was written, in order, and its end after it.

use std::task::{Context, Poll, Waker};

use bhatti_wire::mux::{CHUNK, Gone, Mux};
use bhatti_wire::record::{Nonce, Record, RecordKind};
use proptest::prelude::*;

use super::drive::{GuestEnd, HostEnd};

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        end: usize,
        stream: usize,
        len: usize,
    },
    Read {
        end: usize,
        stream: usize,
        len: usize,
    },
    HalfClose {
        end: usize,
        stream: usize,
    },
    /// The carrier moves so many bytes.
    Carry {
        from: usize,
        len: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let end = 0..2usize;
    let stream = 0..4usize;
    prop_oneof![
        4 => (end.clone(), stream.clone(), 1..150_000usize)
            .prop_map(|(end, stream, len)| Step::Write { end, stream, len }),
        3 => (end.clone(), stream.clone(), 1..200_000usize)
            .prop_map(|(end, stream, len)| Step::Read { end, stream, len }),
        1 => (end.clone(), stream).prop_map(|(end, stream)| Step::HalfClose { end, stream }),
        6 => (end, prop_oneof![1..40usize, 1..200_000usize])
            .prop_map(|(from, len)| Step::Carry { from, len }),
    ]
}

/// One direction of one stream.
#[derive(Clone, Default)]
struct Direction {
    written: usize,
    read: usize,
    closed: bool,
    ended: bool,
}

struct World {
    host: HostEnd,
    guest: GuestEnd,
    /// On their way, by sender.
    wire: [Vec<u8>; 2],
    /// By sender and stream.
    directions: [Vec<Direction>; 2],
}

/// The byte at a place of a stream's direction.
fn byte(sender: usize, stream: usize, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8) ^ (stream * 67) ^ (sender * 129)) as u8
}

impl World {
    fn new(streams: usize) -> Self {
        let nonce = Nonce::new(*b"delivery of data");
        let (mut host, mut guest) = (HostEnd::new(nonce), GuestEnd::default());
        guest.feed(&Record::new(RecordKind::Hello, nonce).encode());
        host.feed(&Record::new(RecordKind::Ack, nonce).encode()).unwrap();
        for _ in 0..streams {
            host.mux.open().unwrap();
        }
        let directions = [vec![Direction::default(); streams], vec![Direction::default(); streams]];
        let mut world = Self { host, guest, wire: [Vec::new(), Vec::new()], directions };
        world.carry(0, CHUNK);
        assert_eq!(world.guest.accepted.len(), streams);
        world
    }

    fn mux(&mut self, end: usize) -> &mut Mux {
        match end {
            0 => &mut self.host.mux,
            _ => self.guest.mux.as_mut().expect("in session"),
        }
    }

    fn write(&mut self, end: usize, stream: usize, len: usize) {
        let direction = &self.directions[end][stream];
        let (from, closed) = (direction.written, direction.closed);
        let bytes: Vec<u8> = (from..from + len).map(|at| byte(end, stream, at)).collect();
        let mut context = Context::from_waker(Waker::noop());
        match self.mux(end).poll_write(stream as u32 + 1, &mut context, &bytes) {
            Poll::Ready(Ok(n)) => self.directions[end][stream].written += n,
            Poll::Ready(Err(gone)) => assert!(closed && gone == Gone::Closed, "{gone:?}"),
            Poll::Pending => {}
        }
    }

    /// Reads what `end` receives.
    fn read(&mut self, end: usize, stream: usize, len: usize) {
        let mut into = vec![0; len];
        let mut context = Context::from_waker(Waker::noop());
        let result = self.mux(end).poll_read(stream as u32 + 1, &mut context, &mut into);
        let direction = &mut self.directions[1 - end][stream];
        match result {
            Poll::Ready(Ok(0)) => {
                assert!(direction.closed && direction.read == direction.written, "early end");
                direction.ended = true;
            }
            Poll::Ready(Ok(n)) => {
                for (at, got) in (direction.read..).zip(&into[..n]) {
                    assert_eq!(*got, byte(1 - end, stream, at), "stream {stream} at {at}");
                }
                direction.read += n;
            }
            Poll::Ready(Err(gone)) => panic!("stream {stream} is {gone:?}"),
            Poll::Pending => {}
        }
    }

    fn half_close(&mut self, end: usize, stream: usize) {
        self.mux(end).shutdown(stream as u32 + 1).unwrap();
        self.directions[end][stream].closed = true;
    }

    /// Moves at most `len` bytes; says whether there were any.
    fn carry(&mut self, from: usize, len: usize) -> bool {
        let mut wire = std::mem::take(&mut self.wire[from]);
        if wire.len() < len {
            self.mux(from).transmit(&mut wire);
        }
        let n = wire.len().min(len);
        let moved: Vec<u8> = wire.drain(..n).collect();
        self.wire[from] = wire;
        match from {
            0 => self.guest.feed(&moved),
            _ => self.host.feed(&moved).unwrap(),
        }
        n > 0
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Write { end, stream, len } => self.write(end, stream, len),
            Step::Read { end, stream, len } => self.read(end, stream, len),
            Step::HalfClose { end, stream } => self.half_close(end, stream),
            Step::Carry { from, len } => drop(self.carry(from, len)),
        }
    }

    /// Lets everything arrive, then compares.
    fn settle(&mut self, streams: usize) {
        for (end, stream) in (0..2).flat_map(|end| (0..streams).map(move |s| (end, s))) {
            self.half_close(end, stream);
        }
        for _ in 0..200 {
            for end in 0..2 {
                while self.carry(end, CHUNK) {}
                for stream in 0..streams {
                    self.read(end, stream, CHUNK);
                }
            }
        }
        for direction in self.directions.iter().flatten() {
            assert!(direction.ended, "read {} of {}", direction.read, direction.written);
        }
        for id in 1..=streams as u32 {
            self.mux(0).release(id);
            self.mux(1).release(id);
        }
        assert_eq!(self.mux(0).known_streams() + self.mux(1).known_streams(), 0);
        assert!(!self.mux(0).has_output() && !self.mux(1).has_output());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn everything_arrives_in_order(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new(4);
        for step in steps {
            world.run(step);
        }
        world.settle(4);
    }
}
