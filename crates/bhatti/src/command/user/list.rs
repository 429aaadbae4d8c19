//! `bhatti user list`

use std::process::ExitCode;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, UserListRow};

pub(crate) fn run(context: &Context) -> Result<ExitCode, Failure> {
    let users = super::open_store(context)?.users()?;
    let rows: Vec<UserListRow> = users.iter().map(UserListRow::from).collect();
    // The existing tool's scripts expect `null` for nobody.
    let json = if rows.is_empty() { None } else { Some(&rows) };
    context.print(&json, &output::user_list(&users))?;
    Ok(ExitCode::SUCCESS)
}
