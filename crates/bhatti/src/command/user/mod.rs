//! `bhatti user`: accounts, straight in the database of this host's daemon.

mod create;
mod delete;
mod list;
mod rotate_key;

use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;

use bhatti_store::Store;

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

/// Opens `<data_dir>/state.db`, making both if they are not there yet: users may be created
/// before the daemon's first start.
fn open_store(context: &Context) -> Result<Store, Failure> {
    let flag = context.data_dir_flag()?;
    let data_dir = context.config()?.server(flag.as_deref()).data_dir;
    let path = data_dir.join("state.db");
    let fail = |error: &dyn std::error::Error| Failure::caused(format!("open store {path}"), error);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data_dir)
        .map_err(|error| fail(&error))?;
    Store::open(path.as_std_path()).map_err(|error| fail(&error))
}
