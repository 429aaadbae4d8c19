//! `bhatti snapshot delete`

use std::process::ExitCode;

use crate::confirm::{Consent, confirm};
use crate::context::Context;
use crate::failure::Failure;

/// Delete a snapshot
///
/// Sandboxes that were resumed from it stay.
#[derive(clap::Args, Debug)]
pub(crate) struct SnapshotDeleteArgs {
    /// Name of the snapshot
    snapshot: String,
    #[command(flatten)]
    consent: Consent,
}

pub(crate) fn run(context: &Context, args: &SnapshotDeleteArgs) -> Result<ExitCode, Failure> {
    let snapshot = &args.snapshot;
    confirm(context, args.consent, &format!("Delete snapshot {snapshot:?}?"))?;
    let status = context.call(context.client()?.delete_snapshot(snapshot))?;
    context.print(&status, "deleted\n")?;
    Ok(ExitCode::SUCCESS)
}
