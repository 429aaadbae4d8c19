//! `bhatti file write`

use std::io::Read;
use std::process::ExitCode;

use bhatti_api::MAX_FILE;

use super::named;
use crate::context::Context;
use crate::failure::Failure;

/// Write a file (reads from stdin)
///
/// The file is written whole or not at all: a reader sees the old content or the new. Directories
/// that are missing are made. A file that is there keeps its mode.
#[derive(clap::Args, Debug)]
pub(crate) struct FileWriteArgs {
    /// Permission bits, octal (default: those of the file that is there, or 0644)
    #[arg(long, value_name = "MODE", value_parser = mode)]
    mode: Option<u32>,
    /// Name or id of the sandbox
    sandbox: String,
    /// The file, in the sandbox
    path: String,
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode @ 1..=0o7777) => Ok(mode),
        _ => Err("must be an octal number from 1 to 7777".to_owned()),
    }
}

pub(super) fn run(context: &Context, args: &FileWriteArgs) -> Result<ExitCode, Failure> {
    let mut content = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_FILE + 1)
        .read_to_end(&mut content)
        .map_err(|error| Failure::caused("read stdin", &error))?;
    if content.len() as u64 > MAX_FILE {
        return Err(Failure::text(format!(
            "stdin is larger than {} MiB, the most that one write takes; use bhatti cp",
            MAX_FILE >> 20
        )));
    }
    let client = context.client()?;
    let writing = async {
        let written = client.write_file(&args.sandbox, &args.path, args.mode, content.into());
        written.await.map_err(|error| named(&args.path, error))
    };
    let written = context.call_about(&args.sandbox, writing)?;
    context.print(&written, "ok\n")?;
    Ok(ExitCode::SUCCESS)
}
