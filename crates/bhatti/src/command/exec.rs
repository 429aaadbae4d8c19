//! `bhatti exec`

use std::process::ExitCode;

use bhatti_api::{ExecEvent, ExecRequest};
use bhatti_client::ClientError;

use super::interrupt;
use crate::context::Context;
use crate::failure::Failure;
use crate::{output, usage};

/// Execute a command in a sandbox
///
/// Everything from the first word after the sandbox on is the command; `--` in front of it is
/// optional. Its exit code becomes this command's. A sleeping sandbox wakes by itself;
/// if it lost something on the way, a warning on stderr says what.
#[derive(clap::Args, Debug)]
#[command(override_usage = "bhatti exec <sandbox> [--] <command...>")]
pub(crate) struct ExecArgs {
    /// Seconds until the command is killed, 1 to 86400 (default: 300)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    timeout: Option<i64>,
    /// Run in the background and return at once
    #[arg(long)]
    detach: bool,
    /// Name or id of the sandbox
    sandbox: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

/// How the output is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// As it comes.
    Stream,
    /// Raw, at the end.
    Whole,
    /// One JSON object, at the end.
    Json,
    Detach,
}

pub(crate) fn run(context: &Context, args: ExecArgs) -> Result<ExitCode, Failure> {
    if args.command.is_empty() {
        return usage::print_help(&["exec"]);
    }
    let mode = mode(context, args.detach);
    let sandbox = args.sandbox;
    let request = request(args.command, args.timeout)?;
    interrupt::exit_on_ctrl_c()?;
    let client = context.client()?;
    match mode {
        Mode::Stream => stream(context, &sandbox, &request),
        Mode::Whole => {
            let result = context.call_about(&sandbox, client.exec_buffered(&sandbox, &request))?;
            context.write(result.stdout.as_bytes())?;
            context.write_error(result.stderr.as_bytes())?;
            Ok(forward(result.exit_code))
        }
        Mode::Json => {
            let result = context.call_about(&sandbox, client.exec_buffered(&sandbox, &request))?;
            context.print(&result, "")?;
            Ok(forward(result.exit_code))
        }
        Mode::Detach => {
            let started = context.call_about(&sandbox, client.exec_detached(&sandbox, &request))?;
            context.print(&started, &output::detached(&started))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn mode(context: &Context, detach: bool) -> Mode {
    let forced = std::env::var_os("BHATTI_FORCE_STREAM").is_some_and(|value| value == "1");
    match (detach, context.globals.json) {
        (true, _) => Mode::Detach,
        (false, true) => Mode::Json,
        (false, false) if forced || context.stdout_is_terminal() => Mode::Stream,
        (false, false) => Mode::Whole,
    }
}

fn request(cmd: Vec<String>, timeout: Option<i64>) -> Result<ExecRequest, Failure> {
    let most = i64::from(ExecRequest::MAX_TIMEOUT_SEC);
    match timeout {
        // 0 is the server's default, as it is in the API.
        Some(seconds) if !(0..=most).contains(&seconds) => {
            Err(Failure::text(format!("--timeout must be from 1 to {most} seconds, got {seconds}")))
        }
        timeout => {
            Ok(ExecRequest { cmd, timeout_sec: timeout.unwrap_or(0), ..ExecRequest::default() })
        }
    }
}

/// How a stream ended: on the wire, or here.
enum Ended {
    Exit(i32),
    Refused(String),
    Broken(ClientError),
    NotWritten(Failure),
}

fn stream(context: &Context, sandbox: &str, request: &ExecRequest) -> Result<ExitCode, Failure> {
    let client = context.client()?;
    let ended = context.wait(async {
        let mut events = match client.exec_stream(sandbox, request).await {
            Ok(events) => events,
            Err(error) => return Ended::NotWritten(Failure::about(sandbox, error)),
        };
        context.pass_on_warning();
        loop {
            let written = match events.next().await {
                Ok(Some(ExecEvent::Stdout { data })) => context.write(data.as_bytes()),
                Ok(Some(ExecEvent::Stderr { data })) => context.write_error(data.as_bytes()),
                Ok(Some(ExecEvent::Exit { exit_code })) => return Ended::Exit(exit_code),
                Ok(Some(ExecEvent::Error { data })) => return Ended::Refused(data),
                Ok(None) => unreachable!("a stream gives its end before it has none"),
                Err(error) => return Ended::Broken(error),
            };
            // Dropping the stream ends the command: nobody can see its output any more.
            if let Err(failure) = written {
                return Ended::NotWritten(failure);
            }
        }
    })?;
    match ended {
        Ended::Exit(code) => Ok(forward(code)),
        Ended::Refused(text) => {
            context.say(&format!("exec error: {text}\n"));
            Err(Failure::Silent(1))
        }
        Ended::Broken(error) => Err(error.into()),
        Ended::NotWritten(failure) => Err(failure),
    }
}

/// The child's code as ours. A process has eight bits for it.
fn forward(code: i32) -> ExitCode {
    ExitCode::from(code.to_le_bytes()[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    #[test]
    fn the_command_begins_where_it_begins() {
        let check = |line: &[&str], timeout: Option<i64>, command: &[&str]| {
            let argv = ["bhatti", "exec"].iter().chain(line).map(Into::into).collect::<Vec<_>>();
            let cli = parse(&argv).unwrap();
            let Some(Command::Exec(args)) = cli.command else { panic!("exec") };
            assert_eq!(args.sandbox, "dev", "{line:?}");
            assert_eq!(args.timeout, timeout, "{line:?}");
            assert_eq!(args.command, command, "{line:?}");
        };
        check(&["dev", "echo", "hi"], None, &["echo", "hi"]);
        check(&["dev", "--", "echo", "hi"], None, &["echo", "hi"]);
        check(&["dev", "--timeout", "5", "--", "ls", "-la"], Some(5), &["ls", "-la"]);
        check(&["--timeout=5", "dev", "ls", "-la"], Some(5), &["ls", "-la"]);
        check(
            &["dev", "ls", "--timeout", "5", "--json"],
            None,
            &["ls", "--timeout", "5", "--json"],
        );
        check(&["dev", "--", "-x"], None, &["-x"]);
        check(&["dev", "--", "a", "--", "b"], None, &["a", "--", "b"]);
        check(&["dev", "a", "--", "b"], None, &["a", "--", "b"]);
        check(&["dev", "--", "--", "b"], None, &["--", "b"]);
        check(&["dev", "sh", "-c", ""], None, &["sh", "-c", ""]);
        check(&["dev"], None, &[]);
        check(&["dev", "--timeout", "-1", "ls"], Some(-1), &["ls"]);
    }

    #[test]
    fn a_timeout_out_of_range_is_refused_here() {
        for bad in [-1, 86_401] {
            let Err(Failure::Error { text, .. }) = request(Vec::new(), Some(bad)) else {
                panic!("{bad}")
            };
            assert_eq!(text, format!("--timeout must be from 1 to 86400 seconds, got {bad}"));
        }
        assert_eq!(request(Vec::new(), Some(86_400)).unwrap().timeout_sec, 86_400);
        assert_eq!(request(Vec::new(), None).unwrap().timeout_sec, 0);
    }
}
