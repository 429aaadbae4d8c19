//! `bhatti unpublish`

use std::process::ExitCode;

use bhatti_api::StatusBody;

use super::port::port;
use super::publish::required;
use crate::context::Context;
use crate::failure::Failure;

/// Unpublish a sandbox port
///
/// From then on nobody is answered under its URL, and who is being answered is cut off.
#[derive(clap::Args, Debug)]
#[command(override_usage = "bhatti unpublish <SANDBOX> --port <PORT>")]
pub(crate) struct UnpublishArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Port to unpublish (required)
    #[arg(short, long, value_name = "PORT", value_parser = port::<i64>)]
    port: Option<i64>,
}

pub(crate) fn run(context: &Context, args: &UnpublishArgs) -> Result<ExitCode, Failure> {
    let port = required(args.port)?;
    let number = u16::try_from(port).map_err(|_| Failure::text("port must be 1-65535"))?;
    let client = context.client()?;
    context.call_about(&args.sandbox, client.unpublish(&args.sandbox, number))?;
    let status = StatusBody { status: "unpublished".to_owned() };
    context.print(&status, &format!("Unpublished port {port}\n"))?;
    Ok(ExitCode::SUCCESS)
}
