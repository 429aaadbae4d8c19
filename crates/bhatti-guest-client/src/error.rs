//! What can go wrong between host and guest, one variant per thing a caller may branch on.

use std::io;

use bhatti_link::LinkError;
use bhatti_wire::message::{ErrorKind, Failure};

/// The longest text of the guest that is passed on, in bytes.
pub(crate) const MAX_TEXT: usize = 1024;

/// An operation in the guest did not work.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No such command or file. The text is the guest's.
    #[error("not found: {0}")]
    NotFound(String),
    /// The command exists but cannot be executed.
    #[error("not executable: {0}")]
    NotExecutable(String),
    /// The request makes no sense, here or to the guest.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The guest's disk is full.
    #[error("no space left in the guest: {0}")]
    NoSpace(String),
    /// More than the guest takes.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The guest's file system does not allow it: read-only, immutable.
    #[error("not allowed in the guest: {0}")]
    Denied(String),
    /// Nobody listens on the port.
    #[error("{0}")]
    Refused(String),
    /// The agent in this guest does not know the operation.
    #[error("not supported by this guest's agent: {0}")]
    Unsupported(String),
    /// Anything else the guest reports.
    #[error("the guest failed: {0}")]
    Failed(String),
    /// The agent speaks another generation of the protocol.
    #[error("the guest speaks protocol {guest}, this daemon {host}")]
    Incompatible { guest: u32, host: u32 },
    /// As many operations are under way as one link carries.
    #[error("too many operations are under way in the guest")]
    TooManyOperations,
    /// The link or this operation's stream ended early; whether the guest did what was asked is
    /// not known.
    #[error("the guest went away before it answered")]
    LinkLost(#[source] Option<io::Error>),
    /// The guest said what it must not say.
    #[error("the guest broke the protocol: {0}")]
    Protocol(&'static str),
    /// The guest did not answer in time.
    #[error("the guest did not {action} within {seconds} s")]
    Deadline { action: &'static str, seconds: u64 },
}

impl GuestError {
    /// Reading from the guest failed.
    pub(crate) fn reading(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Protocol("malformed or oversized message"),
            _ => Self::LinkLost(Some(error)),
        }
    }

    /// Writing to the guest failed.
    pub(crate) fn writing(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Invalid("the request is too long".to_owned()),
            _ => Self::LinkLost(Some(error)),
        }
    }
}

impl From<LinkError> for GuestError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::TooManyStreams => Self::TooManyOperations,
            LinkError::Carrier(error) => Self::LinkLost(Some(error)),
            LinkError::Closed | LinkError::HungUp | LinkError::Violation(_) => Self::LinkLost(None),
        }
    }
}

impl From<Failure> for GuestError {
    fn from(failure: Failure) -> Self {
        let text = printable(&failure.message, MAX_TEXT);
        match ErrorKind::try_from(failure.kind) {
            Ok(ErrorKind::NotFound) => Self::NotFound(text),
            Ok(ErrorKind::NotExecutable) => Self::NotExecutable(text),
            Ok(ErrorKind::Invalid) => Self::Invalid(text),
            Ok(ErrorKind::Unsupported) => Self::Unsupported(text),
            Ok(ErrorKind::NoSpace) => Self::NoSpace(text),
            Ok(ErrorKind::TooLarge) => Self::TooLarge(text),
            Ok(ErrorKind::Denied) => Self::Denied(text),
            Ok(ErrorKind::Refused) => Self::Refused(text),
            // Kinds of a later agent are failures like any other.
            Ok(ErrorKind::Other) | Err(_) => Self::Failed(text),
        }
    }
}

/// A text of the guest, fit for a log or a terminal: at most `limit` bytes, no control characters.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_cannot_move_a_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc\u{9b}d", 100), "a[2Jbcd");
        assert_eq!(printable("ééé", 3), "é");
        assert_eq!(printable("", 0), "");
        assert_eq!(printable(&"x".repeat(5000), MAX_TEXT).len(), MAX_TEXT);
    }

    #[test]
    fn an_unknown_kind_of_failure_is_still_one() {
        let failure = Failure { kind: 9999, message: "new".to_owned() };
        assert!(matches!(GuestError::from(failure), GuestError::Failed(text) if text == "new"));
    }
}
