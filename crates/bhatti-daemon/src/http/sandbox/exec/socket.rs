//! `GET /sandboxes/:sandbox/exec/stream`: a command with stdin and any bytes, over a WebSocket.
//!
//! ```text
//!            ┌─ listen ─▶ queue ─▶ feed ─▶ stdin ┐
//!  client ───┤     │        (a window at most)   ├── command
//!            └─ emit ◀── output, by windows ─────┘
//! ```
//!
//! Promises:
//! - The client is always heard, so a kill and a hang-up take effect at once however much stdin
//!   is under way; only a client that does not keep to the window it was told waits.
//! - A client that is gone has its command killed, with all it started.
//! - The last message is exactly one `exit` or `error`, and a clean close comes after it.
//! - Nothing is read from the guest while the client's window is full, nor from a client that
//!   sends more than its own: what is held here is one window of stdin and one chunk of output.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::ws::Message;
use axum::extract::{Request, State};
use axum::response::Response;
use bhatti_api::{
    EXEC_PROTOCOL, ExecChannel, ExecCommand, ExecNotice, ExecStreamRequest, from_json,
};
use bhatti_guest_client::{ExecEvent, ExecSpec, GuestError, Killer, Running, Stdin, StdinWriter};
use bhatti_lifecycle::Lease;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, SimplexStream, WriteHalf, simplex};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{not_run, spec, warned};
use crate::http::body::Named;
use crate::http::gate::Caller;
use crate::http::socket::{Gone, Incoming, Kind, NORMAL, Receiver, Sender, Socket};
use crate::http::{Api, ApiError};

const KIND: Kind =
    Kind { protocol: Some(EXEC_PROTOCOL), max_message: ExecStreamRequest::MAX_REQUEST };

/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);

/// How many bytes of stdin may be under way to the guest: 10 MiB/s over a way of 50 ms.
const STDIN_WINDOW: u32 = 512 * 1024;

/// After how many bytes the client is told that they were taken. Small enough that a client with
/// a full window goes on long before the guest has run dry.
const ACK_STEP: u64 = 64 * 1024;

/// Runs a command for as long as the socket lives.
pub(in crate::http) async fn exec_stream(
    State(api): State<Arc<Api>>,
    Extension(Caller(caller)): Extension<Caller>,
    Named(sandbox): Named,
    request: Request,
) -> Result<Response, ApiError> {
    let row = api.sandboxes.get(&caller, &sandbox).await?;
    // Before the sandbox is woken: a GET that is no upgrade changes nothing.
    let upgrade = api.sockets.prepare(request, KIND, Some(&caller.id)).await?;
    let lease = api.sandboxes.lease_of(&row).await?;
    let loss = api.sandboxes.loss_since(&row);
    Ok(warned(upgrade.run(|socket| serve(socket, lease)), loss))
}

async fn serve(socket: Socket, lease: Lease) {
    let Socket { sender, mut receiver, pulse, .. } = socket;
    let ended = tokio::select! {
        gone = pulse.lost() => Err(gone),
        ended = run(&sender, &mut receiver, &lease) => ended,
    };
    // The command has ended, or was killed when `run` was dropped.
    drop(lease);
    let last = async {
        sender.send(text(&ended?)).await?;
        sender.close(receiver, NORMAL, "").await;
        Ok::<(), Gone>(())
    };
    if let Err(gone) = last.await {
        tracing::debug!(why = bhatti_lifecycle::chain(&gone), "an exec stream lost its client");
    }
}

/// Everything but the last message, which it returns.
async fn run(sender: &Sender, receiver: &mut Receiver, lease: &Lease) -> Result<ExecNotice, Gone> {
    let request = match timeout(REQUEST, receiver.next()).await {
        Ok(message) => message?.ok_or(Gone::Closed)?,
        Err(_) => return Ok(error("the request did not come in time")),
    };
    let (spec, output_window) = match understand(request) {
        Ok(understood) => understood,
        Err(refused) => return Ok(error(refused)),
    };
    let started = tokio::select! {
        started = lease.guest().exec(spec) => started,
        gone = receiver.gone() => return Err(gone),
    };
    let mut running = match started {
        Ok(running) => running,
        Err(failure) => return not_started(sender, failure).await,
    };
    let started = ExecNotice::Started { pid: running.pid(), window: STDIN_WINDOW };
    sender.send(text(&started)).await?;
    let window = Window::new(output_window);
    let killer = running.killer();
    let stdin = running.take_stdin();
    let (queued, queue) = simplex(STDIN_WINDOW as usize);
    let queue = stdin.is_some().then_some(queue);
    tokio::select! {
        last = emit(sender, running, &window) => last,
        last = listen(receiver, queue, &killer, &window) => last,
        gone = feed(sender, queued, stdin) => Err(gone),
    }
}

/// The first message as a command, and the client's window.
fn understand(message: Incoming) -> Result<(ExecSpec, u32), ApiError> {
    let bytes = match message {
        Incoming::Text(text) => Bytes::from(text),
        Incoming::Binary(bytes) => bytes,
    };
    let request: ExecStreamRequest = from_json(&bytes).map_err(|error| ApiError::Json(error.0))?;
    let spec = ExecSpec {
        env: request.env.into_iter().collect(),
        cwd: request.cwd,
        stdin: if request.stdin { Stdin::Pipe } else { Stdin::Null },
        ..spec(request.cmd, request.timeout_sec)?
    };
    Ok((spec, request.window))
}

