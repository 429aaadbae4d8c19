//! As much of QEMU's control protocol as saving and restoring by hand take.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context as _, Result, bail, ensure};
use camino::Utf8Path;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;

/// Longer than any line QEMU has for us.
const MOST_LINE: u64 = 1 << 20;

/// A connection to a QEMU that obeys.
pub(super) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Takes QEMU's greeting.
    pub(super) async fn greet(socket: UnixStream) -> Result<Self> {
        let mut qmp = Self(BufReader::new(socket));
        qmp.line().await?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Stops the virtual CPUs.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.execute("stop", json!({})).await.map(drop)
    }

    /// Lets them run.
    pub(super) async fn go_on(&mut self) -> Result<()> {
        self.execute("cont", json!({})).await.map(drop)
    }

    /// Writes the state of the devices, without memory.
    pub(super) async fn save_devices(&mut self, file: &Utf8Path) -> Result<()> {
        let arguments = json!({ "filename": file, "live": false });
        self.execute("xen-save-devices-state", arguments).await.map(drop)
    }

    /// Loads it, from an open file at its beginning, and waits until the machine stands.
    pub(super) async fn load_devices(&mut self, state: &impl AsFd) -> Result<()> {
        self.hand_over("state", state).await?;
        self.execute("migrate-incoming", json!({ "uri": "fd:state" })).await?;
        loop {
            let status = self.execute("query-status", json!({})).await?;
            match status["status"].as_str() {
                // It takes milliseconds, and asking again costs it time.
                Some("inmigrate") => tokio::time::sleep(POLL).await,
                Some("paused") => return Ok(()),
                other => bail!("a restored machine is {other:?}"),
            }
        }
    }

    async fn hand_over(&mut self, name: &str, file: &impl AsFd) -> Result<()> {
        let line = command("getfd", json!({ "fdname": name }));
        let fds = [file.as_fd().as_raw_fd()];
        let socket = self.0.get_ref();
        let send = || {
            let (content, control) =
                ([IoSlice::new(line.as_bytes())], [ControlMessage::ScmRights(&fds)]);
            Ok(sendmsg::<()>(socket.as_raw_fd(), &content, &control, MsgFlags::empty(), None)?)
        };
        let sent = socket.async_io(Interest::WRITABLE, send).await?;
        ensure!(sent == line.len(), "QEMU took {sent} bytes of a command");
        self.answer("getfd").await.map(drop)
    }

    async fn execute(&mut self, name: &str, arguments: Value) -> Result<Value> {
        self.0.get_mut().write_all(command(name, arguments).as_bytes()).await?;
        self.answer(name).await
    }

    async fn answer(&mut self, name: &str) -> Result<Value> {
        loop {
            let mut line = self.line().await?;
            if line.get("error").is_some() {
                bail!("QEMU refuses {name}: {}", line["error"]["desc"]);
            }
            // Anything else is an event.
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    async fn line(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        (&mut self.0).take(MOST_LINE).read_until(b'\n', &mut line).await?;
        ensure!(!line.is_empty(), "QEMU hung up");
        serde_json::from_slice(&line).context("QEMU said something that is not JSON")
    }
}

const POLL: std::time::Duration = std::time::Duration::from_millis(1);

fn command(name: &str, arguments: Value) -> String {
    format!("{}\n", json!({ "execute": name, "arguments": arguments }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {}}\n{\"return\": {}}\n";

    /// A client whose peer has said the greeting and then `script`, and the peer.
    async fn client(script: &str) -> (Qmp, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        theirs.write_all(script.as_bytes()).await.unwrap();
        (Qmp::greet(ours).await.unwrap(), theirs)
    }

    #[tokio::test]
    async fn events_are_no_answers_and_refusals_are_errors() {
        let script = "{\"event\": \"STOP\"}\n{\"return\": {}}\n{\"error\": {\"desc\": \"no\"}}\n";
        let (mut qmp, _peer) = client(script).await;
        qmp.stop().await.unwrap();
        let error = qmp.go_on().await.unwrap_err().to_string();
        assert!(error.contains("refuses cont") && error.contains("no"), "{error}");
    }

    #[tokio::test]
    async fn a_device_state_is_loaded_when_the_machine_stands() {
        let script = "{\"return\": {}}\n{\"return\": {}}\n\
            {\"return\": {\"status\": \"inmigrate\"}}\n{\"return\": {\"status\": \"paused\"}}\n";
        let (mut qmp, _peer) = client(script).await;
        qmp.load_devices(&std::io::stdin()).await.unwrap();
        let (mut qmp, _peer) = client(&script.replace("paused", "internal-error")).await;
        assert!(qmp.load_devices(&std::io::stdin()).await.is_err());
    }
}
