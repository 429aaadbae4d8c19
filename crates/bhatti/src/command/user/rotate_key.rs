//! `bhatti user rotate-key`

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, RotatedKey};

/// Rotate a user's API key
///
/// The old key stops working with this command.
#[derive(clap::Args, Debug)]
pub(crate) struct RotateKeyArgs {
    /// User name
    name: String,
}

pub(crate) fn run(context: &Context, args: &RotateKeyArgs) -> Result<ExitCode, Failure> {
    let key = super::open_store(context)?.rotate_key(&args.name)?;
    let rotated = RotatedKey { name: args.name.clone(), api_key: key.reveal().to_owned() };
    context.print(&rotated, &output::key_rotated(&rotated))?;
    Ok(ExitCode::SUCCESS)
}