/// A command that could not run is an outcome, as in a shell.
async fn not_started(sender: &Sender, failure: GuestError) -> Result<ExecNotice, Gone> {
    match not_run(failure) {
        Ok(result) => {
            sender.send(binary(ExecChannel::Stderr, result.stderr.as_bytes())).await?;
            Ok(ExecNotice::Exit { exit_code: result.exit_code, timed_out: false })
        }
        Err(refused) => Ok(error(refused)),
    }
}

/// Passes output on until the command ends. Dropping this kills it.
async fn emit(sender: &Sender, mut running: Running, window: &Window) -> Result<ExecNotice, Gone> {
    loop {
        let (channel, bytes) = match running.next().await {
            Ok(Some(ExecEvent::Stdout(bytes))) => (ExecChannel::Stdout, bytes),
            Ok(Some(ExecEvent::Stderr(bytes))) => (ExecChannel::Stderr, bytes),
            Ok(Some(ExecEvent::Exit { code, timed_out })) => {
                return Ok(ExecNotice::Exit { exit_code: code, timed_out });
            }
            Ok(None) => return Ok(error(GuestError::LinkLost(None))),
            Err(failure) => return Ok(error(failure)),
        };
        window.take(bytes.len() as u64).await;
        sender.send(binary(channel, &bytes)).await?;
    }
}

/// Hears the client until it goes, or says what makes no sense.
async fn listen(
    receiver: &mut Receiver,
    mut queue: Option<WriteHalf<SimplexStream>>,
    killer: &Killer,
    window: &Window,
) -> Result<ExecNotice, Gone> {
    loop {
        match receiver.next().await?.ok_or(Gone::Closed)? {
            Incoming::Binary(bytes) => {
                let Some((channel, bytes)) = bytes.split_first() else { continue };
                if ExecChannel::of(*channel) != Some(ExecChannel::Stdin) {
                    return Ok(error(format!("channel {channel} is not for a client to write")));
                }
                let Some(queue) = &mut queue else {
                    return Ok(error("stdin was not asked for, or has ended"));
                };
                // Fails when nobody takes anything any more: the exit is about to come.
                queue.write_all(bytes).await.unwrap_or_default();
            }
            Incoming::Text(text) => match serde_json::from_str(&text) {
                Ok(ExecCommand::Eof) => {
                    if let Some(mut queue) = queue.take() {
                        queue.shutdown().await.unwrap_or_default();
                    }
                }
                Ok(ExecCommand::Kill) => killer.kill().await,
                Ok(ExecCommand::Ack { bytes }) => window.give(bytes),
                Err(cause) => return Ok(error(format!("a message that is no command: {cause}"))),
            },
        }
    }
}

/// Moves stdin from the queue to the guest, and tells the client. Returns only if that cannot be
/// told.
async fn feed(
    sender: &Sender,
    mut queued: ReadHalf<SimplexStream>,
    mut stdin: Option<StdinWriter>,
) -> Gone {
    let mut taken = 0;
    loop {
        let mut bytes = BytesMut::with_capacity(ExecStreamRequest::MAX_CHUNK);
        let Ok(count @ 1..) = queued.read_buf(&mut bytes).await else { break };
        if let Some(writer) = &mut stdin
            && writer.write(bytes.freeze()).await.is_err()
        {
            // Killed. What still comes is thrown away, so that the client does not stand still.
            stdin = None;
        }
        taken += count as u64;
        if taken >= ACK_STEP {
            if let Err(gone) = sender.send(text(&ExecNotice::Ack { bytes: taken })).await {
                return gone;
            }
            taken = 0;
        }
    }
    if let Some(writer) = stdin {
        // A failure means that the command is over, which its exit says.
        writer.finish().await.unwrap_or_default();
    }
    pending().await
}

/// How much output may be under way.
struct Window {
    /// 0: no matter.
    size: u64,
    unacked: watch::Sender<u64>,
}

impl Window {
    fn new(size: u32) -> Self {
        Self { size: size.into(), unacked: watch::Sender::new(0) }
    }

    /// Waits until there is room for `bytes`. What is larger than the window has room when nothing
    /// else is under way.
    async fn take(&self, bytes: u64) {
        if self.size == 0 {
            return;
        }
        let fits = |unacked: &u64| *unacked == 0 || unacked.saturating_add(bytes) <= self.size;
        // An error would mean that the sender is gone, which is here.
        drop(self.unacked.subscribe().wait_for(fits).await);
        self.unacked.send_modify(|unacked| *unacked += bytes);
    }

    fn give(&self, bytes: u64) {
        // A client that says it has taken more than it got fools itself.
        self.unacked.send_modify(|unacked| *unacked = unacked.saturating_sub(bytes));
    }
}

fn error(message: impl ToString) -> ExecNotice {
    ExecNotice::Error { message: message.to_string() }
}

fn text(notice: &ExecNotice) -> Message {
    Message::text(serde_json::to_string(notice).expect("our messages always serialise"))
}

fn binary(channel: ExecChannel, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(1 + bytes.len());
    message.push(channel as u8);
    message.extend_from_slice(bytes);
    Message::binary(message)
}
