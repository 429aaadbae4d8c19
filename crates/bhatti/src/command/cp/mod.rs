//! `bhatti cp`: files and directories into a sandbox and out of it.
//!
//! ```text
//!   upload    thread: pack   ─▶ pipe ─▶ PUT archive
//!   download  thread: unpack ◀─ pipe ◀─ GET archive
//! ```
//!
//! Where things go is decided before, in [`place`], with one look at the sandbox.

mod download;
mod place;
mod progress;
mod upload;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use bhatti_tree::{Links, Problems};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::output;

/// Copy files and directories into a sandbox or out of it
///
/// One of SRC and DST is in a sandbox, written as SANDBOX:PATH; the other is here. Directories are
/// copied with all that is in them: modes, times and symlinks are kept. If DST is a directory the
/// copy goes into it, under its own name; with a SRC that ends in "/." only what is in SRC does.
/// Otherwise DST is the name of the copy.
///
/// Each file appears under its name only when it is whole. What cannot be copied is named, the
/// rest is copied, and the exit code is 1. Out of a sandbox come no devices, and no links that lead
/// out of what is copied unless --all-links asks for them.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "bhatti cp <src> <sandbox>:<dst>\n       bhatti cp [--all-links] <sandbox>:<src> <dst>"
)]
pub(crate) struct CpArgs {
    /// What to copy
    src: OsString,
    /// Where to
    dst: OsString,
    /// Out of a sandbox, keep links that lead out of what is copied too
    ///
    /// They are copied as they are, and nothing is written through one. But what follows them here
    /// later reads and writes files that the sandbox has chosen.
    #[arg(long)]
    all_links: bool,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Here(PathBuf),
    There(There),
}

/// A path in a sandbox.
#[derive(Debug, PartialEq, Eq)]
struct There {
    sandbox: String,
    /// Absolute.
    path: String,
}

/// What came of a copy.
#[derive(Debug, Default, Serialize)]
struct Copied {
    files: u64,
    bytes: u64,
    problems: Vec<String>,
    problem_count: u64,
}

impl Copied {
    fn new(files: u64, bytes: u64, problems: Problems) -> Self {
        Self { files, bytes, problems: problems.sentences, problem_count: problems.count }
    }
}

pub(crate) fn run(context: &Context, args: CpArgs) -> Result<ExitCode, Failure> {
    let copied = match (end(args.src)?, end(args.dst)?) {
        (End::Here(from), End::There(to)) => upload::run(context, &from, &to)?,
        (End::There(from), End::Here(to)) => {
            let links = if args.all_links { Links::Any } else { Links::Inside };
            download::run(context, &from, &to, links)?
        }
        (End::Here(_), End::Here(_)) => {
            let text = "neither is in a sandbox: write that one as SANDBOX:PATH";
            return Err(Failure::text(text));
        }
        (End::There(_), End::There(_)) => {
            return Err(Failure::text("both are in a sandbox: copy by way of a directory here"));
        }
    };
    for problem in &copied.problems {
        context.say(&format!("left out: {}\n", output::on_one_line(problem)));
    }
    let told = u64::try_from(copied.problems.len()).unwrap_or(u64::MAX);
    if copied.problem_count > told {
        context.say(&format!("left out: {} more\n", copied.problem_count - told));
    }
    let files = if copied.files == 1 { "file" } else { "files" };
    let size = progress::size(copied.bytes);
    context.print(&copied, &format!("copied {} {files} ({size})\n", copied.files))?;
    Ok(ExitCode::from(u8::from(copied.problem_count > 0)))
}

/// `SANDBOX:PATH` is there; everything else is here, so `./a:b` is a file with a colon.
fn end(text: OsString) -> Result<End, Failure> {
    let colon = text.to_str().and_then(|text| text.split_once(':'));
    let Some((sandbox, path)) = colon.filter(|(sandbox, _)| is_name(sandbox)) else {
        if text.is_empty() {
            return Err(Failure::text("an empty path names nothing"));
        }
        return Ok(End::Here(text.into()));
    };
    if path.is_empty() {
        return Err(Failure::text(format!(
            "{sandbox}: names no path; everything there is {sandbox}:/"
        )));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(End::There(There { sandbox: sandbox.to_owned(), path }))
}

/// Whether it could be the name or the id of a sandbox.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// Ends the work at Ctrl-C with what a shell reports for that. What was begun under no name yet
/// goes with the process.
async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    const SIGINT_EXIT: u8 = 130;
    tokio::select! {
        done = work => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Err(Failure::Silent(SIGINT_EXIT))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_before_a_colon_is_a_sandbox() {
        let there = |sandbox: &str, path: &str| {
            End::There(There { sandbox: sandbox.to_owned(), path: path.to_owned() })
        };
        let end = |text: &str| end(text.into());
        assert_eq!(end("dev:/workspace").unwrap(), there("dev", "/workspace"));
        assert_eq!(end("dev:src/.").unwrap(), there("dev", "/src/."));
        assert_eq!(end("0a.b_c-d:/x:y").unwrap(), there("0a.b_c-d", "/x:y"));
        for here in ["./a:b", "a/b:c", "file", "/x:y", ":x", "-x:y"] {
            assert_eq!(end(here).unwrap(), End::Here(here.into()), "{here}");
        }
        assert!(end("dev:").is_err());
        assert!(end("").is_err());
    }
}
