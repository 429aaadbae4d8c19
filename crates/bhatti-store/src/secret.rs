//! Secrets as they are stored: by their hash. They are 256 random bits each, so a plain hash is
//! enough.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Lower-case hex of the SHA-256.
pub(crate) fn hash(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether two hashes are the same, in a time that tells nothing about either.
pub(crate) fn same(stored: &str, offered: &str) -> bool {
    stored.as_bytes().ct_eq(offered.as_bytes()).into()
}
