//! What a published port is called in its URL.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An alias: `[a-z0-9][a-z0-9-]{0,62}`, and none of those that names of a domain are known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Alias(String);

/// Text that is no alias. The sentences are the contract's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAlias {
    #[error("alias must be lowercase alphanumeric with hyphens, 1-63 chars")]
    Form,
    #[error("alias {0:?} is reserved")]
    Reserved(String),
}

/// Names that belong to a domain itself.
const RESERVED: [&str; 9] =
    ["www", "mail", "admin", "status", "ns1", "ns2", "api", "app", "_acme-challenge"];

/// How many random characters make an alias hard to guess.
const SUFFIX: usize = 6;

impl Alias {
    /// The longest an alias may be, in bytes: a label of the domain name system.
    pub const MAX: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A new one for what is called `name`: that, as far as it fits, and a random suffix.
    pub fn random(name: &str) -> Self {
        const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let fit = |c: char| {
            let c = c.to_ascii_lowercase();
            if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }
        };
        let mapped: String = name.chars().map(fit).collect();
        let trimmed = mapped.trim_matches('-');
        // All of it is ASCII by now.
        let base = &trimmed[..trimmed.len().min(Self::MAX - SUFFIX - 1)];
        let base = if base.is_empty() { "sandbox" } else { base };
        let mut random = [0u8; SUFFIX];
        getrandom::fill(&mut random).expect("the kernel gives random bytes");
        let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
        let suffix: String = random.iter().map(letter).collect();
        Self(format!("{base}-{suffix}"))
    }
}

impl FromStr for Alias {
    type Err = BadAlias;
    fn from_str(text: &str) -> Result<Self, BadAlias> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if RESERVED.contains(&text) {
            return Err(BadAlias::Reserved(text.to_owned()));
        }
        let ok = text.len() <= Self::MAX
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|b| plain(b) || b == b'-');
        if ok { Ok(Self(text.to_owned())) } else { Err(BadAlias::Form) }
    }
}

impl TryFrom<String> for Alias {
    type Error = BadAlias;
    fn try_from(text: String) -> Result<Self, BadAlias> {
        text.parse()
    }
}

impl From<Alias> for String {
    fn from(alias: Alias) -> String {
        alias.0
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_follow_the_rule() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "my-app", "a-", "api2", longest.as_str()] {
            assert!(good.parse::<Alias>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "A", "a_b", "a.b", "ä", "a\n", "a/b", too_long.as_str()] {
            assert_eq!(bad.parse::<Alias>(), Err(BadAlias::Form), "{bad:?}");
        }
        for reserved in RESERVED {
            assert_eq!(reserved.parse::<Alias>(), Err(BadAlias::Reserved(reserved.to_owned())));
        }
    }

    #[test]
    fn a_random_one_reads_like_the_name_and_is_one() {
        let longest = "x".repeat(63);
        for (name, base) in [
            ("dev", "dev"),
            ("My_Box.2", "my-box-2"),
            ("a--", "a"),
            (longest.as_str(), &longest[..56]),
            ("", "sandbox"),
            ("__", "sandbox"),
        ] {
            let alias = Alias::random(name);
            assert_eq!(alias.as_str().parse(), Ok(alias.clone()), "{name:?}");
            let (found, suffix) = alias.as_str().rsplit_once('-').expect("a suffix");
            assert_eq!((found, suffix.len()), (base, SUFFIX), "{name:?}");
            assert_ne!(Alias::random(name), alias, "it can be guessed");
        }
    }
}
