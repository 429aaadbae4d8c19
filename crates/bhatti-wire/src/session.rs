//! From a dirty byte stream to the frames of one session.
//!
//! ```text
//!   guest                                             host
//!   hunting ── Hello(n) ──▶ in session n              waiting ── Ack(n) ──▶ in session n
//!      ▲                     │  │  ▲                     │                     │
//!      └── malformed bytes ──┘  └──┘ Hello(m), m ≠ n     └ drops the rest      └ malformed: dead
//! ```
//!
//! The guest can be frozen at any byte and wake up with another host on the line, so it never
//! gives up: whatever it cannot read sends it hunting for the next `Hello`. The host opens a new
//! carrier for each session and treats the guest as hostile, so for it a malformed byte is final.
//!
//! Promises: both are functions of the bytes alone, keep no bytes of their own, and never ask
//! for more than [`MAX_FRAME`](crate::frame::MAX_FRAME) bytes at once. A burst of
//! [`BURST_RECORDS`](crate::record::BURST_RECORDS) `Hello`s brings any guest into that session
//! (`recovers_from_anything` in `tests`).

use crate::Violation;
use crate::frame::{self, Frame};
use crate::record::{self, FIRST_BYTE, Nonce, RECORD_LEN, RECORD_VERSION, Record, RecordKind};

/// What the guest's end found.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestEvent<'a> {
    /// A new session. Streams of the former one are gone; [`Record`] `Ack` is the answer.
    Started(Nonce),
    /// The next frame of the session.
    Frame(Frame<'a>),
    /// The session is over and the hunt begins. Streams are gone; `Ready` is the answer, so that
    /// a host which did not expect this hears of it.
    Lost(Violation),
}

/// The guest's end.
#[derive(Debug, Default)]
pub struct GuestSession {
    current: Option<Nonce>,
}

impl GuestSession {
    /// Hunting.
    pub fn new() -> Self {
        Self::default()
    }

    /// The session this is in.
    pub fn current(&self) -> Option<Nonce> {
        self.current
    }

    /// Takes what it can from the front of `input`: how many bytes are done with, and what they
    /// meant. Without an event it needs more input than there is.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> (usize, Option<GuestEvent<'a>>) {
        match self.current {
            None => self.hunt(input),
            Some(nonce) => self.in_session(input, nonce),
        }
    }

    /// Ends the session: a frame was well-formed and yet made no sense.
    pub fn abandon(&mut self) {
        self.current = None;
    }

    fn hunt<'a>(&mut self, input: &'a [u8]) -> (usize, Option<GuestEvent<'a>>) {
        let mut used = 0;
        loop {
            let (skipped, found) = record::scan(&input[used..]);
            used += skipped;
            match found {
                None => return (used, None),
                Some(Record { kind: RecordKind::Hello, nonce, .. }) => {
                    self.current = Some(nonce);
                    return (used, Some(GuestEvent::Started(nonce)));
                }
                Some(_) => {}
            }
        }
    }

    fn in_session<'a>(&mut self, input: &'a [u8], nonce: Nonce) -> (usize, Option<GuestEvent<'a>>) {
        let mut used = 0;
        // The rest of a burst: the same Hello again and again.
        while input.get(used) == Some(&FIRST_BYTE) {
            let Some(bytes) = input[used..].first_chunk::<RECORD_LEN>() else {
                return (used, None);
            };
            match Record::decode(bytes) {
                Some(Record { kind: RecordKind::Hello, nonce: new, .. }) => {
                    used += RECORD_LEN;
                    if new != nonce {
                        self.current = Some(new);
                        return (used, Some(GuestEvent::Started(new)));
                    }
                }
                // Only the first byte is done with: a record may begin right behind it.
                _ => return self.lose(used + 1, Violation::Record),
            }
        }
        match frame::decode(&input[used..], &nonce) {
            Ok(Some((frame, len))) => (used + len, Some(GuestEvent::Frame(frame))),
            Ok(None) => (used, None),
            Err(violation) => self.lose(used, violation),
        }
    }

    fn lose<'a>(&mut self, used: usize, why: Violation) -> (usize, Option<GuestEvent<'a>>) {
        self.current = None;
        (used, Some(GuestEvent::Lost(why)))
    }
}

/// What the host's end found.
#[derive(Debug, PartialEq, Eq)]
pub enum HostEvent<'a> {
    /// A guest began to listen: it has not seen any `Hello` yet, or lost the one it saw.
    Ready,
    /// The guest acknowledged our nonce.
    Established,
    /// The next frame of the session.
    Frame(Frame<'a>),
}

/// The host's end, for one session.
#[derive(Debug)]
pub struct HostSession {
    nonce: Nonce,
    established: bool,
}

impl HostSession {
    /// Waiting for the acknowledgement of `nonce`.
    pub fn new(nonce: Nonce) -> Self {
        Self { nonce, established: false }
    }

    /// The record to send, once or in a burst.
    pub fn hello(&self) -> Record {
        Record::new(RecordKind::Hello, self.nonce)
    }

    /// Whether the guest has acknowledged.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// Takes what it can from the front of `input`: how many bytes are done with, and what they
    /// meant. Without an event it needs more input than there is. An error is final.
    pub fn next<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<(usize, Option<HostEvent<'a>>), Violation> {
        if self.established {
            // In session the guest has no reason to send a record. One that does has begun anew.
            if input.first() == Some(&FIRST_BYTE) {
                return Err(Violation::Record);
            }
            let next = frame::decode(input, &self.nonce)?;
            return Ok(match next {
                Some((frame, len)) => (len, Some(HostEvent::Frame(frame))),
                None => (0, None),
            });
        }
        let mut used = 0;
        loop {
            let (skipped, found) = record::scan(&input[used..]);
            used += skipped;
            match found {
                None => return Ok((used, None)),
                Some(Record { kind: RecordKind::Ready, .. }) => {
                    return Ok((used, Some(HostEvent::Ready)));
                }
                Some(ack) if ack.kind == RecordKind::Ack && ack.nonce == self.nonce => {
                    if ack.version != RECORD_VERSION {
                        return Err(Violation::Version(ack.version));
                    }
                    self.established = true;
                    return Ok((used, Some(HostEvent::Established)));
                }
                Some(_) => {}
            }
        }
    }
}
