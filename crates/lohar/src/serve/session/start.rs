//! Starting a session's program.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bhatti_wire::message::{ErrorKind, Failure, SessionInfo, SessionKind, StartSession};
use tokio::sync::{mpsc, watch};

use super::super::configure::check_env;
use super::super::exec::spawn_failure;
use super::super::failure;
use super::channel::Channel;
use super::keeper::{Attach, Keeper, Seen, State};
use super::table::{command_text, unix_seconds};
use crate::guest::Guest;
use crate::process::{Program, SpawnError, Spawned, spawn};

/// Login shells, best first.
const SHELLS: [&str; 4] = ["/bin/bash", "bash", "/bin/sh", "sh"];

/// Where a terminal session begins, if it can.
const WORKSPACE: &str = "/workspace";

/// How many orders may wait for a keeper. It takes them at once.
const ORDERS: usize = 4;

/// A session whose program runs, and the ways to its keeper.
pub(super) struct Started {
    pub(super) keeper: Keeper,
    pub(super) orders: mpsc::Sender<Attach>,
    pub(super) seen: watch::Receiver<Seen>,
}

/// Starts what is asked for, as session `id`.
pub(super) fn start(
    guest: &Arc<Guest>,
    id: String,
    request: &StartSession,
) -> Result<Started, Failure> {
    check_env(request.env.iter()).map_err(|error| error.failure())?;
    let kind = match request.kind() {
        SessionKind::Detached => return Err(invalid("a session is never detached from the start")),
        kind => kind,
    };
    let (channel, spawned, argv) = spawn_first(guest, kind, request)?;
    let Spawned { pid, exit, .. } = spawned;
    let (orders, their_orders) = mpsc::channel(ORDERS);
    let (seen, our_seen) = watch::channel(Seen::default());
    let info = SessionInfo {
        id,
        kind: kind.into(),
        command: command_text(&argv),
        pid: pid.unsigned_abs(),
        exit: None,
        attached: false,
        created_at: unix_seconds(),
        output_file: String::new(),
    };
    let idle = Duration::from_secs(request.max_idle_seconds.into());
    let keeper = Keeper {
        reaper: Arc::clone(&guest.reaper),
        info,
        pid,
        channel,
        exit,
        orders: their_orders,
        seen,
        max_idle: (!idle.is_zero()).then_some(idle),
        log: (!request.log_file.is_empty()).then(|| PathBuf::from(&request.log_file)),
        state: State::default(),
    };
    Ok(Started { keeper, orders, seen: our_seen })
}

/// Starts the first of the wanted programs, in the first of the wanted directories, that can be.
fn spawn_first(
    guest: &Arc<Guest>,
    kind: SessionKind,
    request: &StartSession,
) -> Result<(Channel, Spawned, Vec<String>), Failure> {
    let programs = match request.argv.as_slice() {
        [] => SHELLS.iter().map(|shell| vec![(*shell).to_owned(), "-li".to_owned()]).collect(),
        argv => vec![argv.to_vec()],
    };
    let directories = match kind {
        SessionKind::Terminal => vec![WORKSPACE, &guest.account.home, "/"],
        SessionKind::Piped | SessionKind::Detached => vec!["/"],
    };
    let mut last = None;
    for argv in &programs {
        for directory in &directories {
            let (channel, theirs) = match kind {
                SessionKind::Terminal => Channel::terminal(guest.owner, request.size),
                SessionKind::Piped | SessionKind::Detached => Channel::pipes(),
            }
            .map_err(|error| failure(ErrorKind::Other, &NoChannel(error)))?;
            let program = Program {
                argv: argv.clone(),
                env: guest.environment(&request.env),
                cwd: PathBuf::from(directory),
                identity: guest.identity(),
            };
            match spawn(&guest.reaper, &program, theirs) {
                Ok(spawned) => return Ok((channel, spawned, argv.clone())),
                Err(error @ SpawnError::Directory { .. }) => last = Some(error),
                // No directory makes up for that.
                Err(error) => {
                    last = Some(error);
                    break;
                }
            }
        }
        if !matches!(last, Some(SpawnError::Find(_))) {
            break;
        }
    }
    Err(last.map_or_else(|| invalid("there is nothing to start"), |error| spawn_failure(&error)))
}

/// There is no terminal, or no pipe, for the program.
#[derive(Debug, thiserror::Error)]
#[error("failed to make a terminal or pipes for a session")]
struct NoChannel(#[source] std::io::Error);

pub(super) fn invalid(message: &str) -> Failure {
    Failure { kind: ErrorKind::Invalid.into(), message: message.to_owned() }
}
