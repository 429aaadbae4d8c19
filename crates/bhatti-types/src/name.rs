//! The name rule shared by sandboxes, volumes, images and snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name: `[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Text outside the name rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must match [a-zA-Z0-9][a-zA-Z0-9._-]{{0,62}}")]
pub struct BadName;

impl Name {
    /// The longest a name may be, in bytes.
    pub const MAX: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a host name, which has no `_` and does not end in `-` or `.`.
    pub fn hostname(&self) -> String {
        let mapped = self.0.replace('_', "-");
        mapped.trim_end_matches(['-', '.']).to_owned()
    }
}

impl FromStr for Name {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let alnum = |b: u8| b.is_ascii_alphanumeric();
        let ok = text.len() <= Self::MAX
            && text.bytes().next().is_some_and(alnum)
            && text.bytes().all(|b| alnum(b) || matches!(b, b'.' | b'_' | b'-'));
        if ok { Ok(Self(text.to_owned())) } else { Err(BadName) }
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_host_name() {
        for (name, hostname) in [("dev", "dev"), ("my_box", "my-box"), ("a.b_c-", "a.b-c")] {
            assert_eq!(name.parse::<Name>().map(|name| name.hostname()), Ok(hostname.to_owned()));
        }
    }

    #[test]
    fn names_follow_the_rule() {
        let longest = "a".repeat(63);
        for good in ["a", "dev", "A1._-z", "0", longest.as_str()] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", too_long.as_str()] {
            assert_eq!(bad.parse::<Name>(), Err(BadName), "{bad:?}");
        }
    }
}
