//! `GET /sandboxes/:s/exec/stream`: a command with stdin, and output of any bytes.
//!
//! Promises:
//! - It ends with exactly one [`ExecOutput::Exit`] or [`ExecOutput::Error`], or with an error
//!   (`a_broken_exec_stream_is_an_error`).
//! - No more stdin is under way than the server said it wants, and no more output is believed
//!   than [`WINDOW`] bytes ahead of what [`ExecControl::taken`] was told.
//! - Dropping it ends the connection, and with that the server ends the command.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bhatti_api::{EXEC_PROTOCOL, ExecChannel, ExecCommand, ExecNotice, ExecStreamRequest, route};
use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;
use tokio::sync::watch;

use crate::socket::{Incoming, Socket, SocketReceiver, SocketSender};
use crate::timing::Stopwatch;
use crate::{Client, ClientError};

/// How long the server may take to wake the sandbox, which may have to boot.
const OPEN: Duration = Duration::from_secs(600);

/// How many bytes of output may wait for whoever reads them: 10 MiB/s over a way of 100 ms.
const WINDOW: u32 = 1 << 20;

/// After how many bytes the server is told that they were taken.
const ACK_STEP: u64 = WINDOW as u64 / 8;

/// What comes from a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// It runs; stdin is taken from now on. At most once, and first.
    Started {
        /// In the guest's process table.
        pid: u32,
    },
    Stdout(Bytes),
    Stderr(Bytes),
    /// It ended, and all its output has been seen. Nothing follows.
    Exit(i32),
    /// The server has no exit to tell, and says why. Nothing follows.
    Error(String),
}

impl Client {
    /// Runs a command. `None`: the server, or something on the way to it, does not know this way
    /// to do it; nothing has been run.
    pub async fn exec_socket(
        &self,
        sandbox: &str,
        request: &ExecStreamRequest,
    ) -> Result<Option<ExecSocket<'_>>, ClientError> {
        let path = route::exec_stream(sandbox);
        let socket = match self.socket(&path, Some(EXEC_PROTOCOL), OPEN).await {
            Ok(socket) => socket,
            Err(error) if is_not_spoken(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Socket { sender, receiver, stopwatch } = socket;
        sender.text(json(&ExecStreamRequest { window: WINDOW, ..request.clone() })?).await?;
        let credit = Arc::new(watch::Sender::new(0));
        let taken = Arc::<Taken>::default();
        Ok(Some(ExecSocket {
            client: self,
            receiver,
            sender,
            wants_stdin: request.stdin,
            credit,
            received: 0,
            taken,
            timed_out: false,
            stopwatch: Some(stopwatch),
        }))
    }
}

/// A server from before there was this answers that there is nothing at the path, one behind a
/// proxy that keeps upgrades to itself that this is none.
fn is_not_spoken(error: &ClientError) -> bool {
    let ClientError::Api { status, message, .. } = error else { return false };
    match *status {
        StatusCode::NOT_FOUND => message == "not found",
        StatusCode::BAD_REQUEST => message.is_empty(),
        StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::NOT_IMPLEMENTED
        | StatusCode::UPGRADE_REQUIRED => true,
        status => status.is_success(),
    }
}

/// A command under way.
pub struct ExecSocket<'a> {
    client: &'a Client,
    receiver: SocketReceiver,
    sender: SocketSender,
    wants_stdin: bool,
    /// How much stdin the server takes now.
    credit: Arc<watch::Sender<u64>>,
    /// Bytes of output so far.
    received: u64,
    taken: Arc<Taken>,
    timed_out: bool,
    /// Taken at the end; `None` says that it is over.
    stopwatch: Option<Stopwatch>,
}

