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

/// Substrings of a message, and what to do about it.
type Rule = (&'static [&'static str], Hint);

/// About a memory that could not be continued from. Looked at before everything else: such a
/// message quotes its cause, which may say anything.
const FORCE: Rule = (
    &["use 'bhatti start --force'"],
    Hint { text: "Retry with force:", commands: &["bhatti start --force <sandbox>"] },
);

/// For messages that begin with a snapshot: a sandbox's name is not what went wrong.
const SNAPSHOT: [Rule; 3] = [
    (&["not found"], Hint { text: "Check snapshot name:", commands: &["bhatti snapshot list"] }),
    (
        &["already exists"],
        Hint {
            text: "Use a different name or delete the existing one:",
            commands: &["bhatti snapshot delete <snapshot>"],
        },
    ),
    (
        &["limit"],
        Hint {
            text: "Delete snapshots you no longer need:",
            commands: &["bhatti snapshot list", "bhatti snapshot delete <snapshot>"],
        },
    ),
];

/// For everything else, which is about sandboxes.
const SANDBOX: [Rule; 5] = [
    (&["not running"], Hint { text: "Resume it first:", commands: &["bhatti start <sandbox>"] }),
    (&["not found"], Hint { text: "Check sandbox name:", commands: &["bhatti ls"] }),
    (
        &["already exists", "already in use"],
        Hint {
            text: "Use a different name or destroy the existing one:",
            commands: &["bhatti destroy <sandbox>"],
        },
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

/// The hint for a server message: case-insensitive, the first match wins.
///
/// The substrings are part of the contract; `bhatti-daemon` has a test that walks every error
/// it can send.
pub fn hint_for(message: &str) -> Option<Hint> {
    let message = message.to_lowercase();
    let matches = |(needles, _): &&Rule| needles.iter().any(|needle| message.contains(needle));
    let rules: &[Rule] = match message.split(' ').next() {
        // It names the images there are.
        Some("image") => &[],
        // No command lists all of them.
        Some("file") => &[],
        Some("snapshot") => &SNAPSHOT,
        _ => &SANDBOX,
    };
    std::iter::once(&FORCE).chain(rules).find(matches).map(|(_, hint)| *hint)
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
        assert_eq!(first("snapshot \"x\" not found"), Some("Check snapshot name:"));
        assert_eq!(
            first("snapshot \"x\" already exists — delete first"),
            Some("Use a different name or delete the existing one:")
        );
        let quota = Some("Delete snapshots you no longer need:");
        assert_eq!(first("snapshot limit reached (5/5)"), quota);
        let corrupt = "wake sandbox: sandbox \"x\" snapshot is corrupt: file not found \
                       — use 'bhatti start --force' to retry";
        assert_eq!(first(corrupt), Some("Retry with force:"));
    }
}
