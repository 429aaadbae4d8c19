//! `bhatti start`

use std::process::ExitCode;

use super::spinner;
use crate::context::Context;
use crate::failure::Failure;

/// Resume a stopped sandbox
///
/// It continues where it was stopped. Any use of a sandbox does the same; this is for when it
/// should be ready beforehand.
#[derive(clap::Args, Debug)]
pub(crate) struct StartArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Try again after its memory could not be restored
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(context: &Context, args: &StartArgs) -> Result<ExitCode, Failure> {
    let sandbox = &args.sandbox;
    let work = context.client()?.start(sandbox, args.force);
    let what = format!("starting {sandbox}");
    let started = context.call_about(sandbox, spinner::while_waiting(context, &what, work))?;
    context.print(&started, &format!("sandbox/{sandbox} started\n"))?;
    Ok(ExitCode::SUCCESS)
}
