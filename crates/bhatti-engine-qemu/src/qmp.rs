//! A small client of QEMU's control protocol: one JSON object a line.
//!
//! The other end is the VMM, which a hostile guest may have taken over. So lines are bounded,
//! every command has a deadline, and nothing it says is believed beyond its own machine.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use bhatti_engine::EngineError;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

use crate::cmdline::{CONSOLE, CONSOLE_BYTES};

/// The longest line: a full console in base64 and its frame, twice over.
const MAX_LINE: u64 = 256 * 1024;
/// Events that came while we waited for an answer; a guest can cause some at will.
const MAX_EVENTS: usize = 64;
/// For a command that only reads or sets something.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(5);

/// A connection that has been through the greeting.
pub(crate) struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// What has been read of a line whose reader was cancelled.
    partial: Vec<u8>,
    events: VecDeque<Event>,
}

/// The events anybody here cares about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest powered off, rebooted or panicked; QEMU has stopped it and waits.
    GuestEnded,
    /// The host's disk is full: QEMU has stopped the machine in the middle of a write, which it
    /// tries again when it is told to go on. Nothing is lost meanwhile.
    DiskFull,
    /// Of no interest, such as QEMU itself being told to end.
    Other,
}

impl Qmp {
    /// Takes the greeting and enters command mode.
    pub(crate) async fn greet(stream: UnixStream, deadline: Instant) -> Result<Self, EngineError> {
        let (reader, writer) = stream.into_split();
        let reader = BufReader::new(reader);
        let mut qmp = Self { reader, writer, partial: Vec::new(), events: VecDeque::new() };
        let greeting = timeout_at(deadline, qmp.line())
            .await
            .map_err(|_| EngineError::Timeout { action: "greet", seconds: 10 })??;
        if greeting.get("QMP").is_none() {
            return Err(broken("greeting", "it is not one"));
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returned. After an error of transport or time the
    /// connection is of no further use.
    pub(crate) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, EngineError> {
        let deadline = Instant::now() + COMMAND_DEADLINE;
        let run = async {
            let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
            line.push('\n');
            self.writer
                .write_all(line.as_bytes())
                .await
                .map_err(|error| broken(command, &error.to_string()))?;
            loop {
                let mut reply = self.line().await?;
                if let Some(event) = event(&reply) {
                    if self.events.len() == MAX_EVENTS {
                        self.events.pop_front();
                    }
                    self.events.push_back(event);
                } else if let Some(result) = reply.get_mut("return") {
                    return Ok(result.take());
                } else {
                    let text = reply["error"]["desc"].as_str().unwrap_or("no reason given");
                    return Err(broken(command, text));
                }
            }
        };
        timeout_at(deadline, run).await.map_err(|_| EngineError::Timeout {
            action: "answer a command",
            seconds: COMMAND_DEADLINE.as_secs(),
        })?
    }

    /// The next event. Cancel-safe. An error means that the connection is over.
    pub(crate) async fn event(&mut self) -> Result<Event, EngineError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            // Anything but an event was the answer to a command that was given up.
            if let Some(event) = event(&self.line().await?) {
                return Ok(event);
            }
        }
    }

    /// Takes what the guest has printed since the last call.
    pub(crate) async fn take_console(&mut self) -> Result<Vec<u8>, EngineError> {
        const READ: &str = "ringbuf-read";
        let arguments = json!({ "device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64" });
        let reply = self.execute(READ, arguments).await?;
        let text = reply.as_str().ok_or_else(|| broken(READ, "no text"))?;
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_err(|error| broken(READ, &error.to_string()))
    }

    /// Has QEMU close its files and end. It may hang up before it answers.
    pub(crate) async fn quit(&mut self) -> Result<(), EngineError> {
        self.execute("quit", json!({})).await.map(drop)
    }

    /// Lets a stopped machine go on.
    pub(crate) async fn go_on(&mut self) -> Result<(), EngineError> {
        self.execute("cont", json!({})).await.map(drop)
    }

    /// What happened while nobody listened, if the machine still stands at it.
    pub(crate) async fn missed(&mut self) -> Result<Option<Event>, EngineError> {
        let status = self.execute("query-status", json!({})).await?;
        Ok(match status["status"].as_str() {
            Some("shutdown" | "guest-panicked") => Some(Event::GuestEnded),
            Some("io-error") => Some(Event::DiskFull),
            _ => None,
        })
    }

