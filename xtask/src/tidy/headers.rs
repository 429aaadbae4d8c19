//! Every Rust file opens by saying what it is for.

use super::Source;

/// Complaints about files without a `//!` first.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| source.has_extension("rs") && !opens_with_purpose(&source.text))
        .map(|source| source.at(0, "a file opens with `//!` and says what it is for"))
        .collect()
}

fn opens_with_purpose(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("//!").is_some_and(|purpose| !purpose.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn a_purpose_comes_first_and_says_something() {
        let cases = [
            ("a.rs", "//! Counts sheep.\n", 0),
            ("a.md", "no Rust\n", 0),
            ("a.rs", "", 1),
            ("a.rs", "use std::fs;\n//! late\n", 1),
            ("a.rs", "//!\n//! below\n", 1),
            ("a.rs", "// not a doc comment\n", 1),
        ];
        for (path, text, expected) in cases {
            assert_eq!(check(&[source(path, text)]).len(), expected, "{path}: {text:?}");
        }
    }
}
