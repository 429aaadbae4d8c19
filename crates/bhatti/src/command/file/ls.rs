//! `bhatti file ls`

use std::process::ExitCode;

use super::named;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, FileRow};

/// List directory contents
#[derive(clap::Args, Debug)]
pub(crate) struct FileLsArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// The directory, in the sandbox
    path: String,
}

pub(super) fn run(context: &Context, args: &FileLsArgs) -> Result<ExitCode, Failure> {
    let client = context.client()?;
    let listing = async {
        let listed = client.list_files(&args.sandbox, &args.path);
        listed.await.map_err(|error| named(&args.path, error))
    };
    let files = context.call_about(&args.sandbox, listing)?;
    let rows: Vec<FileRow> = files.iter().map(FileRow::from).collect();
    context.print(&rows, &output::files(&files))?;
    Ok(ExitCode::SUCCESS)
}
