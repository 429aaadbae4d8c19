//! `bhatti user`: accounts, straight in the database of this host's daemon.

mod create;
mod delete;
mod list;
mod rotate_key;

use std::process::ExitCode;

use super::store::open as open_store;
use crate::context::Context;
use crate::failure::Failure;
use crate::usage;

/// Manage the users of this host's daemon
#[derive(clap::Args, Debug)]
#[command(disable_help_subcommand = true)]
pub(crate) struct UserArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    Create(create::UserCreateArgs),
    Delete(delete::UserDeleteArgs),
    /// List users
    List,
    RotateKey(rotate_key::RotateKeyArgs),
}

pub(crate) fn run(context: &Context, args: UserArgs) -> Result<ExitCode, Failure> {
    match args.verb {
        None => usage::print_help(&["user"]),
        Some(Verb::Create(args)) => create::run(context, args),
        Some(Verb::Delete(args)) => delete::run(context, &args),
        Some(Verb::List) => list::run(context),
        Some(Verb::RotateKey(args)) => rotate_key::run(context, &args),
    }
}
