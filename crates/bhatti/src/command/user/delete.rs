//! `bhatti user delete`

use std::process::ExitCode;

use bhatti_api::StatusBody;

use crate::confirm::{Consent, confirm};
use crate::context::Context;
use crate::failure::Failure;

/// Delete a user
///
/// Fails while the user has sandboxes or snapshots: they are to be destroyed and deleted first.
#[derive(clap::Args, Debug)]
pub(crate) struct UserDeleteArgs {
    /// User name
    name: String,
    #[command(flatten)]
    consent: Consent,
}

pub(crate) fn run(context: &Context, args: &UserDeleteArgs) -> Result<ExitCode, Failure> {
    let name = &args.name;
    confirm(context, args.consent, &format!("Delete user {name:?}?"))?;
    super::open_store(context)?.delete_user(name)?;
    let status = StatusBody { status: "deleted".to_owned() };
    context.print(&status, &format!("deleted user {name:?}\n"))?;
    Ok(ExitCode::SUCCESS)
}
