//! What we link against may be given away under Apache-2.0.
//!
//! `cargo tree` is asked and not `cargo metadata`: the latter also lists optional dependencies
//! that no feature turns on.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::{process, workspace};

/// Licences that ask for no more than their text and a name.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not come in, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "aws-lc-rs is our one cryptography library"),
    ("openssl-sys", "TLS is rustls; the host's OpenSSL is not ours to link"),
    ("native-tls", "TLS is rustls"),
];

/// `name version|licence` for every crate that is really built, tests included.
pub(super) fn dependency_listing() -> Result<String> {
    process::output(workspace::cargo().args([
        "tree",
        "--workspace",
        "--locked",
        "--edges=normal,build,dev",
        "--target=x86_64-unknown-linux-gnu",
        "--prefix=none",
        "--format={p}|{l}",
    ]))
}

/// Complaints about licences that are not allowed and crates that are banned.
pub(super) fn check(listing: &str) -> Vec<String> {
    let mut complaints = BTreeSet::new();
    for line in listing.lines() {
        let line = line.trim_end_matches(" (*)");
        let (package, licence) = line.split_once('|').unwrap_or((line, ""));
        let mut words = package.split_whitespace();
        let (Some(name), version) = (words.next(), words.next().unwrap_or_default()) else {
            continue;
        };
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            complaints.insert(format!("{name} {version} is in the dependency graph: {why}"));
        }
        match allowed(licence) {
            Some(true) => {}
            Some(false) => {
                complaints.insert(format!("{name} {version}: licence {licence} is not allowed"));
            }
            None => {
                complaints.insert(format!("{name} {version}: licence {licence:?} is unreadable"));
            }
        }
    }
    complaints.into_iter().collect()
}

/// Whether an SPDX expression leaves us a choice we accept; `None` if it is not one.
fn allowed(expression: &str) -> Option<bool> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let answer = any_of(&words, &mut at)?;
    (at == words.len()).then_some(answer)
}

fn any_of(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut answer = all_of(words, at)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        answer |= all_of(words, at)?;
    }
    Some(answer)
}

fn all_of(words: &[&str], at: &mut usize) -> Option<bool> {
    let mut answer = one(words, at)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        answer &= one(words, at)?;
    }
    Some(answer)
}

fn one(words: &[&str], at: &mut usize) -> Option<bool> {
    let word = *words.get(*at)?;
    *at += 1;
    if word == "(" {
        let answer = any_of(words, at)?;
        (words.get(*at) == Some(&")")).then(|| *at += 1)?;
        return Some(answer);
    }
    if matches!(word, ")" | "AND" | "OR" | "WITH") {
        return None;
    }
    if words.get(*at) == Some(&"WITH") {
        let whole = format!("{word} WITH {}", words.get(*at + 1)?);
        *at += 2;
        return Some(ALLOWED.contains(&whole.as_str()));
    }
    Some(ALLOWED.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_weighed() {
        let cases = [
            ("MIT", Some(true)),
            ("MIT/Apache-2.0", Some(true)),
            ("MIT OR GPL-3.0-only", Some(true)),
            ("MIT AND GPL-3.0-only", Some(false)),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", Some(true)),
            ("(MIT OR Apache-2.0) AND GPL-2.0", Some(false)),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", Some(true)),
            ("GPL-2.0 WITH Classpath-exception-2.0", Some(false)),
            ("GPL-3.0-or-later", Some(false)),
            ("", None),
            ("(MIT", None),
            ("MIT OR", None),
            ("MIT Apache-2.0", None),
        ];
        for (expression, expected) in cases {
            assert_eq!(allowed(expression), expected, "{expression:?}");
        }
    }

    #[test]
    fn each_bad_crate_is_named_once() {
        let listing = "good v1.0.0|MIT\nbad v0.1.0|GPL-3.0\nbad v0.1.0|GPL-3.0 (*)\n\
                       ring v0.17.14|Apache-2.0 AND ISC\nsilent v2.0.0|\n\nlocal v0.1.0 (/x)|MIT\n";
        let found = check(listing);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("bad v0.1.0") && found[0].contains("GPL-3.0"));
        assert!(found[1].contains("ring") && found[1].contains("graph"));
        assert!(found[2].contains("silent") && found[2].contains("unreadable"));
    }
}
