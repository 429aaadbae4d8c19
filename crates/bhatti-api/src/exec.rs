//! `POST /sandboxes/:s/exec`: buffered, streamed, detached. `GET /sandboxes/:s/exec/stream`: with
//! stdin, and any bytes.

use std::collections::BTreeMap;

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
    /// It was killed because it ran longer than it was given.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed_out: bool,
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
    Stdout {
        data: String,
    },
    Stderr {
        data: String,
    },
    Exit {
        exit_code: i32,
        /// It was killed because it ran longer than it was given.
        #[serde(default, skip_serializing_if = "is_false")]
        timed_out: bool,
    },
    Error {
        data: String,
    },
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The subprotocol of `GET /sandboxes/:s/exec/stream`, a WebSocket.
///
/// The client's first message is an [`ExecStreamRequest`]. After it, binary messages carry bytes,
/// of one [`ExecChannel`] each, and text messages are [`ExecCommand`]s one way and [`ExecNotice`]s
/// the other. The server's last message is exactly one `exit` or `error`; then it closes with
/// code 1000.
pub const EXEC_PROTOCOL: &str = "bhatti.exec.v1";

/// The first message of an exec stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecStreamRequest {
    /// argv; there is no shell.
    pub cmd: Vec<String>,
    /// As in [`ExecRequest`].
    pub timeout_sec: i64,
    /// Over the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; empty means `/`.
    pub cwd: String,
    /// Whether channel 0 will be used. Without, the command reads nothing.
    pub stdin: bool,
    /// How many bytes of output may be under way before the client says [`ExecCommand::Ack`]. 0: as
    /// many as the connection holds, and a client that takes nothing for 10 s is gone.
    pub window: u32,
}

impl ExecStreamRequest {
    /// The most bytes after the channel in one message, either way.
    pub const MAX_CHUNK: usize = 64 * 1024;
    /// The largest first message, in bytes.
    pub const MAX_REQUEST: usize = 1 << 20;
}

/// Whose bytes a binary message carries: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExecChannel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
}

impl ExecChannel {
    /// The channel of this number.
    pub fn of(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// What a client says besides bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecCommand {
    /// The end of stdin.
    Eof,
    /// SIGKILL to the process group. Its `exit` still comes.
    Kill,
    /// So many more bytes of output were taken.
    Ack { bytes: u64 },
}

/// What a server says besides bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecNotice {
    /// The command runs. A client that keeps no more than `window` bytes of stdin without an
    /// `ack` is always heard; from one that sends more the server stops reading for a while.
    Started { pid: u32, window: u32 },
    /// So many more bytes of stdin were taken.
    Ack { bytes: u64 },
    /// The command ended and this was all its output. The last message.
    Exit {
        exit_code: i32,
        /// It was killed because it ran longer than it was given.
        #[serde(default, skip_serializing_if = "is_false")]
        timed_out: bool,
    },
    /// There will be no exit. The last message.
    Error { message: String },
}
