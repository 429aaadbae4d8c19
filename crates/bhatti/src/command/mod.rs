//! One file per command.

pub(crate) mod admin;
pub(crate) mod completion;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod destroy;
pub(crate) mod edit;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod forward;
pub(crate) mod inspect;
mod interrupt;
pub(crate) mod list;
pub(crate) mod names;
mod pairs;
mod policy;
mod port;
pub(crate) mod ports;
pub(crate) mod ps;
pub(crate) mod publish;
pub(crate) mod serve;
mod setup;
pub(crate) mod share;
pub(crate) mod shell;
mod size;
pub(crate) mod snapshot;
mod spinner;
pub(crate) mod start;
pub(crate) mod stop;
mod store;
pub(crate) mod unpublish;
pub(crate) mod user;
mod version;

use std::process::ExitCode;

use crate::args::Command;
use crate::context::Context;
use crate::failure::Failure;

/// Runs one command.
pub(crate) fn run(context: &Context, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Admin(args) => admin::run(context, args),
        Command::Completion(args) => completion::run(context, &args),
        Command::Cp(args) => cp::run(context, args),
        Command::Create(args) => create::run(context, &args),
        Command::Destroy(args) => destroy::run(context, &args),
        Command::Edit(args) => edit::run(context, &args),
        Command::Exec(args) => exec::run(context, args),
        Command::File(args) => file::run(context, args),
        Command::Forward(args) => forward::run(context, &args),
        Command::Inspect(args) => inspect::run(context, &args),
        Command::List(args) => list::run(context, &args),
        Command::Ps(args) => ps::run(context, &args),
        Command::Ports(args) => ports::run(context, &args),
        Command::Publish(args) => publish::run(context, args),
        Command::Serve(args) => serve::run(context, &args),
        Command::Setup => setup::run(context),
        Command::Share(args) => share::run(context, &args),
        Command::Shell(args) => shell::run(context, &args),
        Command::Snapshot(args) => snapshot::run(context, args),
        Command::Start(args) => start::run(context, &args),
        Command::Stop(args) => stop::run(context, &args),
        Command::Unpublish(args) => unpublish::run(context, &args),
        Command::User(args) => user::run(context, args),
        Command::Version => version::run(context),
    }
}