    /// One line as JSON, bounded. Cancel-safe: what was read stays in `partial`.
    async fn line(&mut self) -> Result<Value, EngineError> {
        let room = MAX_LINE.saturating_sub(self.partial.len() as u64);
        let read = (&mut self.reader).take(room).read_until(b'\n', &mut self.partial).await;
        read.map_err(|error| broken("read", &error.to_string()))?;
        if self.partial.last() != Some(&b'\n') {
            let why =
                if self.partial.len() as u64 >= MAX_LINE { "line too long" } else { "closed" };
            return Err(broken("read", why));
        }
        let line = std::mem::take(&mut self.partial);
        serde_json::from_slice(&line).map_err(|error| broken("read", &error.to_string()))
    }
}

fn event(line: &Value) -> Option<Event> {
    match line.get("event")?.as_str()? {
        "SHUTDOWN" if line["data"]["guest"] == true => Some(Event::GuestEnded),
        "BLOCK_IO_ERROR" if line["data"]["action"] == "stop" => Some(Event::DiskFull),
        _ => Some(Event::Other),
    }
}

fn broken(command: &str, message: &str) -> EngineError {
    // Bounded: the text may be the guest's.
    let message = message.chars().take(300).collect();
    EngineError::Control { command: command.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}}}\n{\"return\": {}}\n";

    /// A client whose peer has said `GREETING` and then `script`, and the peer.
    async fn client(script: &[u8]) -> (Qmp, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        let qmp = Qmp::greet(ours, Instant::now() + Duration::from_secs(5)).await.unwrap();
        theirs.write_all(script).await.unwrap();
        (qmp, theirs)
    }

    #[tokio::test]
    async fn events_between_command_and_answer_are_kept() {
        let script = b"{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\n{\"return\": {\"status\": \"shutdown\"}}\n";
        let (mut qmp, _peer) = client(script).await;
        assert_eq!(qmp.missed().await.unwrap(), Some(Event::GuestEnded));
        assert_eq!(qmp.event().await.unwrap(), Event::GuestEnded);
    }

    #[tokio::test]
    async fn a_full_disk_is_told_as_it_happens_and_afterwards() {
        let script = b"{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"action\": \"report\"}}\n\
            {\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"action\": \"stop\"}}\n\
            {\"return\": {\"status\": \"io-error\"}}\n{\"return\": {\"status\": \"running\"}}\n";
        let (mut qmp, _peer) = client(script).await;
        assert_eq!(qmp.event().await.unwrap(), Event::Other, "the guest was told");
        assert_eq!(qmp.event().await.unwrap(), Event::DiskFull);
        assert_eq!(qmp.missed().await.unwrap(), Some(Event::DiskFull));
        assert_eq!(qmp.missed().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_refusal_carries_the_reason() {
        let (mut qmp, _peer) = client(b"{\"error\": {\"desc\": \"no such device\"}}\n").await;
        let error = qmp.take_console().await.unwrap_err();
        assert!(error.to_string().contains("no such device"), "{error}");
    }

    #[tokio::test]
    async fn a_line_without_end_is_given_up() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = tokio::spawn(async move {
            let block = [b'x'; 65536];
            while theirs.write_all(&block).await.is_ok() {}
        });
        let error = Qmp::greet(ours, Instant::now() + Duration::from_secs(5)).await.err().unwrap();
        assert!(error.to_string().contains("too long"), "{error}");
        flood.await.unwrap(); // the client has hung up
    }

    #[tokio::test]
    async fn a_cancelled_wait_loses_no_byte() {
        let (mut qmp, mut peer) = client(b"{\"event\": \"SHUT").await;
        let half = tokio::time::timeout(Duration::from_millis(20), qmp.event()).await;
        assert!(half.is_err());
        peer.write_all(b"DOWN\", \"data\": {\"guest\": true}}\n").await.unwrap();
        assert_eq!(qmp.event().await.unwrap(), Event::GuestEnded);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let result = Qmp::greet(ours, Instant::now() + Duration::from_secs(10)).await;
        assert!(matches!(result.err(), Some(EngineError::Timeout { .. })));
    }
}
