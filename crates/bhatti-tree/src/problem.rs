//! What was left out of a copy. Not an error: the rest is copied.
//!
//! Who packs tells it in the archive, in a global extended header that other programs pass over.

use std::path::Path;

use crate::pax;

/// The longest sentence that is written or believed, in bytes.
const MAX_SENTENCE: usize = 512;

/// The key of its record.
const KEY: &str = "BHATTI.problem";

/// The problems of one copy: the first few in words, and their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub sentences: Vec<String>,
    pub count: u64,
}

impl Problems {
    /// How many are kept in words.
    pub const MOST: usize = 20;

    pub(crate) fn add(&mut self, sentence: String) {
        self.count += 1;
        if self.sentences.len() < Self::MOST {
            self.sentences.push(sentence);
        }
    }
}

/// A sentence about a path.
pub(crate) fn sentence(path: &Path, what: impl std::fmt::Display) -> String {
    printable(&format!("{}: {what}", path.display()))
}

/// Fit for a terminal, and not too long for one.
fn printable(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_SENTENCE);
    text[..end].chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The global header that says so.
pub(crate) fn header(sentence: &str) -> Vec<u8> {
    pax::record(KEY, sentence)
}

/// What a global header says, if it is about that.
pub(crate) fn told(header: &[u8]) -> Option<String> {
    let records = pax::records(header)?;
    let (_, sentence) = records.into_iter().find(|(key, _)| *key == KEY.as_bytes())?;
    Some(printable(&String::from_utf8_lossy(sentence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_says_is_short_and_moves_no_cursor() {
        assert_eq!(told(&header("a: gone")).as_deref(), Some("a: gone"));
        assert_eq!(told(b"11 mtime=1\n"), None);
        assert_eq!(told(b"nonsense"), None);
        let said = told(&header(&format!("a\u{1b}[2J\n{}", "x".repeat(5000)))).unwrap();
        assert!(said.starts_with("a?[2J?x") && said.len() <= MAX_SENTENCE, "{said}");
    }
}
