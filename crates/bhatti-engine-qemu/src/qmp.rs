//! A small client of QEMU's control protocol: one JSON object a line.
//!
//! The other end is the VMM, which a hostile guest may have taken over. So lines are bounded,
//! every command has a deadline, and nothing it says is believed beyond its own machine.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use base64::Engine as _;
use bhatti_engine::EngineError;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep, timeout_at};

use crate::cmdline::{CONSOLE, CONSOLE_BYTES, overlay};
use crate::disk::TopName;
use crate::merging;

/// The longest line: a full console in base64 and its frame, twice over.
const MAX_LINE: u64 = 256 * 1024;
/// Events that came while we waited for an answer; a guest can cause some at will.
const MAX_EVENTS: usize = 64;
/// For a command that only reads or sets something. A VMM that answers does so in a millisecond;
/// but on a host whose CPUs are all taken, a guest that boots holds QEMU's own lock for seconds,
/// and who gives up then kills a machine that is well.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// For a command that writes out what the guest has written, or waits until that is done.
const FLUSH_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at whether a device state has been loaded, which takes 4 ms.
const LOAD_POLL: Duration = Duration::from_millis(1);
/// How long that may take on a busy host.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);

/// A connection that has been through the greeting.
pub(crate) struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// What has been read of a line whose reader was cancelled.
    partial: Vec<u8>,
    events: VecDeque<Event>,
    /// The other end has broken the rules or our patience: nothing it says later can be told
    /// from an answer to an earlier question.
    broken: bool,
    /// Descriptors QEMU was told to close and will not before the machine runs.
    unwanted: Vec<usize>,
}

/// How a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its virtual CPUs run, or will without anybody's help.
    Running,
    /// Somebody stopped it.
    Paused,
    /// It stopped itself for ever.
    GuestEnded,
    /// It stopped itself until there is room on the host's disk.
    DiskFull,
}

impl Standing {
    /// The event that led to it.
    pub(crate) fn event(self) -> Option<Event> {
        match self {
            Self::Running => None,
            Self::Paused => Some(Event::Paused),
            Self::GuestEnded => Some(Event::GuestEnded),
            Self::DiskFull => Some(Event::DiskFull),
        }
    }
}

/// What a VMM says of its root disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its top layer.
    pub node: String,
    /// Of the device.
    pub bytes: u64,
}

/// The events anybody here cares about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest powered off, rebooted or panicked; QEMU has stopped it and waits.
    GuestEnded,
    /// The host's disk is full: QEMU has stopped the machine in the middle of a write, which it
    /// tries again when it is told to go on. Nothing is lost meanwhile.
    DiskFull,
    /// Only told after an outage: somebody had stopped the machine.
    Paused,
    /// Of no interest, such as QEMU itself being told to end.
    Other,
}

