//! Which bytes of a file are the wanted lines. Pure.

use bhatti_wire::message::{LineRange, MAX_LINE};

/// Cuts lines out of a file that passes by in pieces.
#[derive(Debug)]
pub(super) struct Lines {
    /// Lines to pass over.
    skip: u64,
    /// Lines to give yet.
    lines: u64,
    /// Bytes to give yet.
    bytes: u64,
    /// The beginning of a wanted line whose end has not come.
    line: Vec<u8>,
}

/// Whether there is more to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

impl Lines {
    pub(super) fn new(range: LineRange) -> Self {
        let limit = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        Self {
            skip: range.first.saturating_sub(1),
            lines: limit(range.count),
            bytes: limit(range.max_bytes),
            line: Vec::new(),
        }
    }

    /// Takes the next piece of the file, and appends to `out` the lines that end in it.
    pub(super) fn push(&mut self, mut piece: &[u8], out: &mut Vec<u8>) -> Progress {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = (&piece[..end], &piece[end + 1..]);
            if self.skip > 0 {
                self.skip -= 1;
            } else if self.give(head, out) == Progress::Done {
                return Progress::Done;
            }
            piece = rest;
        }
        if self.skip > 0 {
            return Progress::More;
        }
        if self.line.len() + piece.len() > MAX_LINE {
            return Progress::Done;
        }
        self.line.extend_from_slice(piece);
        Progress::More
    }

    /// The file has ended: a last line may have no newline.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.line.is_empty() {
            self.give(&[], out);
        }
    }

    /// Appends the line that ends with `tail`.
    fn give(&mut self, tail: &[u8], out: &mut Vec<u8>) -> Progress {
        let length = self.line.len() + tail.len();
        let whole = length as u64 + 1;
        if length > MAX_LINE || whole > self.bytes {
            return Progress::Done;
        }
        out.append(&mut self.line);
        out.extend_from_slice(tail);
        out.push(b'\n');
        self.lines -= 1;
        self.bytes -= whole;
        if self.lines == 0 { Progress::Done } else { Progress::More }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, first: u64, count: u64, max_bytes: u64) -> String {
        // However the file is cut into pieces, the lines are the same.
        let [by_one, by_three, whole] = [1, 3, usize::MAX].map(|step| {
            let mut lines = Lines::new(LineRange { first, count, max_bytes });
            let mut out = Vec::new();
            let done = text
                .as_bytes()
                .chunks(step.min(text.len().max(1)))
                .any(|piece| lines.push(piece, &mut out) == Progress::Done);
            if !done {
                lines.finish(&mut out);
            }
            String::from_utf8(out).unwrap()
        });
        assert_eq!(by_one, whole);
        assert_eq!(by_three, whole);
        whole
    }

    #[test]
    fn lines_are_counted_from_one() {
        let text = "one\ntwo\n\nfour";
        assert_eq!(cut(text, 1, 2, 0), "one\ntwo\n");
        assert_eq!(cut(text, 0, 1, 0), "one\n");
        assert_eq!(cut(text, 2, 2, 0), "two\n\n");
        assert_eq!(cut(text, 4, 5, 0), "four\n");
        assert_eq!(cut(text, 5, 5, 0), "");
        assert_eq!(cut(text, 1, 0, 1000), "one\ntwo\n\nfour\n");
        assert_eq!(cut("", 1, 1, 0), "");
        assert_eq!(cut("a\r\nb", 1, 0, 100), "a\r\nb\n");
    }

    #[test]
    fn bytes_are_given_in_whole_lines() {
        assert_eq!(cut("12\n34\n56\n", 1, 0, 6), "12\n34\n");
        assert_eq!(cut("12\n34\n56\n", 1, 0, 5), "12\n");
        assert_eq!(cut("12\n34\n56\n", 1, 0, 2), "");
        assert_eq!(cut("12\n34\n56", 2, 0, 3), "34\n");
    }

    #[test]
    fn a_line_without_end_ends_it_and_is_not_kept() {
        let long = "x".repeat(MAX_LINE + 1);
        assert_eq!(cut(&format!("a\n{long}\nb\n"), 1, 0, 1 << 30), "a\n");
        assert_eq!(cut(&format!("{long}\nb\n"), 2, 0, 1 << 30), "b\n", "it may be passed over");
        let longest = "x".repeat(MAX_LINE);
        assert_eq!(cut(&longest, 1, 1, 0).len(), MAX_LINE + 1);
        let mut lines = Lines::new(LineRange { first: 1, count: 0, max_bytes: 0 });
        let mut out = Vec::new();
        while lines.push(&[b'x'; 4096], &mut out) == Progress::More {}
        assert!(lines.line.capacity() <= 2 * MAX_LINE && out.is_empty());
    }
}
