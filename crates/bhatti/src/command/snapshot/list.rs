//! `bhatti snapshot list`

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, SnapshotListRow};

pub(crate) fn run(context: &Context) -> Result<ExitCode, Failure> {
    let snapshots = context.call(context.client()?.snapshots())?;
    let rows: Vec<SnapshotListRow> = snapshots.iter().map(SnapshotListRow::from).collect();
    context.print(&rows, &output::snapshot_list(&snapshots))?;
    Ok(ExitCode::SUCCESS)
}
