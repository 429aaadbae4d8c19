//! `bhatti ports`

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, PortRow};

/// List listening ports inside a sandbox
///
/// A sleeping sandbox wakes by itself.
#[derive(clap::Args, Debug)]
pub(crate) struct PortsArgs {
    /// Name or id of the sandbox
    sandbox: String,
}

pub(crate) fn run(context: &Context, args: &PortsArgs) -> Result<ExitCode, Failure> {
    let client = context.client()?;
    let ports = context.call_about(&args.sandbox, client.ports(&args.sandbox))?;
    let rows: Vec<PortRow> = ports.iter().map(PortRow::from).collect();
    context.print(&rows, &output::ports(context.url()?, &ports))?;
    Ok(ExitCode::SUCCESS)
}
