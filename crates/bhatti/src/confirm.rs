//! Asking before something is gone for good.

use std::io::{BufRead, IsTerminal, Read};

use crate::context::Context;
use crate::failure::Failure;

/// Whether the command line already said yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Consent {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// Asks `question`. Comes back only with a yes; a no ends the command quietly.
pub(crate) fn confirm(context: &Context, consent: Consent, question: &str) -> Result<(), Failure> {
    if consent.yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        context.say("Use --yes to confirm in non-interactive mode\n");
        return Err(Failure::Silent(1));
    }
    context.say(&format!("{question} [y/N]: "));
    let mut answer = String::new();
    stdin.lock().take(1024).read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" => Ok(()),
        _ => Err(Failure::Silent(0)),
    }
}
