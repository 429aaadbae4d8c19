//! `bhatti start`

use std::process::ExitCode;

use bhatti_api::Transition;

use super::spinner;
use crate::context::Context;
use crate::failure::Failure;

/// Resume a stopped sandbox
///
/// It continues where it was. Any use of a sandbox does the same; this is for when it should be
/// ready beforehand, or when it cannot continue.
#[derive(clap::Args, Debug)]
pub(crate) struct StartArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Start it even if its memory is lost: from its disk, or from an older state
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(context: &Context, args: &StartArgs) -> Result<ExitCode, Failure> {
    let sandbox = &args.sandbox;
    let work = context.client()?.start(sandbox, args.force);
    let what = format!("starting {sandbox}");
    let started = context.call_about(sandbox, spinner::while_waiting(context, &what, work))?;
    context.print(&started, &format!("sandbox/{sandbox} started\n"))?;
    if let Some(loss) = started.last_transition.as_ref().and_then(Transition::loss) {
        context.say(&format!("Warning: {loss}\n"));
    }
    Ok(ExitCode::SUCCESS)
}
