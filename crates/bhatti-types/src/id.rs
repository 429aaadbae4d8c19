//! Identifiers. Sandbox and engine ids look alike and are not interchangeable; the types say so.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}")]
pub struct BadId {
    pub kind: &'static str,
    pub text: String,
}

fn random_hex(digits: usize) -> String {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes[..digits / 2]).expect("the kernel gives random bytes");
    bytes[..digits / 2].iter().map(|b| format!("{b:02x}")).collect()
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident = $prefix:literal + $hex:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new random id.
            pub fn random() -> Self {
                Self(format!(concat!($prefix, "{}"), random_hex($hex)))
            }

            /// The text form, as it goes over the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
                match text.strip_prefix($prefix) {
                    Some(rest) if rest.len() == $hex && rest.chars().all(is_hex) => {
                        Ok(Self(text.to_owned()))
                    }
                    _ => Err(BadId { kind: stringify!($name), text: text.to_owned() }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(/** The row in the store; what the API shows. */ SandboxId = "" + 16);
id_type!(/** What the engine calls the same machine: process, cgroup, directory. */ EngineId = "" + 16);
id_type!(/** An account. */ UserId = "usr_" + 8);
id_type!(/** A named snapshot. */ SnapshotId = "" + 16);
id_type!(/** A golden snapshot: a machine of one image and size, frozen right after boot. */ GoldenId = "" + 16);
id_type!(/** A port that is published. */ PublishId = "pub_" + 16);
id_type!(/** One HTTP request, in logs and in the body of a 500. */ RequestId = "req_" + 16);

/// An image: 16 hex digits, or `tier_<tier>_<arch>` for a built-in one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(String);

impl ImageId {
    /// The id of a built-in tier.
    pub fn tier(tier: &str, arch: &str) -> Self {
        Self(format!("tier_{tier}_{arch}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for ImageId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_only_their_own_form() {
        assert!("0123456789abcdef".parse::<SandboxId>().is_ok());
        for bad in ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef0", "usr_00000000"]
        {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad}");
        }
        assert!("usr_1a2b3c4d".parse::<UserId>().is_ok());
        assert!("1a2b3c4d".parse::<UserId>().is_err());
    }

    #[test]
    fn random_ids_parse_and_differ() {
        let (a, b) = (SandboxId::random(), SandboxId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<SandboxId>().as_ref(), Ok(&a));
        assert!(RequestId::random().as_str().starts_with("req_"));
    }
}
