//! Frames: what a session carries.
//!
//! ```text
//!   0    1        5               13       17                17+len    21+len
//!   ├────┼────────┼───────────────┼────────┼─────────────────┼─────────┤
//!   │kind│ stream │     epoch     │  len   │     payload     │  seal   │
//!   └────┴────────┴───────────────┴────────┴─────────────────┴─────────┘
//! ```
//!
//! Epoch and seal are two halves of the session's nonce. The epoch tells a frame of this session
//! from one of a former life. The seal tells a whole frame from one whose end was lost and was
//! filled up with what came next: without it, the beginning of a new handshake could end up in
//! somebody's file.
//!
//! Promise: [`decode`] looks at the length before anything waits for that many bytes.

use crate::Violation;
use crate::record::{FIRST_BYTE, Nonce};

/// Bytes before the payload.
const HEADER_LEN: usize = 17;
const SEAL_LEN: usize = 4;

/// What a frame costs beyond its payload.
pub const FRAME_OVERHEAD: usize = HEADER_LEN + SEAL_LEN;

/// The longest payload of one frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The longest frame.
pub const MAX_FRAME: usize = MAX_PAYLOAD + FRAME_OVERHEAD;

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which stream it is about.
    pub stream: u32,
    pub body: Body<'a>,
}

/// What a frame says about its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Host only: this stream exists now. Ids only ever grow within a session.
    Open,
    /// The next bytes, at least one.
    Data(&'a [u8]),
    /// The sender has no more bytes.
    Fin,
    /// The sender will neither send nor receive any more.
    Reset,
    /// The sender can take so many bytes more.
    Window(u32),
}

const OPEN: u8 = 1;
const DATA: u8 = 2;
const FIN: u8 = 3;
const RESET: u8 = 4;
const WINDOW: u8 = 5;
const _: () = assert!(FIRST_BYTE > WINDOW, "a frame must not look like a record");

/// Appends one frame. `Data` longer than [`MAX_PAYLOAD`] is the caller's mistake.
pub fn encode(frame: Frame<'_>, nonce: &Nonce, out: &mut Vec<u8>) {
    let window;
    let (kind, payload): (u8, &[u8]) = match frame.body {
        Body::Open => (OPEN, &[]),
        Body::Data(bytes) => (DATA, bytes),
        Body::Fin => (FIN, &[]),
        Body::Reset => (RESET, &[]),
        Body::Window(credit) => {
            window = credit.to_be_bytes();
            (WINDOW, &window)
        }
    };
    encode_parts(kind, frame.stream, [payload, &[]], nonce, out);
}

/// Appends one `Data` frame whose payload lies in two pieces, as a ring buffer has it.
pub(crate) fn encode_data(stream: u32, pieces: [&[u8]; 2], nonce: &Nonce, out: &mut Vec<u8>) {
    encode_parts(DATA, stream, pieces, nonce, out);
}

fn encode_parts(kind: u8, stream: u32, pieces: [&[u8]; 2], nonce: &Nonce, out: &mut Vec<u8>) {
    let len = pieces[0].len() + pieces[1].len();
    debug_assert!(len <= MAX_PAYLOAD);
    out.push(kind);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&nonce.epoch().to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    out.extend_from_slice(pieces[0]);
    out.extend_from_slice(pieces[1]);
    out.extend_from_slice(&nonce.seal());
}

/// Reads the frame `input` begins with and says how long it is. `Ok(None)`: more bytes needed.
pub fn decode<'a>(input: &'a [u8], nonce: &Nonce) -> Result<Option<(Frame<'a>, usize)>, Violation> {
    let Some(&kind) = input.first() else {
        return Ok(None);
    };
    if !(OPEN..=WINDOW).contains(&kind) {
        return Err(Violation::Kind(kind));
    }
    let Some(&header) = input.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let [_, s0, s1, s2, s3, epoch @ .., l0, l1, l2, l3] = header;
    if epoch != nonce.epoch().to_be_bytes() {
        return Err(Violation::Epoch);
    }
    let len = u32::from_be_bytes([l0, l1, l2, l3]);
    let fits = match kind {
        DATA => (1..=MAX_PAYLOAD as u32).contains(&len),
        WINDOW => len == 4,
        _ => len == 0,
    };
    if !fits {
        return Err(Violation::Length(len));
    }
    let end = HEADER_LEN + len as usize;
    let Some(seal) = input.get(end..end + SEAL_LEN) else {
        return Ok(None);
    };
    if seal != nonce.seal() {
        return Err(Violation::Seal);
    }
    let payload = &input[HEADER_LEN..end];
    let body = match (kind, payload) {
        (OPEN, _) => Body::Open,
        (FIN, _) => Body::Fin,
        (RESET, _) => Body::Reset,
        (WINDOW, &[a, b, c, d]) => Body::Window(u32::from_be_bytes([a, b, c, d])),
        _ => Body::Data(payload),
    };
    let stream = u32::from_be_bytes([s0, s1, s2, s3]);
    Ok(Some((Frame { stream, body }, end + SEAL_LEN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_body(data: &[u8]) -> [Body<'_>; 5] {
        [Body::Open, Body::Data(data), Body::Fin, Body::Reset, Body::Window(77)]
    }

    #[test]
    fn every_kind_survives_the_trip_and_waits_for_its_last_byte() {
        let nonce = Nonce::new(*b"0123456789abcdef");
        for body in every_body(b"payload") {
            let frame = Frame { stream: 0x0102_0304, body };
            let mut bytes = Vec::new();
            encode(frame, &nonce, &mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut], &nonce).unwrap(), None, "{body:?} cut at {cut}");
            }
            assert_eq!(decode(&bytes, &nonce).unwrap(), Some((frame, bytes.len())));
        }
    }

    #[test]
    fn a_frame_of_another_session_is_refused_at_its_head_and_at_its_tail() {
        let (ours, mut other) = (Nonce::new([1; 16]), [1; 16]);
        let mut bytes = Vec::new();
        encode(Frame { stream: 1, body: Body::Data(b"x") }, &ours, &mut bytes);
        other[15] = 2;
        assert_eq!(decode(&bytes, &Nonce::new(other)), Err(Violation::Seal));
        other[0] = 2;
        assert_eq!(decode(&bytes[..17], &Nonce::new(other)), Err(Violation::Epoch));
    }

    #[test]
    fn lengths_are_judged_before_the_payload_arrives() {
        let nonce = Nonce::new([0; 16]);
        for (kind, len, ok) in [
            (DATA, 0, false),
            (DATA, 1, true),
            (DATA, MAX_PAYLOAD as u32, true),
            (DATA, MAX_PAYLOAD as u32 + 1, false),
            (DATA, u32::MAX, false),
            (OPEN, 1, false),
            (WINDOW, 3, false),
        ] {
            let mut header = vec![kind; 1];
            header.extend([0; 12]);
            header.extend(u32::to_be_bytes(len));
            assert_eq!(decode(&header, &nonce).is_ok(), ok, "kind {kind} len {len}");
        }
        assert_eq!(decode(b"B", &nonce), Err(Violation::Kind(b'B')));
    }
}
