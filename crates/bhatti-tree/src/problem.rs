//! What was left out of a copy. Not an error: the rest is copied.
//!
//! Who packs tells it in the archive, as a global header that other programs pass over:
//! `<length> BHATTI.problem=<sentence>\n`.

use std::path::Path;

/// The longest sentence that is written or believed, in bytes.
const MAX_SENTENCE: usize = 512;

/// The key of a global header.
const KEY: &str = "BHATTI.problem=";

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

/// The record of a global header. Its length counts its own digits.
pub(crate) fn record(sentence: &str) -> Vec<u8> {
    let rest = format!(" {KEY}{sentence}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}").into_bytes()
}

/// The sentence of a global header, if it has one.
pub(crate) fn told(content: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    let (_, rest) = text.split_once(' ')?;
    rest.strip_prefix(KEY).map(|sentence| printable(sentence.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_travels_in_a_record_of_its_own_length() {
        for text in ["x", &"y".repeat(80), &"é".repeat(200)] {
            let record = record(text);
            let digits = String::from_utf8_lossy(&record);
            let length: usize = digits.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, record.len());
            assert_eq!(told(&record).as_deref(), Some(text));
        }
        assert_eq!(told(b"11 mtime=1\n"), None);
        assert_eq!(told(b""), None);
    }

    #[test]
    fn what_a_stranger_says_is_short_and_moves_no_cursor() {
        let said = told(&record(&format!("a\u{1b}[2J\n{}", "x".repeat(5000)))).unwrap();
        assert!(said.starts_with("a?[2J?x") && said.len() <= MAX_SENTENCE, "{said}");
    }
}
