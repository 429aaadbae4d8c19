//! Errors on the wire, and the recovery hints people see.

use serde::{Deserialize, Serialize};

/// The body of every handled error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One sentence.
    pub error: String,
    /// Set on a 500: the daemon's log has the cause under this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What to try next, as lines for a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// What the commands are for.
    pub text: &'static str,
    /// Commands to type.
    pub commands: &'static [&'static str],
}

/// The hint for a server message: case-insensitive, the first match wins.
///
/// The substrings are part of the contract; `bhatti-daemon` has a test that walks every error
/// it can send.
pub fn hint_for(message: &str) -> Option<Hint> {
    const HINTS: [(&[&str], Hint); 6] = [
        (
            &["not running"],
            Hint { text: "Resume it first:", commands: &["bhatti start <sandbox>"] },
        ),
        (&["not found"], Hint { text: "Check sandbox name:", commands: &["bhatti ls"] }),
        (
            &["already exists", "already in use"],
            Hint {
                text: "Use a different name or destroy the existing one:",
                commands: &["bhatti destroy <sandbox>"],
            },
        ),
        (
            &["use 'bhatti start --force'"],
            Hint { text: "Retry with force:", commands: &["bhatti start --force <sandbox>"] },
        ),
        (&["rate limit"], Hint { text: "Wait a few seconds and try again.", commands: &[] }),
        (
            &["limit", "max sandbox"],
            Hint {
                text: "Destroy unused sandboxes to free capacity:",
                commands: &["bhatti ls", "bhatti destroy <sandbox>"],
            },
        ),
    ];
    let message = message.to_lowercase();
    // It names the images there are; a sandbox's name is not what went wrong.
    if message.starts_with("image ") {
        return None;
    }
    HINTS
        .iter()
        .find(|(needles, _)| needles.iter().any(|needle| message.contains(needle)))
        .map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_follow_the_message() {
        let first = |message: &str| hint_for(message).map(|hint| hint.text);
        assert_eq!(first("sandbox \"x\" not found"), Some("Check sandbox name:"));
        assert_eq!(first("image \"x\" not found; there is: minimal"), None);
        assert_eq!(first("sandbox is NOT RUNNING"), Some("Resume it first:"));
        assert_eq!(
            first("sandbox limit reached (5/5)"),
            Some("Destroy unused sandboxes to free capacity:")
        );
        assert_eq!(first("rate limit exceeded"), Some("Wait a few seconds and try again."));
        assert_eq!(first("cmd required"), None);
    }
}
