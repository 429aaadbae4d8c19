//! `POST /sandboxes/:s/exec`: buffered, streamed, detached.

use serde::{Deserialize, Serialize};

/// The request. `cmd` is argv; there is no shell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    pub cmd: Vec<String>,
    /// Seconds, 1 to 86400; 0 means 300. Anything else is refused.
    pub timeout_sec: i64,
    /// Return at once; the command goes on.
    pub detach: bool,
    /// Where a detached command's output goes, in the guest. Empty: the guest chooses.
    pub output_file: String,
}

impl ExecRequest {
    /// Used when `timeout_sec` is 0.
    pub const DEFAULT_TIMEOUT_SEC: u32 = 300;
    /// The longest a command may run.
    pub const MAX_TIMEOUT_SEC: u32 = 86_400;
    /// The most output a buffered call keeps, in bytes, both streams together.
    pub const MAX_BUFFERED: usize = 10 << 20;
    /// What ends the `stderr` of a call that produced more.
    pub const TRUNCATED: &'static str = "\n[output truncated at 10MB]";
}

/// The buffered answer. Bytes that are not UTF-8 become U+FFFD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The answer to a detached request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecDetached {
    pub detached: bool,
    pub output_file: String,
    pub pid: u32,
}

/// One line of `application/x-ndjson`. The last is exactly one of `Exit` and `Error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecEvent {
    Stdout { data: String },
    Stderr { data: String },
    Exit { exit_code: i32 },
    Error { data: String },
}
