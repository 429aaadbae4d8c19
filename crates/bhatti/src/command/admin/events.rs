//! `bhatti admin events`

use std::process::ExitCode;

use bhatti_store::EventFilter;
use jiff::{Timestamp, tz::TimeZone};

use super::since::since;
use crate::command::store;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{self, EventListRow};

/// Show what happened on this host, the newest first
///
/// Reads the daemon's database, so it works on the daemon's host only, whether or not the daemon
/// runs. Events are kept for 90 days.
#[derive(clap::Args, Debug)]
pub(crate) struct EventsArgs {
    /// Only of this kind ("sandbox.created") or group of kinds ("sandbox")
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only of this user (name or id)
    #[arg(long)]
    user: Option<String>,
    /// Only of this sandbox (id or name, also if it is gone)
    #[arg(long)]
    sandbox: Option<String>,
    /// Only since then ("90s", "15m", "24h", "7d", "2026-01-31", "2026-01-31T12:00:00")
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, allow_negative_numbers = true)]
    limit: i64,
    /// Print only how many there are, whatever the limit
    #[arg(long)]
    count: bool,
}

const DEFAULT_LIMIT: i64 = 50;

pub(crate) fn run(context: &Context, args: EventsArgs) -> Result<ExitCode, Failure> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let zone = TimeZone::system();
    let since = given(args.since).map(|text| since(&text, Timestamp::now(), &zone)).transpose()?;
    let filter = EventFilter {
        kind: given(args.kind),
        user: given(args.user),
        sandbox: given(args.sandbox),
        since,
    };
    let store = store::open_existing(context)?;
    if args.count {
        let count = store.count_events(&filter)?;
        context.write(format!("{count}\n").as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let limit = if args.limit <= 0 { DEFAULT_LIMIT } else { args.limit };
    let events = store.events(&filter, u32::try_from(limit).unwrap_or(u32::MAX))?;
    let rows: Vec<EventListRow> = events.iter().map(EventListRow::from).collect();
    // The existing tool's scripts expect `null` for none.
    let json = if rows.is_empty() { None } else { Some(&rows) };
    context.print(&json, &output::events(&events, &zone))?;
    Ok(ExitCode::SUCCESS)
}
