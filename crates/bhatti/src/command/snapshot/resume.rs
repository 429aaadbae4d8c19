//! `bhatti snapshot resume`

use std::process::ExitCode;

use bhatti_api::ResumeSnapshot;

use crate::command::policy::PolicyArgs;
use crate::command::{interrupt, spinner};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, ResumedSnapshot};

/// Resume a sandbox from a snapshot
///
/// A new sandbox that goes on from there, programs and all. It may reach what the sandbox could that
/// the snapshot was taken of, unless --egress says something else. What is printed is, if it does not go to
/// a terminal, its id, name and address with tabs between them.
#[derive(clap::Args, Debug)]
pub(crate) struct SnapshotResumeArgs {
    /// Name of the snapshot
    snapshot: String,
    /// Name of the new sandbox (default: generated)
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    policy: PolicyArgs,
}

pub(crate) fn run(context: &Context, args: &SnapshotResumeArgs) -> Result<ExitCode, Failure> {
    let snapshot = &args.snapshot;
    let name = args.name.clone().unwrap_or_default();
    let wanted = ResumeSnapshot { name, net_policy: args.policy.replacing()? };
    let client = context.client()?;
    let work = client.resume_snapshot(snapshot, &wanted);
    interrupt::new_sandbox_goes_on(context, &wanted.name)?;
    let what = format!("resuming from {snapshot}");
    let sandbox = context.call(spinner::while_waiting(context, &what, work))?;
    context.cache.add(&sandbox.name);
    // Scripts read the contract's line.
    let text = if context.stdout_is_terminal() {
        output::snapshot_resumed_for_people(&sandbox, snapshot)
    } else {
        output::snapshot_resumed(&sandbox)
    };
    context.print(&ResumedSnapshot::from(&sandbox), &text)?;
    Ok(ExitCode::SUCCESS)
}
