//! The bare engine: QEMU started by hand, and the link to its agent. No daemon, no store, no
//! control group, no namespace or seccomp filter for the VMM, nothing written down.
//!
//! What makes two machines the same is taken from one the daemon has started: program, board,
//! accelerator, CPU, memory, firmware and kernel line. So the comparison stays fair when the
//! engine's choices change, and on hosts with KVM. Disk, sockets and network are spelled here.
//!
//! Made before the clock starts: directory, overlay (`qemu-img`), the TAP. In the clock: the
//! process, QEMU's own start, the guest's boot, the handshake, the greeting, the configuration.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bhatti_guest_client::Guest;
use bhatti_link::Mode;
use bhatti_net::{NetConfig, Networks, UserNet, guest_mac, guest_subnet};
use bhatti_types::EngineId;
use bhatti_wire::message::{Configure, Network};
use camino::{Utf8Path, Utf8PathBuf};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::net::UnixStream;

/// Longer than a boot takes on two busy cores under software emulation.
const DEADLINE: Duration = Duration::from_secs(90);
/// The user index in a network of our own, and the guest's last octet there.
const USER: u32 = 7;
const HOST_PART: u8 = 2;

/// What one machine has in common with every other of its shape.
#[derive(Debug, PartialEq, Eq)]
struct Board {
    /// Option and value, in the order they were found.
    options: Vec<(String, String)>,
}

/// The options that decide what the guest sees and how it is executed.
const SHARED: [&str; 7] = ["-machine", "-accel", "-cpu", "-smp", "-m", "-bios", "-append"];

impl Board {
    /// Reads a command line as `/proc/<pid>/cmdline` has it.
    fn parse(cmdline: &[u8]) -> Result<Self> {
        let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let value = |option: &str| {
            let at = words.iter().position(|word| word == option);
            let value = at.and_then(|at| words.get(at + 1));
            value.map(ToString::to_string).with_context(|| format!("the VMM was given no {option}"))
        };
        let option = |name: &str| Ok((name.to_owned(), value(name)?));
        Ok(Self { options: SHARED.iter().map(|name| option(name)).collect::<Result<_>>()? })
    }

    /// The same for a VMM outside: the firmware's path is one in the root the VMM has been given.
    fn seen_from_outside(mut self, root: &str) -> Self {
        for (_, value) in self.options.iter_mut().filter(|(name, _)| name == "-bios") {
            value.insert_str(0, root);
        }
        self
    }
}

/// Starts machines by hand.
pub(crate) struct Bench {
    program: PathBuf,
    board: Board,
    kernel: Utf8PathBuf,
    initramfs: Utf8PathBuf,
    image: Utf8PathBuf,
    scratch: Utf8PathBuf,
    networks: Networks,
    network: UserNet,
}

impl Bench {
    /// Machines like the one the daemon runs as process `pid`, from the files in its `data_dir`.
    pub(crate) async fn like(pid: i32, data_dir: &Utf8Path, scratch: &Utf8Path) -> Result<Self> {
        let proc = |name| format!("/proc/{pid}/{name}");
        let cmdline = fs::read(proc("cmdline")).context("cannot read the VMM's command line")?;
        let program = fs::read_link(proc("exe")).context("cannot find the VMM's program")?;
        let config = NetConfig { prefix: "bare-".to_owned(), ..NetConfig::default() };
        let networks = Networks::open(config).await.context("cannot open a network")?;
        let network = networks.ensure_user(USER).await.context("cannot make a network")?;
        Ok(Self {
            program,
            board: Board::parse(&cmdline)?.seen_from_outside(&proc("root")),
            kernel: data_dir.join("kernel/vmlinux"),
            initramfs: data_dir.join("kernel/initramfs.cpio"),
            image: data_dir.join("images/rootfs-minimal-amd64.ext4"),
            scratch: scratch.to_owned(),
            networks,
            network,
        })
    }

