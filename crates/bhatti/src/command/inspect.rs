//! `bhatti inspect`

use std::process::ExitCode;

use bhatti_api::ExecRequest;
use bhatti_types::Status;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, DiskUse};

/// Show sandbox details
///
/// Asks a running guest how full its disk is, which wakes it; with --json nothing is woken.
#[derive(clap::Args, Debug)]
pub(crate) struct InspectArgs {
    /// Name or id of the sandbox
    sandbox: String,
}

pub(crate) fn run(context: &Context, args: &InspectArgs) -> Result<ExitCode, Failure> {
    let client = context.client()?;
    let sandbox = context.call_about(&args.sandbox, client.get(&args.sandbox))?;
    let disk = if context.globals.json || sandbox.status != Status::Running {
        None
    } else {
        // Only a detail: a guest that cannot say does not spoil the rest.
        let request = ExecRequest {
            cmd: ["df", "-m", "/"].map(str::to_owned).to_vec(),
            timeout_sec: 2,
            ..ExecRequest::default()
        };
        let answer = context.wait(client.exec_buffered(&sandbox.id, &request))?;
        answer.ok().and_then(|result| DiskUse::parse(&result.stdout))
    };
    let published = if context.globals.json {
        Vec::new()
    } else {
        // A detail too.
        context.wait(client.published(&sandbox.id))?.unwrap_or_default()
    };
    context.print(&sandbox, &output::inspected(&sandbox, disk, &published))?;
    Ok(ExitCode::SUCCESS)
}
