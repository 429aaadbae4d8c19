//! Firecracker by hand: as root, without jail; its own filter is on, for nobody runs it without.
//!
//! Its snapshots are its own: the state, and all of the memory in a file that the next process maps
//! privately. It knows no layers, so each machine has a whole copy of the disk.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bhatti_types::EngineId;
use camino::Utf8Path;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::api::Api;
use super::saved::{DEVICES, Saved};
use super::{AGENT_SOCKET, CONTROL_SOCKET, Starting};

const DISK: &str = "root.raw";
const API_SOCKET: &str = "api.sock";
/// Where the agent listens.
const AGENT_PORT: u32 = 52;
const INTERFACE: &str = "eth0";
/// How long the agent may take to its first byte before the connection is taken for one that the guest
/// has dropped; twice as long the next time, as the engine does it.
const FIRST_BYTE: Duration = Duration::from_millis(50);
/// Between two attempts to reach the agent.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) struct Firecracker {
    /// The filter it is given, if it has none of its own.
    filter: Option<String>,
    /// What describes a machine, by path; all machines have this in common.
    shared: Vec<(&'static str, Value)>,
}

impl Firecracker {
    /// Machines like that of process `pid`, which serves its API in `dir`.
    pub(super) async fn like(
        pid: i32,
        dir: &Path,
        kernel: &Utf8Path,
        initramfs: &Utf8Path,
    ) -> Result<Self> {
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let socket = UnixStream::connect(dir.join(API_SOCKET)).await;
        let mut api = Api::new(socket.context("cannot connect to the VMM's API")?);
        let config = api.get("/vm/config").await?;
        let filter = filter(&cmdline).map(|path| format!("/proc/{pid}/root{path}"));
        Ok(Self { filter, shared: shared(&config, kernel, initramfs)? })
    }

    pub(super) fn arguments(&self, command: &mut Command) {
        command.args(["--api-sock", CONTROL_SOCKET, "--level", "Error"]);
        if let Some(filter) = &self.filter {
            command.args(["--seccomp-filter", filter]);
        }
    }

    /// Describes the machine and starts it.
    pub(super) async fn boot(&self, starting: &mut Starting) -> Result<Api> {
        let mut api = Api::new(starting.socket(CONTROL_SOCKET).await?);
        for (path, body) in &self.shared {
            api.put(path, body).await?;
        }
        let drive = json!({
            "drive_id": "root",
            "path_on_host": DISK,
            "is_root_device": false,
            "is_read_only": false,
        });
        api.put("/drives/root", &drive).await?;
        api.put("/vsock", &json!({ "guest_cid": 3, "uds_path": AGENT_SOCKET })).await?;
        let interface = json!({
            "iface_id": INTERFACE,
            "guest_mac": starting.mac,
            "host_dev_name": tap(starting)?,
        });
        api.put("/network-interfaces/eth0", &interface).await?;
        api.put("/actions", &json!({ "action_type": "InstanceStart" })).await?;
        Ok(api)
    }

    /// Loads a snapshot and lets it run.
    pub(super) async fn load(starting: &mut Starting, saved: &Saved) -> Result<Api> {
        let mut api = Api::new(starting.socket(CONTROL_SOCKET).await?);
        let load = json!({
            "snapshot_path": saved.path().join(DEVICES),
            "mem_backend": { "backend_type": "File", "backend_path": seen(&saved.memory) },
            "resume_vm": true,
            "network_overrides": [{ "iface_id": INTERFACE, "host_dev_name": tap(starting)? }],
        });
        api.put("/snapshot/load", &load).await?;
        Ok(api)
    }
}

pub(super) async fn pause(api: &mut Api) -> Result<()> {
    api.patch("/vm", &json!({ "state": "Paused" })).await
}

pub(super) async fn go_on(api: &mut Api) -> Result<()> {
    api.patch("/vm", &json!({ "state": "Resumed" })).await
}

/// Writes state and memory of a machine that stands.
pub(super) async fn save(api: &mut Api, memory: &std::fs::File) -> Result<()> {
    let create = json!({
        "snapshot_type": "Full",
        "snapshot_path": DEVICES,
        "mem_file_path": seen(memory),
    });
    api.put("/snapshot/create", &create).await
}

