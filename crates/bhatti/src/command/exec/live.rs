//! A command whose stdin, output and end come and go as they happen.
//!
//! Ctrl-C ends this process, which ends the connection, which makes the daemon end the command.

use std::future::pending;
use std::process::ExitCode;

use bhatti_api::ExecStreamRequest;
use bhatti_client::{Client, ExecControl, ExecOutput, ExecSocket, ExecStdin};
use tokio::sync::watch;

use super::printer::{Printer, Sink};
use super::{Ended, stdin};
use crate::context::Context;
use crate::failure::Failure;

/// Runs it. `None`: the server does not know this way; nothing has been run.
pub(super) fn run(
    context: &Context,
    client: &Client,
    sandbox: &str,
    request: &ExecStreamRequest,
) -> Result<Option<ExitCode>, Failure> {
    let ended = context.wait(async {
        let socket = match client.exec_socket(sandbox, request).await {
            Ok(Some(socket)) => socket,
            Ok(None) => return Ok(None),
            Err(error) => return Err(Failure::about(sandbox, error)),
        };
        context.pass_on_warning();
        converse(socket).await.map(Some)
    })??;
    ended.map(|ended| ended.report(context, request.timeout_sec)).transpose()
}

/// Until the command has ended and everything it printed is written.
async fn converse(mut socket: ExecSocket<'_>) -> Result<Ended, Failure> {
    let (printer, mut progress) = Printer::start()?;
    let (starts, started) = watch::channel(false);
    let (stdin, control) = (socket.take_stdin(), socket.control());
    let ended = tokio::select! {
        ended = receive(&mut socket, &printer, &starts) => ended,
        failure = forward(stdin, started) => return Err(failure),
        never = acknowledge(&control, progress.written.clone()) => match never {},
        // Nobody can see the output any more. Hanging up ends the command.
        ended = &mut progress.ended => {
            let gone = Failure::text("the output thread has ended");
            return Err(ended.ok().and_then(Result::err).unwrap_or(gone));
        }
    };
    printer.close();
    progress.ended.await.unwrap_or(Ok(()))?;
    Ok(ended)
}

async fn receive(
    socket: &mut ExecSocket<'_>,
    printer: &Printer,
    starts: &watch::Sender<bool>,
) -> Ended {
    loop {
        match socket.next().await {
            Ok(Some(ExecOutput::Started { .. })) => {
                starts.send_replace(true);
            }
            Ok(Some(ExecOutput::Stdout(bytes))) => printer.print(Sink::Stdout, &bytes),
            Ok(Some(ExecOutput::Stderr(bytes))) => printer.print(Sink::Stderr, &bytes),
            Ok(Some(ExecOutput::Exit(code))) => {
                return if socket.timed_out() { Ended::TimedOut(code) } else { Ended::Exit(code) };
            }
            Ok(Some(ExecOutput::Error(text))) => return Ended::Refused(text),
            Ok(None) => unreachable!("a stream gives its end before it has none"),
            Err(error) => return Ended::Broken(error),
        }
    }
}

/// Passes our stdin on. Returns only if it cannot be read.
async fn forward(stdin: Option<ExecStdin>, started: watch::Receiver<bool>) -> Failure {
    match pass_on(stdin, started).await {
        Ok(()) => pending().await,
        Err(failure) => failure,
    }
}

async fn pass_on(
    stdin: Option<ExecStdin>,
    mut started: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    // What nobody can read stays where it is.
    if started.wait_for(|started| *started).await.is_err() {
        return Ok(());
    }
    let mut pieces = stdin::read()?;
    while let Some(piece) = pieces.recv().await {
        let piece = piece.map_err(|error| Failure::caused("read stdin", &error))?;
        // A connection that broke shows where output is received.
        if stdin.write(piece).await.is_err() {
            return Ok(());
        }
    }
    stdin.finish().await.unwrap_or_default();
    Ok(())
}

/// Tells the server what was written.
async fn acknowledge(
    control: &ExecControl,
    mut written: watch::Receiver<u64>,
) -> std::convert::Infallible {
    let mut before = 0;
    while written.changed().await.is_ok() {
        let now = *written.borrow_and_update();
        // A connection that broke shows where output is received.
        control.taken(now - before).await.unwrap_or_default();
        before = now;
    }
    pending().await
}
