//! `bhatti snapshot create`

use std::process::ExitCode;

use crate::command::{interrupt, spinner};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, CreatedSnapshot};

/// Checkpoint a running sandbox
///
/// Its memory and its disk as they are now, under a name. The sandbox goes on; the snapshot stays
/// when the sandbox is destroyed.
#[derive(clap::Args, Debug)]
#[command(override_usage = "bhatti snapshot create <SANDBOX> --name <NAME>")]
pub(crate) struct SnapshotCreateArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Name of the snapshot (required)
    #[arg(long)]
    name: Option<String>,
}

pub(crate) fn run(context: &Context, args: SnapshotCreateArgs) -> Result<ExitCode, Failure> {
    let sandbox = &args.sandbox;
    let Some(name) = args.name.filter(|name| !name.is_empty()) else {
        return Err(Failure::text("--name is required"));
    };
    let work = context.client()?.checkpoint(sandbox, &name);
    let (shows, undoes) = ("bhatti snapshot list", format!("bhatti snapshot delete {name}"));
    interrupt::goes_on(context, shows, &undoes)?;
    let what = format!("checkpointing {sandbox}");
    let snapshot = context.call_about(sandbox, spinner::while_waiting(context, &what, work))?;
    let text = output::snapshot_created(&snapshot);
    context.print(&CreatedSnapshot::from(&snapshot), &text)?;
    Ok(ExitCode::SUCCESS)
}
