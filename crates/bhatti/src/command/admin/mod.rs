//! `bhatti admin`: what an operator asks, straight from the database of this host's daemon.

mod events;
mod since;

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;
use crate::usage;

/// Look into this host's daemon
#[derive(clap::Args, Debug)]
#[command(disable_help_subcommand = true)]
pub(crate) struct AdminArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    Events(events::EventsArgs),
}

pub(crate) fn run(context: &Context, args: AdminArgs) -> Result<ExitCode, Failure> {
    match args.verb {
        None => usage::print_help(&["admin"]),
        Some(Verb::Events(args)) => events::run(context, args),
    }
}
