//! The `bhatti` command: client and daemon in one binary.
//!
//! ```text
//! argv ──▶ args (clap) ──▶ command/<verb>.rs ──▶ bhatti-client ──▶ daemon
//!            │ usage.rs         │                bhatti-store  ──▶ state.db   (user *)
//!            ▼                  ▼                bhatti-daemon              (serve)
//!          stderr            Context: the only writer to stdout and stderr
//! ```
//!
//! Promises:
//! - Exit 0 is success, 1 any failure of ours; only `exec` forwards another number.
//! - What a person sees is rendered by pure functions in `output`, held by golden tests.
//! - Nothing is set up before it is needed: no runtime, no TLS, no connection for `version
//!   --help`.
//! - Completion never uses the network.
#![deny(unsafe_code)]

mod args;
mod cache;
mod command;
mod confirm;
mod context;
mod failure;
mod invoker;
mod output;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

use args::Globals;
pub use args::command_tree;

use context::Context;

/// Parses `argv`, runs the command, and says how it went.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = argv.into_iter().collect();
    if let Some(words) = command::names::asked(&argv) {
        let names = Context::new(Globals::default())
            .and_then(|context| command::names::run(&context, &words));
        return names.unwrap_or_else(failure::Failure::report);
    }
    let cli = match args::parse(&argv) {
        Ok(cli) => cli,
        Err(error) => return usage::explain(&error, &argv),
    };
    let context = match Context::new(cli.globals) {
        Ok(context) => context,
        Err(failure) => return failure.report(),
    };
    let code = match cli.command {
        None => usage::print_help(&[]).unwrap_or_else(failure::Failure::report),
        Some(command) => match command::run(&context, command) {
            Ok(code) => code,
            Err(failure) => failure.report(),
        },
    };
    context.report_timing();
    code
}
