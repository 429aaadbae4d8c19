//! Sessions: `GET /sandboxes/:s/sessions`, and the WebSockets `/ws` (a terminal) and `/exec/ws`
//! (pipes).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One session, or one detached command that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// `s1`, `s2`, … and `init`; `d` and the pid for a detached command.
    pub session_id: String,
    /// The command line, its words joined with spaces.
    pub argv: String,
    pub tty: bool,
    pub running: bool,
    /// Its exit code, or 128 + signal number. Absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub attached: bool,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Older servers do not say.
    #[serde(default)]
    pub kind: SessionKind,
    /// In the guest's process table. 0: an older server does not say.
    #[serde(default)]
    pub pid: u32,
    /// Where a detached command prints to. Absent for sessions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output_file: String,
}

/// What a session runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionKind {
    #[default]
    Tty,
    Piped,
    /// Nothing one could attach to.
    Detached,
}

/// How long a session may be without a client, in seconds, if nobody says otherwise.
pub const DEFAULT_IDLE_SEC: u32 = 3600;

/// The most bytes of a terminal in one message.
pub const MAX_TERMINAL_CHUNK: usize = 4096;

/// Closes a terminal's or a piped session's WebSocket when another client has attached. The
/// program goes on. 1000 means that it has ended; every other code that it goes on, too.
pub const CLOSE_TAKEN: u16 = 4001;

/// The same when the sandbox was put to sleep: the program goes on when it wakes, for which somebody
/// has to ask.
pub const CLOSE_ASLEEP: u16 = 4002;

/// What the server says on a session's WebSocket besides output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SessionNotice {
    /// The first message: which session it is.
    Session { session_id: String },
    /// The last, for piped sessions.
    Exit { exit_code: i32 },
    /// The last, for piped sessions that one cannot stay attached to.
    Error { message: String },
}

/// What a client of a terminal says besides keystrokes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum TerminalCommand {
    Resize { rows: u32, cols: u32 },
}

/// The first message of a piped session that is to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PipedRequest {
    /// argv; there is no shell.
    pub cmd: Vec<String>,
    /// Over the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// 0: [`DEFAULT_IDLE_SEC`]; negative: never.
    pub max_idle_sec: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_session_has_the_contracts_fields() {
        let session = Session {
            session_id: "s1".to_owned(),
            argv: "/bin/bash -li".to_owned(),
            tty: true,
            running: true,
            exit_code: None,
            attached: false,
            created_at: 7,
            kind: SessionKind::Tty,
            pid: 42,
            output_file: String::new(),
        };
        assert_eq!(
            serde_json::to_string(&session).expect("JSON"),
            r#"{"session_id":"s1","argv":"/bin/bash -li","tty":true,"running":true,"attached":false,"created_at":7,"kind":"tty","pid":42}"#
        );
        let old = r#"{"session_id":"s1","argv":"sh","tty":false,"running":false,"exit_code":3,"attached":false,"created_at":7}"#;
        let old: Session = serde_json::from_str(old).expect("an older server's");
        assert_eq!((old.exit_code, old.pid), (Some(3), 0));
    }

    #[test]
    fn only_a_resize_is_a_command() {
        let read = |text: &str| serde_json::from_str::<TerminalCommand>(text).ok();
        let resize = TerminalCommand::Resize { rows: 5, cols: 7 };
        assert_eq!(read(r#"{"type":"resize","rows":5,"cols":7}"#), Some(resize));
        for keys in ["ls", "{}", r#"{"type":"resize"}"#, r#"{"type":"resize","rows":-1,"cols":7}"#]
        {
            assert_eq!(read(keys), None, "{keys}");
        }
    }
}
