//! `bhatti ps`

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, SessionRow};

/// List active sessions in a sandbox
///
/// Shells, sessions on pipes, the init script while it runs (init), and commands started with
/// "exec --detach" (their ids begin with d). "bhatti shell <sandbox> --session <id>" attaches to
/// any but the last.
#[derive(clap::Args, Debug)]
pub(crate) struct PsArgs {
    /// Name or id of the sandbox
    sandbox: String,
}

pub(crate) fn run(context: &Context, args: &PsArgs) -> Result<ExitCode, Failure> {
    let sandbox = &args.sandbox;
    let sessions = context.call_about(sandbox, context.client()?.sessions(sandbox))?;
    let rows: Vec<SessionRow> = sessions.iter().map(SessionRow::from).collect();
    context.print(&rows, &output::sessions(&sessions, context.stdout_is_terminal()))?;
    Ok(ExitCode::SUCCESS)
}
