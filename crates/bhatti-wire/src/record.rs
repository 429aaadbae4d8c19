//! The handshake: 32-byte records that make two ends of a dirty byte stream agree where a new
//! conversation begins.
//!
//! ```text
//!   0        8    9    10      12              28      32
//!   ├────────┼────┼────┼───────┼───────────────┼───────┤
//!   │ magic  │kind│ver │ zero  │     nonce     │ crc32 │
//!   └────────┴────┴────┴───────┴───────────────┴───────┘
//! ```
//!
//! `Ready` (guest → host) says that a guest began to listen. `Hello` (host → guest) carries a
//! fresh random nonce. `Ack` (guest → host) echoes it, and from there on both directions carry
//! frames of that session only.
//!
//! Promises: [`scan`] finds a record behind any garbage, however it was cut, and looks at each
//! byte a bounded number of times. A frame never starts with the first byte of a record.

use crate::frame;

/// Length of every record.
pub const RECORD_LEN: usize = 32;

/// The version this code speaks. A guest acknowledges with its own; the host decides.
pub const RECORD_VERSION: u8 = 1;

/// How every record begins. The last two bytes keep it out of text.
const MAGIC: [u8; 8] = *b"Bhatti\x00\xc5";

/// The byte that tells a record from a frame at a boundary.
pub(crate) const FIRST_BYTE: u8 = MAGIC[0];

const NONCE_AT: usize = 12;
const CRC_AT: usize = 28;

/// How many `Hello` records in a row reach a guest whatever it is in the middle of.
///
/// A guest that waits for the rest of a frame whose end was lost swallows at most one frame less
/// a byte. Behind that there must be one whole record, wherever the cut falls.
pub const BURST_RECORDS: usize = frame::MAX_FRAME.div_ceil(RECORD_LEN) + 2;

/// What makes one session different from every other. Fresh random bytes from the host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// Wraps random bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// What every frame of the session carries in its header.
    pub fn epoch(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// What every frame of the session ends with.
    pub(crate) fn seal(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }
}

impl std::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Enough to tell sessions apart in a log, not enough to forge one.
        write!(f, "Nonce({:04x}…)", self.epoch() >> 48)
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Guest to host: I am listening. The nonce means nothing.
    Ready,
    /// Host to guest: a new session.
    Hello,
    /// Guest to host: the session with this nonce begins here.
    Ack,
}

/// One handshake record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: RecordKind,
    /// [`RECORD_VERSION`] of the sender.
    pub version: u8,
    pub nonce: Nonce,
}

impl Record {
    /// A record of this version.
    pub fn new(kind: RecordKind, nonce: Nonce) -> Self {
        Self { kind, version: RECORD_VERSION, nonce }
    }

    /// "I am listening."
    pub fn ready() -> Self {
        Self::new(RecordKind::Ready, Nonce([0; 16]))
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = match self.kind {
            RecordKind::Ready => 1,
            RecordKind::Hello => 2,
            RecordKind::Ack => 3,
        };
        bytes[9] = self.version;
        bytes[NONCE_AT..CRC_AT].copy_from_slice(&self.nonce.0);
        let sum = crc32(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Reads one record. `None`: these bytes are not one.
    pub fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        if bytes[..8] != MAGIC || crc32(&bytes[..CRC_AT]).to_be_bytes() != bytes[CRC_AT..] {
            return None;
        }
        let kind = match bytes[8] {
            1 => RecordKind::Ready,
            2 => RecordKind::Hello,
            3 => RecordKind::Ack,
            _ => return None,
        };
        let nonce = Nonce(*bytes[NONCE_AT..].first_chunk()?);
        Some(Self { kind, version: bytes[9], nonce })
    }
}

/// Looks for the first whole record in `input`.
///
/// Returns how many bytes are done with, and the record that ended there. Without a record, what
/// is left of `input` (fewer than [`RECORD_LEN`] bytes) may be the beginning of one.
pub fn scan(input: &[u8]) -> (usize, Option<Record>) {
    let mut at = 0;
    while let Some(skip) = input[at..].iter().position(|&byte| byte == FIRST_BYTE) {
        at += skip;
        let Some(candidate) = input[at..].first_chunk::<RECORD_LEN>() else {
            let rest = &input[at..];
            let prefix = rest.len().min(MAGIC.len());
            if rest[..prefix] == MAGIC[..prefix] {
                return (at, None);
            }
            at += 1;
            continue;
        };
        match Record::decode(candidate) {
            Some(record) => return (at + RECORD_LEN, Some(record)),
            None => at += 1,
        }
    }
    (input.len(), None)
}

/// CRC-32 (IEEE 802.3, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    let step =
        |crc: u32, &byte: &u8| (crc >> 8) ^ CRC_TABLE[((crc ^ u32::from(byte)) & 0xff) as usize];
    !bytes.iter().fold(u32::MAX, step)
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_well_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_record_survives_the_trip_and_no_flipped_bit_does() {
        let record = Record::new(RecordKind::Hello, Nonce([7; 16]));
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Some(record));
        for bit in 0..RECORD_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn scanning_finds_a_record_behind_the_start_of_another() {
        let hello = Record::new(RecordKind::Hello, Nonce([9; 16]));
        for cut in 0..RECORD_LEN {
            let mut input = hello.encode()[..cut].to_vec();
            input.extend(hello.encode());
            input.push(1);
            let (used, found) = scan(&input);
            assert_eq!((used, found), (cut + RECORD_LEN, Some(hello)), "cut at {cut}");
        }
    }

    #[test]
    fn scanning_keeps_only_what_may_become_a_record() {
        assert_eq!(scan(b"xxBhat"), (2, None));
        assert_eq!(scan(b"xxBhax"), (6, None));
        assert_eq!(scan(b"BBBB"), (3, None));
        assert_eq!(scan(b""), (0, None));
    }
}
