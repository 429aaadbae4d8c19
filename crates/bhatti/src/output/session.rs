//! Sessions.

use std::fmt::Write as _;

use bhatti_api::{Session, SessionKind};
use serde::Serialize;

/// One session of `ps --json`: the contract's four fields, and what one needs to go on from.
#[derive(Serialize)]
pub(crate) struct SessionRow<'a> {
    session_id: &'a str,
    argv: &'a str,
    running: bool,
    attached: bool,
    kind: SessionKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    output_file: &'a str,
}

impl<'a> From<&'a Session> for SessionRow<'a> {
    fn from(session: &'a Session) -> Self {
        Self {
            session_id: &session.session_id,
            argv: &session.argv,
            running: session.running,
            attached: session.attached,
            kind: session.kind,
            exit_code: session.exit_code,
            output_file: &session.output_file,
        }
    }
}

pub(crate) fn sessions(sessions: &[Session]) -> String {
    let mut out = format!("{:<10} {:<40} {:<8} {:<8}\n", "ID", "COMMAND", "RUNNING", "ATTACHED");
    for Session { session_id, argv, running, attached, .. } in sessions {
        // From a guest: one line, and nothing that moves the cursor.
        let argv: String = argv.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        writeln!(out, "{session_id:<10} {argv:<40} {running:<8} {attached:<8}")
            .expect("a String takes all text");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_stand_in_columns() {
        let json = r#"[{"session_id":"s1","argv":"/bin/bash -li","tty":true,"running":true,
            "attached":false,"created_at":7,"kind":"tty","pid":42},{"session_id":"d43",
            "argv":"sh -c a\nb\u001b[2J","tty":false,"running":true,"attached":false,
            "created_at":8,"kind":"detached","pid":43,"output_file":"/tmp/x.log"}]"#;
        let list: Vec<Session> = serde_json::from_str(json).expect("sessions");
        let command = |text: &str| format!("{text:<40}");
        assert_eq!(
            sessions(&list),
            format!(
                "ID         {} RUNNING  ATTACHED\ns1         {} true     false   \n\
                 d43        {} true     false   \n",
                command("COMMAND"),
                command("/bin/bash -li"),
                command("sh -c a b [2J"),
            )
        );
        let row = serde_json::to_string(&SessionRow::from(&list[0])).expect("JSON");
        assert_eq!(
            row,
            r#"{"session_id":"s1","argv":"/bin/bash -li","running":true,"attached":false,"kind":"tty"}"#
        );
    }
}
