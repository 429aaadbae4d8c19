//! `bhatti serve`

use std::process::ExitCode;

use bhatti_daemon::check::Report;

use crate::context::Context;
use crate::failure::Failure;
use crate::output;

/// Start the bhatti daemon
#[derive(clap::Args, Debug)]
pub(crate) struct ServeArgs {
    /// Look whether this host is fit for it, and start nothing; exit 1 if something needed is missing
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(context: &Context, args: &ServeArgs) -> Result<ExitCode, Failure> {
    let data_dir = context.data_dir_flag()?;
    let config = context.config()?.server(data_dir.as_deref());
    if args.check {
        let report = Report::of_host(&config);
        context.print(&report, &output::host_check(&report))?;
        return if report.fit { Ok(ExitCode::SUCCESS) } else { Err(Failure::Silent(1)) };
    }
    match bhatti_daemon::serve(config) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::text(format!("{error:#}"))),
    }
}
