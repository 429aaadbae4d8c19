//! The end of what a program printed.

use std::collections::VecDeque;

use bhatti_wire::message::SCROLLBACK;
use bytes::{BufMut, Bytes, BytesMut};

/// How far into a cut beginning a line's end is looked for.
const LOOK: usize = 4096;

/// The last [`SCROLLBACK`] bytes.
#[derive(Debug, Default)]
pub(super) struct Scrollback {
    bytes: VecDeque<u8>,
    /// Something has been dropped.
    cut: bool,
}

impl Scrollback {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(SCROLLBACK)..];
        let over = (self.bytes.len() + bytes.len()).saturating_sub(SCROLLBACK);
        self.cut |= over > 0;
        self.bytes.drain(..over);
        self.bytes.extend(bytes);
    }

    /// All of it. What has lost its beginning starts with a line, if there is one near: half an
    /// escape sequence would be printed as text.
    pub(super) fn replay(&self) -> Bytes {
        let mut near = self.bytes.iter().take(LOOK);
        let skip = match self.cut {
            true => near.position(|byte| *byte == b'\n').map_or(0, |end| end + 1),
            false => 0,
        };
        let mut replay = BytesMut::with_capacity(self.bytes.len());
        let (front, back) = self.bytes.as_slices();
        replay.put_slice(&front[skip.min(front.len())..]);
        replay.put_slice(&back[skip.saturating_sub(front.len())..]);
        replay.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_stay_and_begin_with_a_line() {
        let mut scrollback = Scrollback::default();
        assert!(scrollback.replay().is_empty());
        scrollback.push(b"one\ntwo\n");
        assert_eq!(scrollback.replay(), "one\ntwo\n", "nothing is lost, so nothing is cut");
        // Of the first line only its end is left.
        scrollback.push(&vec![b'x'; SCROLLBACK - 6]);
        assert_eq!(scrollback.replay().first_chunk(), Some(b"two\nxx"), "from the line on");
        assert_eq!(scrollback.replay().len(), SCROLLBACK - 2);
        for size in [7, SCROLLBACK - 1, SCROLLBACK, SCROLLBACK + 1, 3 * SCROLLBACK] {
            scrollback.push(&vec![b'y'; size]);
            let replay = scrollback.replay();
            assert_eq!(replay.len(), SCROLLBACK);
            assert!(replay.ends_with(&vec![b'y'; size.min(SCROLLBACK)]), "{size}");
        }
    }

    #[test]
    fn a_long_line_is_not_thrown_away_for_its_end() {
        let mut scrollback = Scrollback::default();
        scrollback.push(&vec![b'x'; SCROLLBACK]);
        scrollback.push(b"\n$ ");
        assert_eq!(scrollback.replay().len(), SCROLLBACK);
    }
}
