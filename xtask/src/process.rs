//! Running host tools: one place that turns an exit status into an error a person can act on.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// How much of a failing tool's output goes into the error.
const TAIL_LINES: usize = 15;

/// Runs a tool whose output belongs on our terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a tool silently; what it printed is shown only if it fails.
pub(crate) fn run_quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a tool and returns what it wrote to stdout.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .output()
        .with_context(|| cannot_start(command))?;
    let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        let stderr = String::from_utf8_lossy(&done.stderr);
        let said = if stderr.trim().is_empty() { tail(&stdout) } else { tail(&stderr) };
        bail!("{} failed ({}):\n{said}", shown(command), done.status);
    }
    Ok(stdout)
}

/// Whether a tool of that name is on the path.
pub(crate) fn exists(tool: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
}

fn cannot_start(command: &Command) -> String {
    format!("failed to start {:?}; `scripts/bootstrap` installs the tools", command.get_program())
}

/// Program and arguments, cut to a readable length.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(160) {
        Some((cut, _)) => format!("`{}…`", &line[..cut]),
        None => format!("`{line}`"),
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Whether an I/O error only says that something is not there.
pub(crate) fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_tool_is_named_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo because >&2; exit 3"]))
            .expect_err("exit 3 is a failure");
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3") && text.contains("because"), "{text}");
    }

    #[test]
    fn a_missing_tool_points_to_the_bootstrap() {
        let error = run(&mut Command::new("no-such-tool-of-bhatti")).expect_err("not there");
        assert!(format!("{error:#}").contains("scripts/bootstrap"));
        assert!(!exists("no-such-tool-of-bhatti"));
        assert!(exists("sh"));
    }
}
