//! `bhatti list`

use std::process::ExitCode;

use super::pairs;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, ListRow};

/// List sandboxes
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    /// "wide" adds CPUs, memory, disk, image, labels and URLs
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
    /// Only those with this label, as key=value (repeatable)
    #[arg(long, value_name = "K=V")]
    label: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &ListArgs) -> Result<ExitCode, Failure> {
    let labels = pairs::labels(&args.label)?;
    let sandboxes = context.call(context.client()?.list(&labels))?;
    let names = sandboxes.iter().map(|sandbox| sandbox.name.clone());
    if labels.is_empty() {
        context.cache.replace(names);
    } else {
        // A part of them must not make completion forget the rest.
        names.for_each(|name| context.cache.add(&name));
    }
    let text = match args.output.as_deref() {
        Some("wide") => output::list_wide(&sandboxes),
        other => {
            // The contract has it that any other word changes nothing.
            if let Some(other) = other.filter(|_| !context.globals.json) {
                context.say(&format!(
                    "Warning: -o {other:?} is ignored: it takes wide; for JSON use --json\n"
                ));
            }
            output::list(&sandboxes, context.stdout_is_terminal())
        }
    };
    let rows: Vec<ListRow> = sandboxes.iter().map(ListRow::from).collect();
    context.print(&rows, &text)?;
    Ok(ExitCode::SUCCESS)
}
