//! `bhatti stop`

use std::process::ExitCode;

use super::spinner;
use crate::context::Context;
use crate::failure::Failure;

/// Snapshot and stop a sandbox
///
/// Its memory and its disk are kept, and it takes no memory of the host. The next use, or
/// `bhatti start`, continues it where it was.
#[derive(clap::Args, Debug)]
pub(crate) struct StopArgs {
    /// Name or id of the sandbox
    sandbox: String,
}

pub(crate) fn run(context: &Context, args: &StopArgs) -> Result<ExitCode, Failure> {
    let sandbox = &args.sandbox;
    let work = context.client()?.stop(sandbox);
    let what = format!("stopping {sandbox}");
    let stopped = context.call_about(sandbox, spinner::while_waiting(context, &what, work))?;
    context.print(&stopped, &format!("sandbox/{sandbox} stopped\n"))?;
    Ok(ExitCode::SUCCESS)
}
