//! `bhatti share`

use std::process::ExitCode;

use bhatti_api::StatusBody;

use crate::context::Context;
use crate::failure::Failure;

/// Generate a web shell URL for a sandbox
///
/// Whoever has the link has a shell in the sandbox, in a browser and without an account. A new link
/// takes the place of the one before; shells that are open stay open. Nothing is woken until
/// somebody opens the link.
#[derive(clap::Args, Debug)]
pub(crate) struct ShareArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Make the link work no more, and close the shells that were opened with it
    #[arg(long)]
    revoke: bool,
}

pub(crate) fn run(context: &Context, args: &ShareArgs) -> Result<ExitCode, Failure> {
    let sandbox = &args.sandbox;
    let client = context.client()?;
    if args.revoke {
        context.call_about(sandbox, client.unshare(sandbox))?;
        let status = StatusBody { status: "revoked".to_owned() };
        context.print(&status, "Shell access revoked.\n")?;
    } else {
        let shared = context.call_about(sandbox, client.share(sandbox))?;
        context.print(&shared, &format!("Shell: {}\n", shared.url))?;
    }
    Ok(ExitCode::SUCCESS)
}
