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

/// The room for a command.
const COMMAND_WIDTH: usize = 40;

/// `for_people`, a command that is too long for its column is cut; scripts get all of it.
pub(crate) fn sessions(sessions: &[Session], for_people: bool) -> String {
    let mut out = format!("{:<10} {:<40} {:<8} {:<8}\n", "ID", "COMMAND", "RUNNING", "ATTACHED");
    for Session { session_id, argv, running, attached, .. } in sessions {
        // From a guest: one line, and nothing that moves the cursor.
        let mut argv: String = argv.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if for_people && let Some((end, _)) = argv.char_indices().nth(COMMAND_WIDTH) {
            let kept = argv.char_indices().nth(COMMAND_WIDTH - 1).map_or(end, |(at, _)| at);
            argv.truncate(kept);
            argv.push('…');
        }
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
            sessions(&list, true),
            format!(
                "ID         {} RUNNING  ATTACHED\ns1         {} true     false   \n\
                 d43        {} true     false   \n",
                command("COMMAND"),
                command("/bin/bash -li"),
                command("sh -c a b [2J"),
            )
        );
        let long = Session { argv: "ä".repeat(41), ..list[0].clone() };
        let cut = sessions(std::slice::from_ref(&long), true);
        assert!(cut.contains(&format!("s1         {}… true ", "ä".repeat(39))), "{cut}");
        let whole = sessions(&[Session { argv: "ä".repeat(40), ..long.clone() }], true);
        assert!(whole.contains(&format!("{} true ", "ä".repeat(40))), "{whole}");
        assert!(sessions(&[long], false).contains(&"ä".repeat(41)));
        let row = serde_json::to_string(&SessionRow::from(&list[0])).expect("JSON");
        assert_eq!(
            row,
            r#"{"session_id":"s1","argv":"/bin/bash -li","running":true,"attached":false,"kind":"tty"}"#
        );
    }
}
