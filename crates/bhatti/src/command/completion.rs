//! `bhatti completion`
//!
//! The scripts are generated from the tree of commands. Where a sandbox is wanted they ask
//! `bhatti __complete-names`, which reads the local cache and never the network.

use std::process::ExitCode;

use clap_complete::{Shell, generate};

use crate::args::command_tree;
use crate::context::Context;
use crate::failure::Failure;

/// Generate shell completion script
#[derive(clap::Args, Debug)]
pub(crate) struct CompletionArgs {
    /// Which shell
    #[arg(value_name = "bash|zsh|fish|powershell", value_parser = parse_shell, hide_possible_values = true)]
    shell: Shell,
}

fn parse_shell(name: &str) -> Result<Shell, String> {
    match name {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        "powershell" => Ok(Shell::PowerShell),
        _ => Err("must be bash, zsh, fish or powershell".to_owned()),
    }
}

pub(crate) fn run(context: &Context, args: &CompletionArgs) -> Result<ExitCode, Failure> {
    context.write(script(args.shell).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    generate(shell, &mut command_tree(), "bhatti", &mut bytes);
    let mut script = String::from_utf8(bytes).expect("the tree is UTF-8, so is its script");
    match shell {
        Shell::Bash => script.push_str(BASH),
        Shell::Fish => script.push_str(FISH),
        Shell::Zsh => {
            // The generated file calls its function at the end, or registers it when sourced.
            let names = ":sandbox -- Name or id of the sandbox:_default'";
            script = script.replace(names, &names.replace("_default", "_bhatti_sandboxes"));
            script = script.replacen("_bhatti() {", &format!("{ZSH}\n_bhatti() {{"), 1);
        }
        _ => {}
    }
    script
}

/// In front of the generated function: if a sandbox is wanted, offer names and nothing else.
const BASH: &str = r#"
_bhatti_or_names() {
    local names
    COMPREPLY=()
    if names=$("${COMP_WORDS[0]}" __complete-names -- "${COMP_WORDS[@]:0:COMP_CWORD}" 2>/dev/null) &&
        [[ "${COMP_WORDS[COMP_CWORD]}" != -* ]]; then
        local IFS=$'\n'
        COMPREPLY=($(compgen -W "$names" -- "${COMP_WORDS[COMP_CWORD]}"))
        # No names is an answer too: file names would be wrong here.
        compopt +o default +o bashdefault 2>/dev/null
        return 0
    fi
    _bhatti "$@"
}
complete -F _bhatti_or_names -o nosort -o bashdefault -o default bhatti 2>/dev/null ||
    complete -F _bhatti_or_names -o bashdefault -o default bhatti
"#;

const ZSH: &str = r#"
_bhatti_sandboxes() {
    local -a names
    names=(${(f)"$(bhatti __complete-names -- bhatti inspect 2>/dev/null)"})
    compadd -a names
}
"#;

const FISH: &str = r"
complete -c bhatti -f -n 'bhatti __complete-names -- (commandline -opc) >/dev/null 2>&1' -a '(bhatti __complete-names -- (commandline -opc) 2>/dev/null)'
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_can_ask_for_names() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            assert!(script.contains("__complete-names -- "), "{shell}");
        }
        // Each of their positions has its function, once for every name of the command.
        let wanted = positions(&command_tree());
        assert_eq!(script(Shell::Zsh).matches("sandbox:_bhatti_sandboxes'").count(), wanted);
        assert!(wanted > 10, "{wanted}");
    }

    /// How many positions below `command` are a sandbox.
    fn positions(command: &clap::Command) -> usize {
        let below = |below: &clap::Command| {
            let own = below.get_positionals().filter(|arg| arg.get_id() == "sandbox").count();
            own * (1 + below.get_visible_aliases().count()) + positions(below)
        };
        command.get_subcommands().map(below).sum()
    }
}
