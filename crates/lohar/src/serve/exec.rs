//! Runs one command for the host.
//!
//! ```text
//!  host ─ ExecInput ─▶ feed ─▶ stdin ┐            ┌ stdout ─▶ pump ┐
//!                                    ├─ command ──┤                ├─▶ ExecOutput ─▶ host
//!                                    ┘            └ stderr ─▶ pump ┘
//! ```
//!
//! Promises:
//! - The command ends for us when its leader is collected and every holder of its pipes has
//!   closed them. After a timeout or a kill the second is not waited for: what is in the pipes
//!   is sent, and that is the end.
//! - A slow host slows the command: nothing is queued here beyond one chunk a pipe.
//! - A lost host changes nothing for the command but its stdin, which ends. Its output is read
//!   and thrown away, so that it neither blocks nor gets SIGPIPE.
//! - A host that gives the stream up while the link lives wants the command killed.

mod detach;
mod feed;
mod kill;
mod pump;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bhatti_wire::message::{
    ErrorKind, Exec, ExecOutputEvent as Event, ExitStatus, Failure, Started,
};
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::configure::check_env;
use crate::guest::Guest;
use crate::process::{
    Exit, FindError, Leader, Program, SpawnError, Spawned, Stdin, Streams, spawn,
};
pub use kill::Killable;
use pump::{Output, Source, pump};

/// What is reported for a command that ran out of time: 128 + SIGKILL.
const TIMED_OUT_CODE: i32 = 137;

/// Serves one exec stream.
pub async fn exec<S>(guest: &Arc<Guest>, stream: S, request: Exec)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (input, output) = split(stream);
    let kill = Arc::new(Notify::new());
    let output = Output::new(output, &kill);
    // Before it runs: a command that cannot be killed must not start.
    let registered = guest.killable.register(request.id, &kill);
    let started = match &registered {
        Ok(_) => {
            let _nothing_is_held = guest.hold.wait_until_let_go().await;
            start(guest, &request)
        }
        Err(failure) => Err(failure.clone()),
    };
    let last = match started {
        Err(failure) => Event::Failed(failure),
        Ok(Command::Detached(started)) => Event::Started(started),
        Ok(Command::Attached(mut command)) => {
            let pid = command.spawned.pid.unsigned_abs();
            output.send(Event::Started(Started { pid, output_file: String::new() })).await;
            let stdin = command.spawned.stdin.take();
            let status = tokio::select! {
                status = supervise(guest, command, &request, &output, &kill) => status,
                never = feed::feed(input, stdin, &kill) => match never {},
            };
            Event::Exit(status)
        }
    };
    drop(registered);
    output.finish(last).await;
}

enum Command {
    Attached(Attached),
    Detached(Started),
}

struct Attached {
    spawned: Spawned,
    /// Held while the command runs.
    _permit: tokio::sync::OwnedSemaphorePermit,
}

fn start(guest: &Arc<Guest>, request: &Exec) -> Result<Command, Failure> {
    let permit = Arc::clone(&guest.commands).try_acquire_owned().map_err(|_| Failure {
        kind: ErrorKind::Other.into(),
        message: "too many running commands".to_owned(),
    })?;
    check_env(request.env.iter()).map_err(|error| error.failure())?;
    let cwd = PathBuf::from(if request.cwd.is_empty() { "/" } else { &request.cwd });
    if !cwd.is_absolute() {
        let message = format!("working directory {:?} is not absolute", request.cwd);
        return Err(Failure { kind: ErrorKind::Invalid.into(), message });
    }
    let program = Program {
        argv: request.argv.clone(),
        env: guest.environment(&request.env),
        cwd,
        identity: guest.identity(),
    };
    if request.detach {
        return detach::detach(guest, &program, &request.output_file, permit)
            .map(Command::Detached);
    }
    let stdin = if request.stdin { Stdin::Piped } else { Stdin::Null };
    let spawned = spawn(&guest.reaper, &program, Streams::Piped(stdin))
        .map_err(|error| spawn_failure(&error))?;
    Ok(Command::Attached(Attached { spawned, _permit: permit }))
}

pub(super) fn spawn_failure(error: &SpawnError) -> Failure {
    let kind = match error {
        SpawnError::EmptyArgv | SpawnError::Directory { .. } => ErrorKind::Invalid,
        SpawnError::Find(FindError::NotInPath { .. } | FindError::Missing { .. }) => {
            ErrorKind::NotFound
        }
        SpawnError::Find(FindError::NotExecutable { .. }) | SpawnError::NotExecutable { .. } => {
            ErrorKind::NotExecutable
        }
        SpawnError::Start { source, .. } => match source.kind() {
            // A NUL in an argument; more arguments than the kernel takes.
            std::io::ErrorKind::InvalidInput | std::io::ErrorKind::ArgumentListTooLong => {
                ErrorKind::Invalid
            }
            _ => ErrorKind::Other,
        },
    };
    super::failure(kind, error)
}

/// Moves the output and waits for the end, enforcing the timeout and the host's kill.
async fn supervise<W: AsyncWrite + Unpin>(
    guest: &Guest,
    command: Attached,
    request: &Exec,
    output: &Output<'_, W>,
    kill: &Notify,
) -> ExitStatus {
    let Spawned { pid, mut exit, output: pipes, .. } = command.spawned;
    let (stop, stopped) = watch::channel(false);
    let pumps = async {
        if let Some((stdout, stderr)) = pipes {
            tokio::join!(
                pump(stdout, Source::Stdout, output, stopped.clone()),
                pump(stderr, Source::Stderr, output, stopped.clone()),
            );
        }
    };
    let deadline = limit(request.timeout_ms);
    tokio::pin!(pumps, deadline);

    let (mut leader, mut pumped, mut timed_out, mut killed) = (None, false, false, false);
    while leader.is_none() || !pumped {
        tokio::select! {
            // The reaper outlives every command; a lost claim is still an end.
            end = &mut exit, if leader.is_none() => leader = Some(end.unwrap_or(Exit::Code(1))),
            () = &mut pumps, if !pumped => pumped = true,
            () = &mut deadline, if !timed_out && !killed => {
                timed_out = true;
                guest.reaper.kill_group(pid, leader_state(leader));
            }
            () = kill.notified() => {
                killed = true;
                guest.reaper.kill_group(pid, leader_state(leader));
            }
        }
        if (timed_out || killed) && leader.is_some() {
            // Somebody who left the group may hold the pipes for ever.
            stop.send_replace(true);
        }
    }
    let code = if timed_out { TIMED_OUT_CODE } else { leader.map_or(1, Exit::shell_code) };
    ExitStatus { code, timed_out }
}

fn leader_state(end: Option<Exit>) -> Leader {
    if end.is_some() { Leader::Collected } else { Leader::Running }
}

/// Resolves after `timeout_ms`; never for 0.
fn limit(timeout_ms: u64) -> impl Future<Output = ()> {
    // tokio clamps what its timer cannot hold, which is centuries.
    let timer = (timeout_ms > 0).then(|| sleep(Duration::from_millis(timeout_ms)));
    async {
        match timer {
            Some(timer) => timer.await,
            None => std::future::pending().await,
        }
    }
}
