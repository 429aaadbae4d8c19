//! Messages on a byte stream: a big-endian `u32` length, then that many bytes of protobuf.
//!
//! Promises: a length above the limit is refused before anything is allocated for it; and what
//! is decoded takes memory of the order of its length, since it has at most [`MAX_FIELDS`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::message::MAX_MESSAGE;

/// Bytes before the body.
pub const PREFIX_LEN: usize = 4;

/// The most fields of one message, each element of a list counted. An empty element is two bytes
/// on the wire and a hundred in memory.
pub const MAX_FIELDS: usize = 8192;

/// Bytes that are not a message, or a message too long to be sent.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("message of {len} bytes, at most {limit} are allowed")]
    TooLong { len: usize, limit: usize },
    #[error("message of more than {MAX_FIELDS} fields")]
    TooMany,
    #[error("malformed message")]
    Malformed(#[source] prost::DecodeError),
}

/// Appends a message with its length.
pub fn encode<M: Message>(message: &M, out: &mut BytesMut) -> Result<(), CodecError> {
    let len = message.encoded_len();
    if len > MAX_MESSAGE {
        return Err(CodecError::TooLong { len, limit: MAX_MESSAGE });
    }
    out.reserve(PREFIX_LEN + len);
    out.put_u32(len as u32);
    message.encode_raw(out);
    Ok(())
}

/// The length of the body that a prefix announces, if it is within `limit`.
pub fn body_len(prefix: [u8; PREFIX_LEN], limit: usize) -> Result<usize, CodecError> {
    let limit = limit.min(MAX_MESSAGE);
    let len = u32::from_be_bytes(prefix) as usize;
    if len > limit { Err(CodecError::TooLong { len, limit }) } else { Ok(len) }
}

/// Takes one message of at most `limit` bytes from the front of `input`. `Ok(None)`: more bytes
/// needed. `bytes` fields of the message share `input`'s memory.
pub fn decode<M: Message + Default>(
    input: &mut BytesMut,
    limit: usize,
) -> Result<Option<M>, CodecError> {
    let Some(&prefix) = input.first_chunk::<PREFIX_LEN>() else {
        return Ok(None);
    };
    let len = body_len(prefix, limit)?;
    if input.len() < PREFIX_LEN + len {
        return Ok(None);
    }
    input.advance(PREFIX_LEN);
    decode_body(input.split_to(len).freeze()).map(Some)
}

/// Decodes what came after a prefix.
pub fn decode_body<M: Message + Default>(body: Bytes) -> Result<M, CodecError> {
    count_fields(&body)?;
    M::decode(body).map_err(CodecError::Malformed)
}

fn count_fields(mut body: &[u8]) -> Result<(), CodecError> {
    let mut count = 0;
    while !body.is_empty() {
        count += 1;
        if count > MAX_FIELDS {
            return Err(CodecError::TooMany);
        }
        let skipped = decode_key(&mut body).and_then(|(tag, wire_type)| {
            skip_field(wire_type, tag, &mut body, DecodeContext::default())
        });
        skipped.map_err(CodecError::Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ExitStatus, Nothing, SessionInfo, SessionList, WriteFile};

    #[test]
    fn a_message_waits_for_its_last_byte_and_leaves_the_next_alone() {
        let first = WriteFile { path: "/etc/motd".into(), mode: 0o644, size: 3, keep_mode: false };
        let mut whole = BytesMut::new();
        encode(&first, &mut whole).unwrap();
        let end = whole.len();
        encode(&ExitStatus { code: -1, timed_out: true }, &mut whole).unwrap();
        for cut in 0..end {
            let mut part = BytesMut::from(&whole[..cut]);
            assert!(decode::<WriteFile>(&mut part, MAX_MESSAGE).unwrap().is_none(), "{cut}");
        }
        assert_eq!(decode(&mut whole, MAX_MESSAGE).unwrap(), Some(first));
        let second = Some(ExitStatus { code: -1, timed_out: true });
        assert_eq!(decode(&mut whole, MAX_MESSAGE).unwrap(), second);
        assert!(whole.is_empty());
    }

    #[test]
    fn an_empty_message_is_a_message() {
        let mut bytes = BytesMut::from(&[0, 0, 0, 0][..]);
        assert_eq!(decode(&mut bytes, 0).unwrap(), Some(Nothing {}));
    }

    #[test]
    fn lengths_above_the_limit_are_refused_at_once() {
        for (len, limit, ok) in [
            (8u32, 8usize, true),
            (9, 8, false),
            (MAX_MESSAGE as u32, usize::MAX, true),
            (MAX_MESSAGE as u32 + 1, usize::MAX, false),
            (u32::MAX, usize::MAX, false),
        ] {
            let mut input = BytesMut::from(&len.to_be_bytes()[..]);
            assert_eq!(decode::<Nothing>(&mut input, limit).is_ok(), ok, "{len} of {limit}");
        }
    }

    #[test]
    fn a_list_of_nothing_is_not_as_large_as_it_could_be() {
        for (count, ok) in [(MAX_FIELDS, true), (MAX_FIELDS + 1, false), (MAX_MESSAGE / 2, false)] {
            let sessions = vec![SessionInfo::default(); count];
            let mut bytes = BytesMut::new();
            encode(&SessionList { failure: None, sessions }, &mut bytes).unwrap();
            let list = decode::<SessionList>(&mut bytes, MAX_MESSAGE);
            assert_eq!(list.is_ok(), ok, "{count}: {:?}", list.err());
        }
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let mut out = BytesMut::new();
        let long = WriteFile { path: "x".repeat(MAX_MESSAGE), mode: 0, size: 0, keep_mode: false };
        assert!(matches!(encode(&long, &mut out), Err(CodecError::TooLong { .. })));
        assert!(out.is_empty());
    }
}
