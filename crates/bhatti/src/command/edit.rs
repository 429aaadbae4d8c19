//! `bhatti edit`

use std::process::ExitCode;

use bhatti_api::PatchSandbox;

use super::policy::PolicyArgs;
use super::{pairs, spinner};
use crate::context::Context;
use crate::failure::Failure;
use crate::output;

/// Update sandbox settings
///
/// What it may reach is replaced as a whole, so --allow-host and --allow-cidr go with --egress. It
/// holds at once: what is denied from now on is cut.
#[derive(clap::Args, Debug)]
pub(crate) struct EditArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Never pause it, even when idle; wakes it now
    #[arg(long)]
    keep_hot: bool,
    /// Let it pause when idle
    #[arg(long)]
    allow_cold: bool,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// Add or change a label, as key=value (repeatable)
    #[arg(long, value_name = "K=V")]
    label: Vec<String>,
    /// Remove a label (repeatable)
    #[arg(long, value_name = "KEY")]
    label_delete: Vec<String>,
    #[command(flatten)]
    policy: PolicyArgs,
}

pub(crate) fn run(context: &Context, args: &EditArgs) -> Result<ExitCode, Failure> {
    let change = request(args)?;
    let sandbox = &args.sandbox;
    // What is to stay hot is woken now.
    let work = context.client()?.patch(sandbox, &change);
    let what = format!("updating {sandbox}");
    let updated = context.call_about(sandbox, spinner::while_waiting(context, &what, work))?;
    if change.name.is_some() {
        context.cache.remove(sandbox);
        context.cache.add(&updated.name);
    }
    context.print(&updated, &output::edited(sandbox, &change))?;
    Ok(ExitCode::SUCCESS)
}

fn request(args: &EditArgs) -> Result<PatchSandbox, Failure> {
    let keep_hot = match (args.keep_hot, args.allow_cold) {
        (true, true) => {
            return Err(Failure::text("cannot use --keep-hot and --allow-cold together"));
        }
        (true, false) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    let change = PatchSandbox {
        keep_hot,
        name: args.name.clone().filter(|name| !name.is_empty()),
        labels_add: pairs::labels(&args.label)?,
        labels_remove: pairs::split(&args.label_delete),
        net_policy: args.policy.replacing()?,
    };
    if change == PatchSandbox::default() {
        return Err(Failure::text(
            "nothing to update — use --name, --keep-hot, --allow-cold, --label, --label-delete, or \
             --egress with --allow-host and --allow-cidr",
        ));
    }
    Ok(change)
}
