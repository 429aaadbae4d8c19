//! `bhatti snapshot`: a sandbox's memory and disk under a name, and new sandboxes from it.

mod create;
mod delete;
mod list;
mod resume;

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;
use crate::usage;

/// Manage snapshots of sandboxes
#[derive(clap::Args, Debug)]
#[command(disable_help_subcommand = true)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    Create(create::SnapshotCreateArgs),
    Delete(delete::SnapshotDeleteArgs),
    /// List snapshots
    List,
    Resume(resume::SnapshotResumeArgs),
}

pub(crate) fn run(context: &Context, args: SnapshotArgs) -> Result<ExitCode, Failure> {
    match args.verb {
        None => usage::print_help(&["snapshot"]),
        Some(Verb::Create(args)) => create::run(context, args),
        Some(Verb::Delete(args)) => delete::run(context, &args),
        Some(Verb::List) => list::run(context),
        Some(Verb::Resume(args)) => resume::run(context, &args),
    }
}
