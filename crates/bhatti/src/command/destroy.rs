//! `bhatti destroy`

use std::process::ExitCode;

use crate::confirm::{Consent, confirm};
use crate::context::Context;
use crate::failure::Failure;

/// Destroy a sandbox
///
/// Its memory and its disk are gone for good.
#[derive(clap::Args, Debug)]
pub(crate) struct DestroyArgs {
    /// Name or id of the sandbox
    sandbox: String,
    #[command(flatten)]
    consent: Consent,
}

pub(crate) fn run(context: &Context, args: &DestroyArgs) -> Result<ExitCode, Failure> {
    let sandbox = &args.sandbox;
    confirm(context, args.consent, &format!("Destroy sandbox {sandbox:?}?"))?;
    let status = context.call_about(sandbox, context.client()?.destroy(sandbox))?;
    context.cache.remove(sandbox);
    context.print(&status, &format!("sandbox/{sandbox} destroyed\n"))?;
    Ok(ExitCode::SUCCESS)
}
