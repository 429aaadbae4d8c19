//! What is said about a command line that makes no sense, and help.
//!
//! clap finds the mistakes; the words and exit codes are the contract's.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use crate::args::command_tree;
use crate::failure::{Failure, say};

/// Says what is wrong with `argv`, or prints the help it asks for.
pub(crate) fn explain(error: &clap::Error, argv: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return print(&error.render()).unwrap_or_else(Failure::report);
        }
        ErrorKind::MissingRequiredArgument | ErrorKind::UnknownArgument => {
            if let Some(code) = wrong_count(error, argv) {
                return code;
            }
        }
        _ => {}
    }
    Failure::text(sentence(error, argv)).report()
}

/// Prints the help of the command at `path`.
pub(crate) fn print_help(path: &[&str]) -> Result<ExitCode, Failure> {
    print(&help(path))
}

fn print(help: &StyledStr) -> Result<ExitCode, Failure> {
    use std::io::{IsTerminal, Write};
    let mut stdout = std::io::stdout().lock();
    let text = if stdout.is_terminal() { help.ansi().to_string() } else { help.to_string() };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::ClosedPipe),
        other => Ok(other.map(|()| ExitCode::SUCCESS)?),
    }
}

fn help(path: &[&str]) -> StyledStr {
    let mut tree = command_tree();
    tree.build();
    let mut command = &mut tree;
    for name in path {
        // The path comes from this same tree.
        command = command.find_subcommand_mut(name).expect("a command of the tree");
    }
    command.render_help()
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

fn sentence(error: &clap::Error, argv: &[OsString]) -> String {
    let argument = text(error, ContextKind::InvalidArg);
    // clap names a flag together with its value: `--cpus <N>`.
    let flag = argument.and_then(|text| text.split([' ', '=']).next()).unwrap_or_default();
    match error.kind() {
        ErrorKind::InvalidSubcommand => unknown_command(error, argv),
        ErrorKind::UnknownArgument => match flag.strip_prefix("--") {
            Some(_) => format!("unknown flag: {flag}"),
            None => {
                let letter = flag.chars().nth(1).unwrap_or('?');
                format!("unknown shorthand flag: {letter:?} in {flag}")
            }
        },
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
            if value.is_empty() {
                return format!("flag needs an argument: {flag}");
            }
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
            format!("invalid argument {value:?} for {flag:?}{}", cause.unwrap_or_default())
        }
        _ => {
            // Rare, e.g. bytes that are not UTF-8: clap's own first sentence.
            let whole = error.render().to_string();
            let first = whole.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        }
    }
}

fn unknown_command(error: &clap::Error, argv: &[OsString]) -> String {
    let name = text(error, ContextKind::InvalidSubcommand).unwrap_or_default();
    let (path, _) = relaxed_parse(argv);
    let group = path.iter().fold("bhatti".to_owned(), |group, name| format!("{group} {name}"));
    let mut out = format!("unknown command {name:?} for {group:?}\n");
    let near: Vec<String> = suggestions(name, &path);
    if !near.is_empty() {
        out.push_str("\nDid you mean this?\n");
        near.iter().for_each(|name| out.push_str(&format!("\t{name}\n")));
        out.push('\n');
    }
    out.push_str(&format!("Run '{group} --help' for usage."));
    out
}

/// Commands of the group that look like `name`, best first.
fn suggestions(name: &str, path: &[String]) -> Vec<String> {
    let tree = command_tree();
    let group = path.iter().try_fold(&tree, |group, name| group.find_subcommand(name));
    let mut near: Vec<(f64, &str)> = group
        .into_iter()
        .flat_map(Command::get_subcommands)
        .flat_map(Command::get_name_and_visible_aliases)
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(score, _)| *score >= 0.8)
        .collect();
    near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    near.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// Too few or too many arguments: the command's help, then the numbers.
fn wrong_count(error: &clap::Error, argv: &[OsString]) -> Option<ExitCode> {
    let is_flag = text(error, ContextKind::InvalidArg).is_some_and(|text| text.starts_with('-'));
    if error.kind() == ErrorKind::UnknownArgument && is_flag {
        return None;
    }
    let (path, received) = relaxed_parse(argv);
    let tree = command_tree();
    let command = path.iter().try_fold(&tree, |group, name| group.find_subcommand(name))?;
    if let ([verb], Some(word)) = (path.as_slice(), text(error, ContextKind::InvalidArg))
        && let Some(sentence) = wrong_place(verb, word)
    {
        return Some(Failure::text(sentence).report());
    }
    let positionals: Vec<&Arg> = command.get_positionals().collect();
    let wanted = positionals.iter().filter(|arg| arg.is_required_set()).count();
    let most = positionals.len();
    let open = positionals.iter().any(|arg| matches!(arg.get_action(), ArgAction::Append));
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if let Err(failure) = print_help(&path) {
        return Some(failure.report());
    }
    say("\n");
    let sentence = if open {
        format!("requires at least {wanted} arg(s), only received {received}")
    } else if most > wanted {
        format!("accepts between {wanted} and {most} arg(s), received {received}")
    } else {
        format!("accepts {wanted} arg(s), received {received}")
    };
    Some(Failure::text(sentence).report())
}

/// What to say of a word that belongs behind a flag, as newcomers expect it not to.
fn wrong_place(verb: &str, word: &str) -> Option<String> {
    match verb {
        "create" => Some(format!(
            "the name of a new sandbox goes after --name: bhatti create --name {word}"
        )),
        "publish" | "unpublish" if word.parse::<u16>().is_ok() => {
            Some(format!("the port goes after -p: bhatti {verb} <sandbox> -p {word}"))
        }
        _ => None,
    }
}

/// Parses with every command taking any number of arguments: which command was meant, and how
/// many arguments it was given.
fn relaxed_parse(argv: &[OsString]) -> (Vec<String>, usize) {
    let Ok(matches) = relaxed(&command_tree()).try_get_matches_from(argv) else {
        return (Vec::new(), 0);
    };
    let mut path = Vec::new();
    let mut leaf = &matches;
    while let Some((name, below)) = leaf.subcommand() {
        path.push(name.to_owned());
        leaf = below;
    }
    let count = leaf.try_get_many::<OsString>("rest").ok().flatten().map_or(0, Iterator::count);
    (path, count)
}

fn relaxed(command: &Command) -> Command {
    let flags = command.get_arguments().filter(|arg| !arg.is_positional()).cloned();
    let rest = Arg::new("rest")
        .num_args(0..)
        .action(ArgAction::Append)
        .value_parser(clap::value_parser!(OsString));
    Command::new(command.get_name().to_owned())
        .aliases(command.get_all_aliases().map(str::to_owned).collect::<Vec<_>>())
        .args(flags)
        .arg(rest)
        .subcommands(command.get_subcommands().map(relaxed))
        .args_override_self(true)
        .ignore_errors(true)
}
