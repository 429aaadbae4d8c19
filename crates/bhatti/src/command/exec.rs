//! `bhatti exec`

mod live;
mod printer;
pub(super) mod stdin;

use std::process::ExitCode;

use bhatti_api::{ExecEvent, ExecRequest, ExecStreamRequest};
use bhatti_client::{Client, ClientError};

use super::interrupt;
use crate::context::Context;
use crate::failure::Failure;
use crate::{output, usage};

/// Execute a command in a sandbox
///
/// Everything from the first word after the sandbox on is the command; `--` in front of it is
/// optional. Its exit code becomes this command's. A sleeping sandbox wakes by itself;
/// if it lost something on the way, a warning on stderr says what.
///
/// Output comes as it is printed, any bytes unchanged. A stdin that is a pipe or a file goes to
/// the command, which sees its end: tar c . | bhatti exec dev -- tar x -C /workspace. In a loop
/// that reads its own input, add </dev/null. A terminal stays here: use bhatti shell for that.
/// Ctrl-C, or the end of this process, kills the command and all it started; --detach is for
/// what should go on. With --json the answer is one object, at the end, and nothing goes to stdin.
#[derive(clap::Args, Debug)]
#[command(override_usage = "bhatti exec <sandbox> [--] <command...>")]
pub(crate) struct ExecArgs {
    /// Seconds until the command is killed, up to 86400 (default, also for 0: 300)
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
    /// Raw, as it comes.
    Live,
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
        Mode::Live => {
            let request = ExecStreamRequest {
                cmd: request.cmd,
                timeout_sec: request.timeout_sec,
                stdin: stdin::is_for_the_command(),
                ..ExecStreamRequest::default()
            };
            match live::run(context, client, &sandbox, &request)? {
                Some(code) => Ok(code),
                None => run_without_stdin(context, client, &sandbox, request),
            }
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
    match (detach, context.globals.json) {
        (true, _) => Mode::Detach,
        (false, true) => Mode::Json,
        (false, false) => Mode::Live,
    }
}

/// For a server that knows only the older way, whose output is text.
fn run_without_stdin(
    context: &Context,
    client: &Client,
    sandbox: &str,
    request: ExecStreamRequest,
) -> Result<ExitCode, Failure> {
    if request.stdin {
        context.say("Warning: this server cannot pass stdin on; the command reads none of it\n");
    }
    let (cmd, timeout_sec) = (request.cmd, request.timeout_sec);
    let request = ExecRequest { cmd, timeout_sec, ..ExecRequest::default() };
    let forced = std::env::var_os("BHATTI_FORCE_STREAM").is_some_and(|value| value == "1");
    if forced || context.stdout_is_terminal() {
        return stream(context, client, sandbox, &request);
    }
    let result = context.call_about(sandbox, client.exec_buffered(sandbox, &request))?;
    context.write(result.stdout.as_bytes())?;
    context.write_error(result.stderr.as_bytes())?;
    let code = result.exit_code;
    let ended = if result.timed_out { Ended::TimedOut(code) } else { Ended::Exit(code) };
    ended.report(context, request.timeout_sec)
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

/// How a command ended, as far as the server could tell.
enum Ended {
    Exit(i32),
    /// Killed because it ran too long.
    TimedOut(i32),
    Refused(String),
    Broken(ClientError),
}

impl Ended {
    /// `timeout` is what was asked for; 0 is the server's default.
    fn report(self, context: &Context, timeout: i64) -> Result<ExitCode, Failure> {
        match self {
            Self::TimedOut(code) => {
                let seconds = match timeout {
                    0 => i64::from(ExecRequest::DEFAULT_TIMEOUT_SEC),
                    seconds => seconds,
                };
                context.say(&format!(
                    "killed: it ran longer than {seconds} s (--timeout gives it more time, --detach \
                     as much as it wants)\n"
                ));
                Ok(forward(code))
            }
            Self::Exit(code) => Ok(forward(code)),
            Self::Refused(text) => {
                context.say(&format!("exec error: {text}\n"));
                Err(Failure::Silent(1))
            }
            Self::Broken(error) => Err(error.into()),
        }
    }
}

/// NDJSON, as it comes.
fn stream(
    context: &Context,
    client: &Client,
    sandbox: &str,
    request: &ExecRequest,
) -> Result<ExitCode, Failure> {
    let ended = context.wait(async {
        let events = client.exec_stream(sandbox, request).await;
        let mut events = events.map_err(|error| Failure::about(sandbox, error))?;
        context.pass_on_warning();
        loop {
            // A failure to write drops the stream, which ends the command: nobody can see its
            // output any more.
            match events.next().await {
                Ok(Some(ExecEvent::Stdout { data })) => context.write(data.as_bytes())?,
                Ok(Some(ExecEvent::Stderr { data })) => context.write_error(data.as_bytes())?,
                Ok(Some(ExecEvent::Exit { exit_code, timed_out: false })) => {
                    return Ok::<_, Failure>(Ended::Exit(exit_code));
                }
                Ok(Some(ExecEvent::Exit { exit_code, timed_out: true })) => {
                    return Ok(Ended::TimedOut(exit_code));
                }
                Ok(Some(ExecEvent::Error { data })) => return Ok(Ended::Refused(data)),
                Ok(None) => unreachable!("a stream gives its end before it has none"),
                Err(error) => return Ok(Ended::Broken(error)),
            }
        }
    })??;
    ended.report(context, request.timeout_sec)
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