impl ExecSocket<'_> {
    /// The command's stdin, once, if the request asked for it.
    pub fn take_stdin(&mut self) -> Option<ExecStdin> {
        let (sender, credit) = (self.sender.clone(), self.credit.clone());
        std::mem::take(&mut self.wants_stdin).then_some(ExecStdin { sender, credit })
    }

    /// What else can be said to the command.
    pub fn control(&self) -> ExecControl {
        ExecControl { sender: self.sender.clone(), taken: self.taken.clone() }
    }

    /// Whether the command, which has ended, was killed because it ran longer than it was given.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// What comes next. After `Exit` or `Error`, and after a failure, there is nothing. Cancel
    /// safe.
    ///
    /// To be called again and again: pings are answered and stdin goes on only in here.
    pub async fn next(&mut self) -> Result<Option<ExecOutput>, ClientError> {
        if self.stopwatch.is_none() {
            return Ok(None);
        }
        let output = self.read().await;
        let goes_on = matches!(
            output,
            Ok(ExecOutput::Started { .. } | ExecOutput::Stdout(_) | ExecOutput::Stderr(_))
        );
        if !goes_on && let Some(stopwatch) = self.stopwatch.take() {
            self.client.record(stopwatch);
        }
        output.map(Some)
    }

    async fn read(&mut self) -> Result<ExecOutput, ClientError> {
        loop {
            let message = self.receiver.next().await?.ok_or_else(|| {
                ClientError::protocol("the connection was closed before the command ended")
            })?;
            let text = match message {
                Incoming::Binary(bytes) => return self.output(bytes),
                Incoming::Text(text) => text,
            };
            let notice = serde_json::from_str(&text).map_err(|error| {
                ClientError::caused("the server said what is no message of an exec", error)
            })?;
            match notice {
                ExecNotice::Started { pid, window } => {
                    self.credit.send_modify(|credit| *credit += u64::from(window));
                    return Ok(ExecOutput::Started { pid });
                }
                ExecNotice::Ack { bytes } => {
                    self.credit.send_modify(|credit| *credit = credit.saturating_add(bytes));
                }
                ExecNotice::Exit { exit_code, timed_out } => {
                    self.timed_out = timed_out;
                    return Ok(ExecOutput::Exit(exit_code));
                }
                ExecNotice::Error { message } => {
                    return Ok(ExecOutput::Error(crate::error::clean(&message)));
                }
            }
        }
    }

    fn output(&mut self, mut bytes: Bytes) -> Result<ExecOutput, ClientError> {
        let channel = (!bytes.is_empty()).then(|| bytes.split_to(1)[0]).and_then(ExecChannel::of);
        self.received += bytes.len() as u64;
        let ahead = self.received.saturating_sub(self.taken.all.load(Ordering::Relaxed));
        if ahead > u64::from(WINDOW) {
            return Err(ClientError::protocol("the server sends more than it was asked to"));
        }
        match channel {
            Some(ExecChannel::Stdout) => Ok(ExecOutput::Stdout(bytes)),
            Some(ExecChannel::Stderr) => Ok(ExecOutput::Stderr(bytes)),
            Some(ExecChannel::Stdin) | None => {
                Err(ClientError::protocol("the server sends what is no output"))
            }
        }
    }
}

/// Feeds a command's stdin. Dropping it says nothing: the command goes on waiting.
pub struct ExecStdin {
    sender: SocketSender,
    credit: Arc<watch::Sender<u64>>,
}

impl ExecStdin {
    /// Sends all of `bytes`, waiting while the command does not take them, which takes somebody
    /// in [`ExecSocket::next`]. Dropping this half-way leaves a prefix sent.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), ClientError> {
        while !bytes.is_empty() {
            let most = bytes.len().min(ExecStreamRequest::MAX_CHUNK);
            let mut granted = 0;
            // An error would mean that the sender is gone, which is in `self`.
            drop(self.credit.subscribe().wait_for(|credit| *credit > 0).await);
            self.credit.send_modify(|credit| {
                granted = most.min(usize::try_from(*credit).unwrap_or(usize::MAX));
                *credit -= granted as u64;
            });
            let mut message = BytesMut::with_capacity(1 + granted);
            message.put_u8(ExecChannel::Stdin as u8);
            message.put(bytes.split_to(granted));
            self.sender.binary(message.freeze()).await?;
        }
        Ok(())
    }

    /// Says that this was all.
    pub async fn finish(self) -> Result<(), ClientError> {
        self.sender.text(json(&ExecCommand::Eof)?).await
    }
}

/// How many bytes of output somebody has taken.
#[derive(Default)]
struct Taken {
    all: AtomicU64,
    /// How many of them the server knows of.
    said: AtomicU64,
}

/// What else can be said to a running command. Cheap to clone.
#[derive(Clone)]
pub struct ExecControl {
    sender: SocketSender,
    taken: Arc<Taken>,
}

impl ExecControl {
    /// Says that `bytes` more of the output were taken: the server sends only so much ahead.
    pub async fn taken(&self, bytes: u64) -> Result<(), ClientError> {
        let Taken { all, said } = &*self.taken;
        let now = all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let before = said.load(Ordering::Relaxed);
        let mine = now.saturating_sub(before) >= ACK_STEP
            && said.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if mine {
            self.sender.text(json(&ExecCommand::Ack { bytes: now - before })?).await?;
        }
        Ok(())
    }

    /// Kills the command and all it started. Its exit is still to come.
    pub async fn kill(&self) -> Result<(), ClientError> {
        self.sender.text(json(&ExecCommand::Kill)?).await
    }
}

fn json(message: &impl serde::Serialize) -> Result<String, ClientError> {
    serde_json::to_string(message)
        .map_err(|error| ClientError::caused("the request cannot be written", error))
}
