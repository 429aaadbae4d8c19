//! `bhatti user create`

use std::process::ExitCode;

use bhatti_store::NewUser;
use bhatti_types::Mib;

use crate::command::size::megabytes;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, CreatedUser};

/// Create a new user
///
/// Prints the API key, which is stored nowhere and cannot be shown again.
#[derive(clap::Args, Debug)]
#[command(override_usage = "bhatti user create --name <NAME> [flags]")]
pub(crate) struct UserCreateArgs {
    /// User name, unique (required)
    #[arg(long)]
    name: Option<String>,
    /// Most sandboxes at a time
    #[arg(long, value_name = "N", default_value_t = 5)]
    max_sandboxes: u32,
    /// Most CPUs of one sandbox
    #[arg(long, value_name = "N", default_value_t = 4)]
    max_cpus: u32,
    /// Most memory of one sandbox, in MB or as 8GB
    #[arg(long, value_name = "SIZE", default_value = "4096", value_parser = megabytes)]
    max_memory: i64,
}

pub(crate) fn run(context: &Context, args: UserCreateArgs) -> Result<ExitCode, Failure> {
    let name = args.name.filter(|name| !name.is_empty());
    let new = NewUser {
        name: name.ok_or_else(|| Failure::text("--name is required"))?,
        max_sandboxes: args.max_sandboxes,
        max_cpus: args.max_cpus,
        max_memory: Mib(u32::try_from(args.max_memory).unwrap_or(u32::MAX)),
    };
    let (user, key) = super::open_store(context)?.create_user(&new)?;
    let created = CreatedUser {
        id: user.id.to_string(),
        name: user.name,
        subnet_index: user.subnet_index,
        api_key: key.reveal().to_owned(),
    };
    context.print(&created, &output::user_created(&created, context.url()?))?;
    Ok(ExitCode::SUCCESS)
}
