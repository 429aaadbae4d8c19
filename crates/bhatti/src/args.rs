//! The command line as types, and the root's help.

use std::ffi::OsString;

use camino::Utf8PathBuf;
use clap::{ArgAction, CommandFactory, Parser, Subcommand};

use crate::command::{
    admin, completion, cp, create, destroy, edit, exec, file, forward, inspect, list, ports, ps,
    publish, serve, share, shell, snapshot, start, stop, unpublish, user,
};

/// Everything on one command line.
#[derive(Parser, Debug)]
#[command(
    name = "bhatti",
    about = "Self-hosted microVM sandboxes",
    args_override_self = true,
    disable_help_subcommand = false,
    infer_long_args = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Flags every command takes.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global Flags")]
pub(crate) struct Globals {
    /// API endpoint (overrides config and BHATTI_URL)
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// API key (overrides config and BHATTI_TOKEN)
    #[arg(long, global = true, value_name = "KEY", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The server's data directory, for commands that work on it directly
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) data_dir: Option<Utf8PathBuf>,
    /// Print machine-readable JSON
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) json: bool,
    /// Print where the time of the last request went, to stderr
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) timing: bool,
}

/// The commands. Sorted by name, as help shows them.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Look into this host's daemon
    Admin(admin::AdminArgs),
    Completion(completion::CompletionArgs),
    Cp(cp::CpArgs),
    Create(create::CreateArgs),
    #[command(visible_alias = "rm")]
    Destroy(destroy::DestroyArgs),
    Edit(edit::EditArgs),
    Exec(exec::ExecArgs),
    File(file::FileArgs),
    Forward(forward::ForwardArgs),
    #[command(visible_alias = "info")]
    Inspect(inspect::InspectArgs),
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    Ps(ps::PsArgs),
    Ports(ports::PortsArgs),
    Publish(publish::PublishArgs),
    Serve(serve::ServeArgs),
    /// Configure CLI endpoint and API key
    Setup,
    Share(share::ShareArgs),
    #[command(visible_alias = "sh")]
    Shell(shell::ShellArgs),
    Snapshot(snapshot::SnapshotArgs),
    Start(start::StartArgs),
    Stop(stop::StopArgs),
    Unpublish(unpublish::UnpublishArgs),
    /// Manage the users of this host's daemon
    User(user::UserArgs),
    /// Print the version of the CLI and of the server
    Version,
}

/// Which commands stand under which heading of `bhatti --help`.
const SECTIONS: [(&str, &[&str]); 4] = [
    (
        "Core",
        &[
            "cp", "create", "destroy", "edit", "exec", "file", "forward", "list", "ports", "ps",
            "share", "shell", "start", "stop",
        ],
    ),
    ("Resources", &["publish", "snapshot", "unpublish"]),
    ("Setup & Admin", &["admin", "serve", "setup", "user"]),
    ("Additional Commands", &["completion", "help", "inspect", "version"]),
];

/// The whole tree of commands, with the root's help in sections.
pub fn command_tree() -> clap::Command {
    let tree = Cli::command();
    let mut help = String::from("{about}\n\n{usage-heading} {usage}\n");
    for (heading, commands) in SECTIONS {
        help.push_str(&format!("\n{heading}:\n"));
        for name in commands {
            let (shown, about) = match tree.find_subcommand(name) {
                None => ((*name).to_owned(), "Help about any command".to_owned()),
                Some(command) => {
                    let names = command
                        .get_visible_aliases()
                        .fold((*name).to_owned(), |names, alias| format!("{names}, {alias}"));
                    (names, command.get_about().map(ToString::to_string).unwrap_or_default())
                }
            };
            help.push_str(&format!("  {shown:<15} {about}\n"));
        }
    }
    help.push_str("\n{options}\n\nUse \"bhatti <command> --help\" for more about a command.\n");
    tree.help_template(help)
}

/// Reads a command line. The error is for [`crate::usage::explain`].
pub(crate) fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    use clap::FromArgMatches;
    let matches = command_tree().try_get_matches_from(argv)?;
    Cli::from_arg_matches(&matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_section() {
        let tree = command_tree();
        tree.clone().debug_assert();
        for command in tree.get_subcommands() {
            let name = command.get_name();
            let count =
                SECTIONS.iter().flat_map(|(_, names)| *names).filter(|n| **n == name).count();
            assert_eq!(count, 1, "{name}");
        }
    }
}
