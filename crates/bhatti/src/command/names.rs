//! `bhatti __complete-names -- <words>`: what completion scripts ask.
//!
//! Not in the tree of commands, so that neither help nor the scripts themselves offer it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgAction, Command};

use crate::args::command_tree;
use crate::context::Context;
use crate::failure::Failure;

/// The words typed so far, with the program and without the one being typed. `None`: this
/// command line is an ordinary one.
pub(crate) fn asked(argv: &[OsString]) -> Option<Vec<String>> {
    match argv {
        [_, command, dashes, words @ ..] if command == "__complete-names" && dashes == "--" => {
            Some(words.iter().map(|word| word.to_string_lossy().into_owned()).collect())
        }
        _ => None,
    }
}

/// Prints sandbox names if the next word is one; exit 1 if it is not.
pub(crate) fn run(context: &Context, words: &[String]) -> Result<ExitCode, Failure> {
    if !wants_sandbox(words) {
        return Err(Failure::Silent(1));
    }
    let lines: String = context.cache.names().iter().map(|name| format!("{name}\n")).collect();
    context.write(lines.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Walks the words through the tree of commands: is the next one a sandbox?
fn wants_sandbox(words: &[String]) -> bool {
    let tree = command_tree();
    let mut command = &tree;
    let mut is_value = false;
    for word in words.iter().skip(1) {
        if std::mem::take(&mut is_value) {
            continue;
        }
        if word.starts_with('-') && word.len() > 1 {
            is_value = takes_value(&tree, command, word);
            continue;
        }
        match command.find_subcommand(word) {
            Some(below) => command = below,
            // The sandbox is there already, or nothing of ours is meant.
            None => return false,
        }
    }
    let first = command.get_positionals().next();
    !is_value && first.is_some_and(|arg| arg.get_id() == "sandbox")
}

/// `--name` takes the next word; `--name=x` and `--json` do not.
fn takes_value(tree: &Command, command: &Command, word: &str) -> bool {
    let flags = command.get_arguments().chain(tree.get_arguments());
    let mut named = flags.filter(|arg| {
        arg.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long))
            || arg.get_short().is_some_and(|short| word == format!("-{short}"))
    });
    named.next().is_some_and(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_argument_is_a_sandbox() {
        let wants = |line: &str| {
            wants_sandbox(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        for line in [
            "bhatti exec",
            "bhatti --json rm",
            "bhatti rm -y",
            "bhatti edit --name new",
            "bhatti exec --timeout=5",
            "bhatti info",
            "bhatti start --force",
            "bhatti snapshot create --name s",
        ] {
            assert!(wants(line), "{line}");
        }
        for line in [
            "bhatti",
            "bhatti exec dev",
            "bhatti exec --timeout",
            "bhatti list",
            "bhatti create",
            "bhatti user delete",
            "bhatti snapshot",
            "bhatti snapshot resume",
            "bhatti bogus",
        ] {
            assert!(!wants(line), "{line}");
        }
    }
}
