//! Values that must not reach a log.

use std::fmt;
use std::str::FromStr;

/// Something that prints as `[redacted]`. Reading it is explicit.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted<T>(pub T);

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// An API key: `bht_` and 64 lower-case hex digits, 256 random bits. Stored only as a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A new random key.
    pub fn random() -> Self {
        Self(format!("bht_{}", random_hex()))
    }

    /// The key itself, to show once or to send.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApiKey {
    type Err = std::convert::Infallible;
    /// Any text may be offered as a key; only the hash decides.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey([redacted])")
    }
}

/// What opens the web shell of one sandbox: 64 lower-case hex digits, 256 random bits. Stored only
/// as a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct ShellToken(String);

impl ShellToken {
    /// A new random token.
    pub fn random() -> Self {
        Self(random_hex())
    }

    /// The token itself, to show once or to send.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for ShellToken {
    type Err = std::convert::Infallible;
    /// Any text may be offered as a token; only the hash decides.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for ShellToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShellToken([redacted])")
    }
}

/// What opens one published port: `bhp_` and 64 lower-case hex digits, 256 random bits. Stored only
/// as a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct PublishToken(String);

impl PublishToken {
    /// A new random token.
    pub fn random() -> Self {
        Self(format!("bhp_{}", random_hex()))
    }

    /// The token itself, to show once or to send.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PublishToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublishToken([redacted])")
    }
}

/// 256 random bits.
fn random_hex() -> String {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_form_and_do_not_print() {
        let key = ApiKey::random();
        assert_eq!(key.reveal().len(), 68);
        assert!(key.reveal().starts_with("bht_"));
        assert!(!format!("{key:?} {:?}", Redacted("hush")).contains("hush"));
        let token = ShellToken::random();
        assert_eq!(token.reveal().len(), 64);
        assert!(!format!("{key:?} {token:?}").contains(token.reveal()));
        let token = PublishToken::random();
        assert_eq!((token.reveal().len(), &token.reveal()[..4]), (68, "bhp_"));
        assert!(!format!("{token:?}").contains(token.reveal()));
    }
}