    /// What a machine needs before it can be started.
    async fn prepare(&self) -> Result<Prepared> {
        let id = EngineId::random();
        let dir = tempfile::Builder::new().prefix("bare-").tempdir_in(&self.scratch)?;
        let path = Utf8PathBuf::try_from(dir.path().to_owned())?;
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.image.as_str()])
            .arg(path.join("root.qcow2"))
            .status()
            .context("cannot run qemu-img")?;
        ensure!(made.success(), "qemu-img failed: {made}");
        let tap = self.networks.open_tap(USER, &id).await.context("cannot open a TAP")?;
        Ok(Prepared { _dir: dir, path, tap, mac: guest_mac(&id) })
    }

    fn command(&self, prepared: &Prepared) -> Command {
        let Prepared { path, tap, mac, .. } = prepared;
        let mut command = Command::new(&self.program);
        for (option, value) in &self.board.options {
            command.args([option, value]);
        }
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-kernel", self.kernel.as_str(), "-initrd", self.initramfs.as_str()])
            .args(["-device", "virtio-rng-device"])
            .args(["-chardev", "ringbuf,id=console,size=65536", "-serial", "chardev:console"])
            .args(["-device", "virtio-serial-device,max_ports=2"])
            .arg("-chardev")
            .arg(format!("socket,id=agent,path={path}/agent.sock,server=on,wait=off"))
            .args(["-device", "virtserialport,chardev=agent,name=agent"])
            .arg("-drive")
            .arg(format!("if=none,id=root,file={path}/root.qcow2,format=qcow2,discard=unmap"))
            .args(["-device", "virtio-blk-device,drive=root"])
            .arg("-netdev")
            .arg(format!("tap,id=net,fd={}", tap.as_raw_fd()))
            .arg("-device")
            .arg(format!("virtio-net-device,netdev=net,mac={mac}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Boots one machine and says how long it took.
    pub(crate) async fn boot(&self) -> Result<(Bare, BootTimes)> {
        let prepared = self.prepare().await?;
        let mut command = self.command(&prepared);
        // The child inherits it. Nothing else is started before it is closed here.
        fcntl(&prepared.tap, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let configure = self.identity(&prepared.mac)?;
        let socket = prepared.path.join("agent.sock");

        let started = Instant::now();
        let child = command.spawn().context("cannot start QEMU by hand")?;
        let mut process = Process(child);
        let greeted = greet(&socket, &mut process);
        let guest = tokio::time::timeout(DEADLINE, greeted)
            .await
            .context("a bare machine did not answer in time")??;
        let first_reply = started.elapsed();
        guest.configure(configure).await?;
        let configured = started.elapsed();

        let Prepared { _dir: dir, .. } = prepared; // closes the TAP here
        Ok((Bare { guest, process, _dir: dir }, BootTimes { first_reply, configured }))
    }

    /// What the daemon would tell the guest.
    fn identity(&self, mac: &str) -> Result<Configure> {
        let [a, b, c, _] = guest_subnet(USER)?.network().octets();
        let network = Network {
            address: format!("{a}.{b}.{c}.{HOST_PART}"),
            prefix_len: u32::from(self.network.prefix_len),
            gateway: self.network.gateway.to_string(),
            nameservers: self.network.nameservers.iter().map(ToString::to_string).collect(),
            mac: mac.to_owned(),
        };
        let hostname = "bare".to_owned();
        Ok(Configure { hostname, network: Some(network), ..Configure::default() })
    }
}

/// From the start of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootTimes {
    /// The agent has answered the greeting.
    pub(crate) first_reply: Duration,
    /// It has its name and address.
    pub(crate) configured: Duration,
}

struct Prepared {
    _dir: tempfile::TempDir,
    path: Utf8PathBuf,
    tap: OwnedFd,
    mac: String,
}

/// Connects to the agent as soon as QEMU listens, and exchanges greetings.
async fn greet(socket: &Utf8Path, process: &mut Process) -> Result<Guest> {
    let carrier = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(error) if is_not_yet(&error) => {}
            Err(error) => return Err(error).context("cannot connect to a bare machine"),
        }
        if let Some(status) = process.0.try_wait()? {
            bail!("QEMU started by hand ended: {status}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    let (link, driver) = bhatti_link::connect(carrier, nonce, Mode::FirstBoot).await?;
    tokio::spawn(driver);
    let guest = Guest::new(link);
    guest.hello(env!("CARGO_PKG_VERSION")).await?;
    Ok(guest)
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// A machine started by hand. Ends when dropped.
pub(crate) struct Bare {
    pub(crate) guest: Guest,
    process: Process,
    _dir: tempfile::TempDir,
}

impl Bare {
    /// Runs `true` to its end.
    pub(crate) async fn exec_true(&self) -> Result<()> {
        crate::same::exec_true(&self.guest).await
    }

    pub(crate) fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.process.0.id())?)
    }
}

/// Killed and collected when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_found_in_a_command_line() {
        let words = "qemu\0-machine\0microvm,rtc=on\0-accel\0tcg,tb-size=64\0-cpu\0max\0-smp\x001\0\
            -m\x00512M\0-nodefaults\0-bios\0/q.rom\0-netdev\0tap,fd=3\0-append\0quiet panic=-1\0";
        let board = Board::parse(words.as_bytes()).unwrap();
        let expected = [
            ("-machine", "microvm,rtc=on"),
            ("-accel", "tcg,tb-size=64"),
            ("-cpu", "max"),
            ("-smp", "1"),
            ("-m", "512M"),
            ("-bios", "/q.rom"),
            ("-append", "quiet panic=-1"),
        ];
        assert_eq!(board.options, expected.map(|(o, v)| (o.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_missing_option_is_named() {
        for cmdline in ["", "qemu\0-machine\0microvm", "qemu\0-machine"] {
            let error = Board::parse(cmdline.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("the VMM was given no -"), "{error}");
        }
    }
}
