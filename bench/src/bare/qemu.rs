//! QEMU by hand: as root, without seccomp filter.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use camino::{Utf8Path, Utf8PathBuf};

use super::board::{Board, Start};
use super::qmp::Qmp;
use super::saved::Saved;
use super::{AGENT_SOCKET, CONTROL_SOCKET, Starting};

const DISK: &str = "root.qcow2";
/// How QEMU listens on a socket: it waits for nobody.
const LISTEN: &str = "server=on,wait=off";

pub(super) struct Qemu {
    board: Board,
    kernel: Utf8PathBuf,
    initramfs: Utf8PathBuf,
}

impl Qemu {
    /// Machines like that of process `pid`.
    pub(super) fn like(pid: i32, kernel: Utf8PathBuf, initramfs: Utf8PathBuf) -> Result<Self> {
        let proc = |name| format!("/proc/{pid}/{name}");
        let cmdline = fs::read(proc("cmdline")).context("cannot read the VMM's command line")?;
        let board = Board::parse(&cmdline)?.seen_from_outside(&proc("root"));
        Ok(Self { board, kernel, initramfs })
    }

    /// Without `memory` it boots.
    pub(super) fn arguments(
        &self,
        command: &mut Command,
        path: &Utf8Path,
        tap: &OwnedFd,
        mac: &str,
        memory: Option<&OwnedFd>,
    ) {
        let start = memory.map_or(Start::Zero, |file| Start::File(file.as_raw_fd()));
        for (option, value) in self.board.options(start) {
            command.args([option, value]);
        }
        for property in ["send-configuration", "store-global-state"] {
            command.args(["-global", &format!("migration.{property}=off")]);
        }
        match start {
            Start::Zero => {
                command.args(["-kernel", self.kernel.as_str()]);
                command.args(["-initrd", self.initramfs.as_str()]);
            }
            Start::File(_) => {
                command.args(["-incoming", "defer", "-S"]);
            }
        }
        let socket = |id: &str, name: &str| format!("socket,id={id},path={path}/{name},{LISTEN}");
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-device", "virtio-rng-device"])
            .args(["-chardev", &socket("qmp", CONTROL_SOCKET)])
            .args(["-mon", "chardev=qmp,mode=control"])
            .args(["-chardev", "ringbuf,id=console,size=65536", "-serial", "chardev:console"])
            .args(["-device", "virtio-serial-device,max_ports=2"])
            .args(["-chardev", &socket("agent", AGENT_SOCKET)])
            .args(["-device", "virtserialport,chardev=agent,name=agent"])
            .arg("-drive")
            .arg(format!("if=none,id=root,file={path}/{DISK},format=qcow2,discard=unmap"))
            .args(["-device", "virtio-blk-device,drive=root"])
            .arg("-netdev")
            .arg(format!("tap,id=net,fd={}", tap.as_raw_fd()))
            .arg("-device")
            .arg(format!("virtio-net-device,netdev=net,mac={mac}"));
    }

    /// Loads the devices over the memory it was started with, and lets it run.
    pub(super) async fn load(&self, starting: &mut Starting, saved: &Saved) -> Result<Qmp> {
        let state = saved.devices()?;
        let mut qmp = Qmp::greet(starting.socket(CONTROL_SOCKET).await?).await?;
        qmp.load_devices(&state).await?;
        qmp.go_on().await?;
        Ok(qmp)
    }
}

/// An overlay over the image, or over the disk of a saved machine.
pub(super) fn make_disk(dir: &Utf8Path, image: &Utf8Path, saved: Option<&Saved>) -> Result<()> {
    let (format, below) = match saved {
        None => ("raw", image.to_owned()),
        Some(saved) => ("qcow2", saved.path().join(DISK)),
    };
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b", below.as_str()])
        .arg(dir.join(DISK))
        .status()
        .context("cannot run qemu-img")?;
    ensure!(made.success(), "qemu-img failed: {made}");
    Ok(())
}
