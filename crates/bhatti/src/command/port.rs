//! Ports on the command line.

use std::str::FromStr;

/// Reads a number. Its range is checked where it is known what 0 means.
pub(super) fn port<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "a port is a number from 1 to 65535".to_owned())
}
