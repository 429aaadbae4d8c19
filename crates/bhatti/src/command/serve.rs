//! `bhatti serve`

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;

pub(crate) fn run(context: &Context) -> Result<ExitCode, Failure> {
    let data_dir = context.data_dir_flag()?;
    let config = context.config()?.server(data_dir.as_deref());
    match bhatti_daemon::serve(config) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::text(format!("{error:#}"))),
    }
}