impl Qmp {
    /// Takes the greeting and enters command mode.
    pub(crate) async fn greet(stream: UnixStream, deadline: Instant) -> Result<Self, EngineError> {
        let (reader, writer) = stream.into_split();
        let reader = BufReader::new(reader);
        let (partial, events) = (Vec::new(), VecDeque::new());
        let unwanted = Vec::new();
        let mut qmp = Self { reader, writer, partial, events, broken: false, unwanted };
        let greeting = timeout_at(deadline, qmp.line())
            .await
            .map_err(|_| EngineError::Timeout { action: "greet", seconds: 10 })??;
        if greeting.get("QMP").is_none() {
            return Err(broken("greeting", "it is not one"));
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Whether this connection is of no further use.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Runs one command and returns what it returned. After an error of transport or time the
    /// connection [`Self::is_broken`]; after a refusal it is as good as before.
    pub(crate) async fn execute(&mut self, command: &'static str, arguments: Value) -> Answer {
        self.execute_within(COMMAND_DEADLINE, command, arguments).await
    }

    async fn execute_within(
        &mut self,
        patience: Duration,
        command: &'static str,
        arguments: Value,
    ) -> Answer {
        let line = command_line(command, &arguments);
        let run = async {
            let sent = self.writer.write_all(line.as_bytes()).await;
            match sent {
                Ok(()) => self.answer(command).await,
                Err(error) => Err(self.break_off(command, &error)),
            }
        };
        let deadline = Instant::now() + patience;
        match timeout_at(deadline, run).await {
            Ok(answer) => answer,
            Err(_) => {
                self.broken = true;
                let seconds = patience.as_secs();
                Err(EngineError::Timeout { action: "answer a command", seconds })
            }
        }
    }

    /// The answer to the command that was just sent.
    async fn answer(&mut self, command: &'static str) -> Answer {
        loop {
            let mut reply = match self.line().await {
                Ok(reply) => reply,
                Err(error) => {
                    self.broken = true;
                    return Err(error);
                }
            };
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
    }

    fn break_off(&mut self, command: &str, error: &io::Error) -> EngineError {
        self.broken = true;
        broken(command, &error.to_string())
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
        self.execute("cont", json!({})).await?;
        for set in std::mem::take(&mut self.unwanted) {
            self.close_set(set).await?;
        }
        Ok(())
    }

    /// Has a descriptor closed that QEMU was started with and uses no more: now, or (QEMU before
    /// 9.1) when it is told again while the machine runs.
    pub(crate) async fn close_set(&mut self, set: usize) -> Result<(), EngineError> {
        match self.execute("remove-fd", json!({ "fdset-id": set })).await {
            Err(error) if self.broken => Err(error),
            // Refused: it is closed already.
            Err(_) | Ok(_) => Ok(()),
        }
    }

    /// The same, and again when the machine goes on.
    pub(crate) async fn close_set_for_good(&mut self, set: usize) -> Result<(), EngineError> {
        self.close_set(set).await?;
        self.unwanted.push(set);
        Ok(())
    }

    /// Stops the virtual CPUs and has everything written out that the guest has written.
    pub(crate) async fn stop(&mut self) -> Result<(), EngineError> {
        self.execute_within(FLUSH_DEADLINE, "stop", json!({})).await.map(drop)
    }

    /// How the machine stands now.
    pub(crate) async fn standing(&mut self) -> Result<Standing, EngineError> {
        let status = self.execute("query-status", json!({})).await?;
        Ok(match status["status"].as_str() {
            Some("shutdown" | "guest-panicked") => Standing::GuestEnded,
            Some("io-error") => Standing::DiskFull,
            Some("paused") => Standing::Paused,
            _ => Standing::Running,
        })
    }

    /// How many virtual CPUs there are.
    pub(crate) async fn vcpus(&mut self) -> Result<u32, EngineError> {
        const QUERY: &str = "query-cpus-fast";
        let cpus = self.execute(QUERY, json!({})).await?;
        let count = cpus.as_array().and_then(|cpus| u32::try_from(cpus.len()).ok());
        count.ok_or_else(|| broken(QUERY, "no list"))
    }

    /// The root disk, as it is now. A merge that a former daemon did not finish is given up first:
    /// it would stand between the machine and its disk.
    pub(crate) async fn disk(&mut self) -> Result<Disk, EngineError> {
        let disk = self.device().await?;
        if disk.node != merging::FILTER {
            return Ok(disk);
        }
        merging::abandon(self).await?;
        self.device().await
    }

    async fn device(&mut self) -> Result<Disk, EngineError> {
        const QUERY: &str = "query-block";
        let devices = self.execute(QUERY, json!({})).await?;
        // There is one block device, the root disk.
        let inserted = &devices[0]["inserted"];
        let node = inserted["node-name"].as_str();
        let bytes = inserted["image"]["virtual-size"].as_u64();
        match (node, bytes) {
            (Some(node), Some(bytes)) => Ok(Disk { node: node.to_owned(), bytes }),
            _ => Err(broken(QUERY, "no disk")),
        }
    }

    /// Writes the state of all devices, without memory, into a file of the working directory.
    pub(crate) async fn save_devices(&mut self, file: &str) -> Result<(), EngineError> {
        // Not "live": that would have QEMU let go of the disk, as at the end of a migration.
        let arguments = json!({ "filename": file, "live": false });
        self.execute_within(FLUSH_DEADLINE, "xen-save-devices-state", arguments).await.map(drop)
    }

    /// Loads what [`Self::save_devices`] wrote, and waits until the machine stands. QEMU ends
    /// if it cannot use it.
    pub(crate) async fn load_devices(&mut self, state: &impl AsFd) -> Result<(), EngineError> {
        const LOAD: &str = "migrate-incoming";
        self.hand_over("state", state).await?;
        self.execute(LOAD, json!({ "uri": "fd:state" })).await?;
        let deadline = Instant::now() + LOAD_DEADLINE;
        loop {
            let status = self.execute("query-status", json!({})).await?;
            match status["status"].as_str() {
                Some("inmigrate") if Instant::now() < deadline => sleep(LOAD_POLL).await,
                Some("inmigrate") => {
                    let seconds = LOAD_DEADLINE.as_secs();
                    return Err(EngineError::Timeout { action: "load a device state", seconds });
                }
                Some("paused") => return Ok(()),
                _ => return Err(broken(LOAD, "the machine is in another state than it should be")),
            }
        }
    }

    /// Gives QEMU an open file, under a name it uses once.
    async fn hand_over(&mut self, name: &str, file: &impl AsFd) -> Result<(), EngineError> {
        const GETFD: &str = "getfd";
        let line = command_line(GETFD, &json!({ "fdname": name }));
        let fds = [file.as_fd().as_raw_fd()];
        let send = || {
            let content = [IoSlice::new(line.as_bytes())];
            let control = [ControlMessage::ScmRights(&fds)];
            let socket = self.writer.as_ref().as_raw_fd();
            // The line is far shorter than what a socket takes at once.
            Ok(sendmsg::<()>(socket, &content, &control, MsgFlags::empty(), None)?)
        };
        let sent = self.writer.as_ref().async_io(Interest::WRITABLE, send);
        match timeout_at(Instant::now() + COMMAND_DEADLINE, sent).await {
            Ok(Ok(count)) if count == line.len() => {}
            Ok(Err(error)) => return Err(self.break_off(GETFD, &error)),
            Ok(Ok(_)) | Err(_) => {
                self.broken = true;
                return Err(broken(GETFD, "it does not listen"));
            }
        }
        match timeout_at(Instant::now() + COMMAND_DEADLINE, self.answer(GETFD)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => {
                self.broken = true;
                let seconds = COMMAND_DEADLINE.as_secs();
                Err(EngineError::Timeout { action: "answer a command", seconds })
            }
        }
    }

    /// Makes the device as large as its file says, and tells the guest.
    pub(crate) async fn resize(&mut self, node: &str, bytes: u64) -> Result<(), EngineError> {
        let arguments = json!({ "node-name": node, "size": bytes });
        self.execute_within(FLUSH_DEADLINE, "block_resize", arguments).await.map(drop)
    }

    /// Puts `new` on top of `old`; from then on only `new` is written.
    pub(crate) async fn put_on_top(
        &mut self,
        new: &TopName,
        old: &TopName,
    ) -> Result<(), EngineError> {
        let (new_node, old_node) = (new.node(), old.node());
        // Left of an attempt that nobody heard the end of; usually there is none.
        let left = self.execute("blockdev-del", json!({ "node-name": new_node })).await;
        if self.broken {
            return left.map(drop);
        }
        self.execute_within(FLUSH_DEADLINE, "blockdev-add", overlay(new)).await?;
        let arguments = json!({ "node": old_node, "overlay": new_node });
        let switched =
            self.execute_within(FLUSH_DEADLINE, "blockdev-snapshot", arguments).await.map(drop);
        if switched.is_err() && !self.broken {
            // Refused, so it is not in use.
            self.execute("blockdev-del", json!({ "node-name": new_node })).await?;
        }
        switched
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

/// What a command gives.
pub(crate) type Answer = Result<Value, EngineError>;

fn command_line(command: &str, arguments: &Value) -> String {
    format!("{}\n", json!({ "execute": command, "arguments": arguments }))
}

fn event(line: &Value) -> Option<Event> {
    match line.get("event")?.as_str()? {
        "SHUTDOWN" if line["data"]["guest"] == true => Some(Event::GuestEnded),
        "BLOCK_IO_ERROR" if line["data"]["action"] == "stop" => Some(Event::DiskFull),
        _ => Some(Event::Other),
    }
}

pub(crate) fn broken(command: &str, message: &str) -> EngineError {
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
        assert_eq!(qmp.standing().await.unwrap(), Standing::GuestEnded);
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
        assert_eq!(qmp.standing().await.unwrap(), Standing::DiskFull);
        assert_eq!(qmp.standing().await.unwrap(), Standing::Running);
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
