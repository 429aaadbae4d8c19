//! How a command ends when it does not succeed.

use std::any::Any;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use bhatti_api::Hint;
use bhatti_client::ClientError;
use bhatti_types::Name;

/// Why a command stops. Not an error type: it is the end of the line.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A sentence for stderr, and what to try next. Exit 1.
    Error { text: String, hint: Option<Hint> },
    /// Everything has been said; only the number is left.
    Silent(u8),
    /// Nobody reads our output any more, as in `bhatti list | head -1`.
    ClosedPipe,
}

/// What a shell reports for a process that died of SIGPIPE.
const SIGPIPE_EXIT: u8 = 141;

impl Failure {
    /// A failure that is one sentence.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Error { text: text.into(), hint: None }
    }

    /// A sentence in front of an error.
    pub(crate) fn caused(text: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::text(format!("{}: {}", text.into(), chain(error)))
    }

    /// An API error about `sandbox`. A server that says only "not found" knows no more than the
    /// address; here it is known what was asked for.
    pub(crate) fn about(sandbox: &str, error: ClientError) -> Self {
        match error {
            ClientError::Api { status, message, request_id }
                if status.as_u16() == 404 && message == "not found" =>
            {
                let message = format!("sandbox {sandbox:?} not found");
                ClientError::Api { status, message, request_id }.into()
            }
            other => other.into(),
        }
    }

    /// Says it on stderr and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Failure::Error { text, hint } => {
                let mut out = format!("Error: {text}\n");
                if let Some(hint) = hint {
                    out.push_str(&hint_lines(hint, &text));
                }
                say(&out);
                ExitCode::from(1)
            }
            Failure::Silent(code) => ExitCode::from(code),
            Failure::ClosedPipe => ExitCode::from(SIGPIPE_EXIT),
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let text = chain(&error);
        // Only what the server says is covered by hints; a user or a file is no sandbox.
        let hint = (&error as &dyn Any).downcast_ref::<ClientError>().and_then(ClientError::hint);
        Self::Error { text, hint }
    }
}

/// The two-line layout of a hint, after a blank line. What the error is about stands in its
/// commands, if it names it.
fn hint_lines(hint: Hint, error: &str) -> String {
    let named = error.split('"').nth(1).filter(|name| name.parse::<Name>().is_ok());
    let mut out = format!("\n  {}\n", hint.text);
    for command in hint.commands {
        let mut command = (*command).to_owned();
        if let Some(name) = named {
            command = command.replace("<sandbox>", name).replace("<snapshot>", name);
        }
        writeln!(out, "    {command}").expect("a String takes all text");
    }
    out
}

/// Joins an error with its causes. The only place that walks the chain.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        write!(text, ": {cause}").expect("a String takes all text");
        next = cause.source();
    }
    text
}

/// Writes to stderr. If even that fails there is nobody left to tell.
pub(crate) fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use bhatti_api::hint_for;

    #[test]
    fn hints_have_their_layout() {
        let hint = hint_for("sandbox limit reached (5/5)").expect("a hint");
        let wanted = "\n  Destroy unused sandboxes to free capacity:\n    bhatti ls\n    bhatti destroy <sandbox>\n";
        assert_eq!(hint_lines(hint, "sandbox limit reached (5/5)"), wanted);
        let taken = "409 Conflict: snapshot \"before\" already exists — delete first";
        let hint = hint_for("snapshot \"before\" already exists").expect("a hint");
        assert!(hint_lines(hint, taken).ends_with("\n    bhatti snapshot delete before\n"));
        let odd = "sandbox \"a; rm -rf /\" is not running";
        let hint = hint_for(odd).expect("a hint");
        assert!(hint_lines(hint, odd).ends_with("\n    bhatti start <sandbox>\n"));
    }

    #[test]
    fn a_bare_not_found_names_the_sandbox() {
        let shown = |message: &str| {
            let error = ClientError::Api {
                status: bhatti_client::StatusCode::NOT_FOUND,
                message: message.to_owned(),
                request_id: None,
            };
            match Failure::about("dev", error) {
                Failure::Error { text, hint } => (text, hint.expect("a hint").commands),
                other => panic!("{other:?}"),
            }
        };
        let hint: &[&str] = &["bhatti ls"];
        assert_eq!(
            shown("not found"),
            ("404 Not Found: sandbox \"dev\" not found".to_owned(), hint)
        );
        assert_eq!(
            shown("sandbox not found"),
            ("404 Not Found: sandbox not found".to_owned(), hint)
        );
    }
}