/// The name under which another process of ours may open a file that has maybe none.
fn seen(file: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// A connection to the agent, once it has sent its first byte: one that a guest drops while it is being
/// restored says nothing, ever.
pub(super) async fn link(starting: &mut Starting) -> Result<UnixStream> {
    let mut patience = FIRST_BYTE;
    loop {
        let stream = starting.socket(AGENT_SOCKET).await?;
        match greeted(stream, patience).await {
            Ok(Some(stream)) => return Ok(stream),
            Ok(None) => patience *= 2,
            // The VMM hangs up while the guest does not listen.
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn greeted(mut stream: UnixStream, patience: Duration) -> io::Result<Option<UnixStream>> {
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    // `OK 1073741824` and a line's end; what follows is the guest's.
    while stream.read_u8().await? != b'\n' {}
    let peek = || Ok(recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK)?);
    let first = stream.async_io(Interest::READABLE, peek);
    let Ok(there) = tokio::time::timeout(patience, first).await else {
        return Ok(None);
    };
    Ok((there? > 0).then_some(stream))
}

fn tap(starting: &Starting) -> Result<&str> {
    Ok(&starting.tap.as_ref().context("it has a TAP")?.0)
}

/// Another copy of the image, or of the disk of a saved machine.
pub(super) fn make_disk(dir: &Utf8Path, image: &Utf8Path, saved: Option<&Saved>) -> Result<()> {
    let from = saved.map_or_else(|| image.to_owned(), |saved| saved.path().join(DISK));
    // Shares blocks where it can, and otherwise has the kernel copy what is no hole.
    let made = Command::new("cp").arg("--reflink=auto").args([&from, &dir.join(DISK)]).status();
    let made = made.context("cannot run cp")?;
    ensure!(made.success(), "cp failed: {made}");
    Ok(())
}

/// A TAP of this host's, gone when dropped. What it is connected to makes no difference to what is
/// measured.
pub(super) struct NamedTap(String);

impl NamedTap {
    pub(super) fn new(id: &EngineId) -> Result<Self> {
        let name = format!("fc{}", &id.as_str()[..8]);
        let made = Command::new("ip").args(["tuntap", "add", "dev", &name, "mode", "tap"]).status();
        ensure!(made.context("cannot run ip")?.success(), "cannot make a TAP");
        Ok(Self(name))
    }
}

impl Drop for NamedTap {
    fn drop(&mut self) {
        // The host goes with this program anyway.
        Command::new("ip").args(["link", "delete", &self.0]).status().ok();
    }
}

/// The filter a command line names, if it does.
fn filter(cmdline: &[u8]) -> Option<String> {
    let mut words = cmdline.split(|byte| *byte == 0);
    words.find(|word| *word == b"--seccomp-filter")?;
    words.next().map(|path| String::from_utf8_lossy(path).into_owned())
}

/// From what a VMM says of its machine: what all machines of its kind have in common.
fn shared(
    config: &Value,
    kernel: &Utf8Path,
    initramfs: &Utf8Path,
) -> Result<Vec<(&'static str, Value)>> {
    let part = |name: &str| {
        let found = config.get(name).filter(|part| !part.is_null());
        found.cloned().with_context(|| format!("the VMM says nothing of its {name}"))
    };
    let mut source = part("boot-source")?;
    source["kernel_image_path"] = json!(kernel);
    source["initrd_path"] = json!(initramfs);
    Ok(vec![
        ("/machine-config", part("machine-config")?),
        ("/boot-source", source),
        ("/entropy", part("entropy")?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connection of a guest that is slow to speak is waited for, that of one that has gone is not
    /// taken.
    #[tokio::test]
    async fn a_link_counts_from_the_guests_first_byte_on() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let guest = async {
            let mut asked = [0; 11];
            theirs.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"CONNECT 52\n");
            theirs.write_all(b"OK 1073741824\n").await.unwrap();
            // Whoever looks now finds nothing.
            tokio::task::yield_now().await;
            theirs.write_all(b"x").await.unwrap();
            theirs
        };
        let (link, _guest) = tokio::join!(greeted(ours, FIRST_BYTE), guest);
        assert_eq!(link.unwrap().expect("it has spoken").read_u8().await.unwrap(), b'x');

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"OK 1\n").await.unwrap();
        theirs.shutdown().await.unwrap();
        assert!(greeted(ours, FIRST_BYTE).await.unwrap().is_none(), "it has gone");
    }

    #[test]
    fn a_filter_is_found_in_a_command_line() {
        let line = b"firecracker\0--api-sock\0a\0--seccomp-filter\0/s.bpf\0";
        assert_eq!(filter(line).as_deref(), Some("/s.bpf"));
        assert_eq!(filter(b"firecracker\0--api-sock\0a\0"), None);
    }

    #[test]
    fn what_machines_share_is_taken_from_one() {
        let config = json!({
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 512 },
            "boot-source": { "kernel_image_path": "/kernel", "initrd_path": "/i", "boot_args": "q" },
            "entropy": { "rate_limiter": null },
        });
        let shared = |config: &Value| shared(config, "/k".as_ref(), "/r".as_ref());
        let found = shared(&config).unwrap();
        assert_eq!(found[0].1["mem_size_mib"], 512);
        let source = json!({ "kernel_image_path": "/k", "initrd_path": "/r", "boot_args": "q" });
        assert_eq!(found[1], ("/boot-source", source));
        let error = shared(&json!({ "machine-config": null })).unwrap_err().to_string();
        assert!(error.contains("says nothing of its boot-source"), "{error}");
    }
}
