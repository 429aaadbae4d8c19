//! `bhatti file`: one file at a time.

mod ls;
mod read;
mod write;

use std::process::ExitCode;

use bhatti_client::{ClientError, StatusCode};

use crate::context::Context;
use crate::failure::Failure;
use crate::usage;

/// Read, write and list files in a sandbox
///
/// A sleeping sandbox wakes by itself. For whole directories there is `bhatti cp`.
#[derive(clap::Args, Debug)]
#[command(disable_help_subcommand = true)]
pub(crate) struct FileArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    Ls(ls::FileLsArgs),
    Read(read::FileReadArgs),
    Write(write::FileWriteArgs),
}

pub(crate) fn run(context: &Context, args: FileArgs) -> Result<ExitCode, Failure> {
    match args.verb {
        None => usage::print_help(&["file"]),
        Some(Verb::Ls(args)) => ls::run(context, &args),
        Some(Verb::Read(args)) => read::run(context, &args),
        Some(Verb::Write(args)) => write::run(context, &args),
    }
}

/// A server that says only "file not found" knows no more than the request; here it is known what
/// was asked for.
pub(crate) fn named(path: &str, error: ClientError) -> ClientError {
    match error {
        ClientError::Api { status: StatusCode::NOT_FOUND, message, request_id }
            if message == "file not found" =>
        {
            let message = format!("{message}: {path}");
            ClientError::Api { status: StatusCode::NOT_FOUND, message, request_id }
        }
        other => other,
    }
}
