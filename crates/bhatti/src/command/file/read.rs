//! `bhatti file read`

use std::process::ExitCode;

use super::named;
use crate::context::Context;
use crate::failure::Failure;

/// Read a file from a sandbox
///
/// Prints its bytes as they are.
#[derive(clap::Args, Debug)]
pub(crate) struct FileReadArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// The file, in the sandbox
    path: String,
}

pub(super) fn run(context: &Context, args: &FileReadArgs) -> Result<ExitCode, Failure> {
    let client = context.client()?;
    context.wait(async {
        let about = |error| Failure::about(&args.sandbox, named(&args.path, error));
        let mut content = client.read_file(&args.sandbox, &args.path).await.map_err(about)?;
        while let Some(bytes) = content.next().await.map_err(about)? {
            context.write(&bytes)?;
        }
        Ok(ExitCode::SUCCESS)
    })?
}
