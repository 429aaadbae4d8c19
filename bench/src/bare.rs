//! The bare engine: QEMU started by hand, and the link to its agent. No daemon, no store, no
//! control group, no namespace or seccomp filter for the VMM, nothing written down that is not
//! measured.
//!
//! What makes two machines the same is taken from one the daemon has booted: program, board,
//! accelerator, CPU, memory, firmware and kernel line. So the comparison stays fair when the
//! engine's choices change, and on hosts with KVM. Disk, sockets and network are spelled here.
//!
//! Made before the clock starts: directory, overlay (`qemu-img`), the TAP. In the clock: the
//! process, QEMU's own start, then boot or device state, the handshake, the greeting.

mod board;
mod pages;
mod qmp;
mod saved;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bhatti_guest_client::{ExecEvent, ExecSpec, Guest, Mode};
use bhatti_net::{NetConfig, Networks, guest_mac, guest_subnet, host_nameservers};
use bhatti_types::EngineId;
use bhatti_wire::message::{Configure, Network};
use camino::{Utf8Path, Utf8PathBuf};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::net::UnixStream;

use board::{Board, Start};
use qmp::Qmp;
pub(crate) use saved::{Medium, Saved, Written};

/// Longer than a boot takes on two busy cores under software emulation.
const DEADLINE: Duration = Duration::from_secs(90);
/// The user index in a network of our own, and the guest's last octet there.
const USER: u32 = 7;
const HOST_PART: u8 = 2;

/// Names in a machine's directory.
const AGENT_SOCKET: &str = "agent.sock";
const QMP_SOCKET: &str = "qmp.sock";
const DISK: &str = "root.qcow2";
const LOG: &str = "qemu.log";
/// How much of what QEMU said is of interest.
const LOG_TAIL: usize = 1000;

/// Starts machines by hand.
pub(crate) struct Bench {
    program: PathBuf,
    board: Board,
    kernel: Utf8PathBuf,
    initramfs: Utf8PathBuf,
    image: Utf8PathBuf,
    scratch: Utf8PathBuf,
    networks: Networks,
}

impl Bench {
    /// Machines like the one the daemon has booted as process `pid`, from the files in its
    /// `data_dir`.
    pub(crate) async fn like(pid: i32, data_dir: &Utf8Path, scratch: &Utf8Path) -> Result<Self> {
        let proc = |name| format!("/proc/{pid}/{name}");
        let cmdline = fs::read(proc("cmdline")).context("cannot read the VMM's command line")?;
        let program = fs::read_link(proc("exe")).context("cannot find the VMM's program")?;
        let config = NetConfig { prefix: "bare-".to_owned(), ..NetConfig::default() };
        let networks = Networks::open(config).await.context("cannot open a network")?;
        // The network is made now, and not within what is measured.
        let tap = networks.open_tap(USER, &EngineId::random()).await;
        drop(tap.context("cannot make a network")?);
        Ok(Self {
            program,
            board: Board::parse(&cmdline)?.seen_from_outside(&proc("root")),
            kernel: data_dir.join("kernel/vmlinux"),
            initramfs: data_dir.join("kernel/initramfs.cpio"),
            image: data_dir.join("images").join(bhatti_testkit::image_file("minimal")),
            scratch: scratch.to_owned(),
            networks,
        })
    }

    /// Boots one machine, gives it its identity, and says how long that took.
    pub(crate) async fn boot(&self) -> Result<(Bare, Times)> {
        let prepared = self.prepare("raw", &self.image).await?;
        let started = Instant::now();
        let mut starting = self.start(prepared, None)?;
        let guest = starting.within(Starting::greet(Mode::FirstBoot)).await?;
        let first_reply = started.elapsed();
        let bare = starting.with(guest, None);
        bare.configure().await?;
        Ok((bare, Times { first_reply, configured: started.elapsed() }))
    }

    /// What a machine that continues `saved` needs before it can be started.
    pub(crate) async fn ready(&self, saved: &Saved) -> Result<Ready> {
        Ok(Ready(self.prepare("qcow2", &saved.disk()).await?))
    }

    /// Continues a saved machine. It has greeted, and is whoever it was.
    pub(crate) async fn restore(&self, ready: Ready, saved: &Saved) -> Result<(Bare, Restored)> {
        let state = saved.devices()?;
        let memory = saved.memory()?;
        let started = Instant::now();
        let mut starting = self.start(ready.0, Some(memory))?;
        let socket = starting.within(Starting::connect(QMP_SOCKET)).await?;
        let loaded = async {
            let mut qmp = Qmp::greet(socket).await?;
            qmp.load_devices(&state).await?;
            qmp.go_on().await?;
            Ok::<_, anyhow::Error>(qmp)
        };
        let qmp = loaded.await.with_context(|| format!("QEMU says: {}", starting.log()))?;
        let guest = starting.within(Starting::greet(Mode::Reconnect)).await?;
        let first_reply = started.elapsed();
        Ok((starting.with(guest, Some(qmp)), Restored { started, first_reply }))
    }

    /// What a machine over that disk needs before it can be started.
    async fn prepare(&self, format: &str, below: &Utf8Path) -> Result<Prepared> {
        let id = EngineId::random();
        let dir = tempfile::Builder::new().prefix("bare-").tempdir_in(&self.scratch)?;
        let path = Utf8PathBuf::try_from(dir.path().to_owned())?;
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", format, "-b", below.as_str()])
            .arg(path.join(DISK))
            .status()
            .context("cannot run qemu-img")?;
        ensure!(made.success(), "qemu-img failed: {made}");
        let tap = self.networks.open_tap(USER, &id).await.context("cannot open a TAP")?;
        let identity = Self::identity(&guest_mac(&id))?;
        Ok(Prepared { dir, path, tap, mac: guest_mac(&id), identity })
    }

    /// Starts the process. Without `memory` it boots.
    fn start(&self, prepared: Prepared, memory: Option<OwnedFd>) -> Result<Starting> {
        let Prepared { dir, path, tap, mac, identity } = prepared;
        let start = memory.as_ref().map_or(Start::Zero, |file| Start::File(file.as_raw_fd()));
        let mut command = self.command(&path, &tap, &mac, start);
        // The child inherits them. They are closed before anything else is started here.
        for inherited in [Some(&tap), memory.as_ref()].into_iter().flatten() {
            fcntl(inherited.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // It complains that /dev/zero has no length, which is of no interest to anybody.
        command.stderr(fs::File::create(path.join(LOG))?);
        let child = command.spawn().context("cannot start QEMU by hand")?;
        Ok(Starting { process: Process(child), dir, path, identity })
    }

    fn command(&self, path: &Utf8Path, tap: &OwnedFd, mac: &str, start: Start) -> Command {
        let mut command = Command::new(&self.program);
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
            .args(["-chardev", &socket("qmp", QMP_SOCKET), "-mon", "chardev=qmp,mode=control"])
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
            .arg(format!("virtio-net-device,netdev=net,mac={mac}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// What the daemon would tell the guest.
    fn identity(mac: &str) -> Result<Configure> {
        let subnet = guest_subnet(USER)?;
        let [a, b, c, _] = subnet.network().octets();
        let network = Network {
            address: format!("{a}.{b}.{c}.{HOST_PART}"),
            prefix_len: u32::from(subnet.prefix_len()),
            gateway: format!("{a}.{b}.{c}.1"),
            nameservers: host_nameservers(),
            mac: mac.to_owned(),
        };
        let hostname = "bare".to_owned();
        Ok(Configure { hostname, network: Some(network), ..Configure::default() })
    }
}

/// How QEMU listens on a socket: it waits for nobody.
const LISTEN: &str = "server=on,wait=off";

/// From the start of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// The agent has answered the greeting.
    pub(crate) first_reply: Duration,
    /// It has its name and address.
    pub(crate) configured: Duration,
}

/// The same of a machine that was continued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    pub(crate) started: Instant,
    pub(crate) first_reply: Duration,
}

struct Prepared {
    dir: tempfile::TempDir,
    path: Utf8PathBuf,
    tap: OwnedFd,
    mac: String,
    identity: Configure,
}

/// A machine that can be started; its clock is not running yet.
pub(crate) struct Ready(Prepared);

/// A process whose guest has not answered yet.
struct Starting {
    process: Process,
    dir: tempfile::TempDir,
    path: Utf8PathBuf,
    identity: Configure,
}

impl Starting {
    async fn within<T>(&mut self, step: impl AsyncFnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let done = tokio::time::timeout(DEADLINE, step(self)).await;
        done.context("a bare machine did not answer in time")?
    }

    /// Connects to one of its sockets as soon as QEMU listens.
    fn connect(name: &'static str) -> impl AsyncFnOnce(&mut Self) -> Result<UnixStream> {
        async move |this: &mut Self| this.socket(name).await
    }

    /// Connects to the agent, and exchanges greetings.
    fn greet(mode: Mode) -> impl AsyncFnOnce(&mut Self) -> Result<Guest> {
        async move |this: &mut Self| {
            let (guest, driver) = Guest::connect(this.socket(AGENT_SOCKET).await?, mode).await?;
            tokio::spawn(driver);
            guest.hello(env!("CARGO_PKG_VERSION")).await?;
            Ok(guest)
        }
    }

    async fn socket(&mut self, name: &str) -> Result<UnixStream> {
        let socket = self.path.join(name);
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_not_yet(&error) => {}
                Err(error) => return Err(error).context("cannot connect to a bare machine"),
            }
            if let Some(status) = self.process.0.try_wait()? {
                bail!("QEMU started by hand ended: {status}: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The end of what QEMU said.
    fn log(&self) -> String {
        let said = fs::read(self.path.join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&said[said.len().saturating_sub(LOG_TAIL)..]).into_owned()
    }

    fn with(self, guest: Guest, qmp: Option<Qmp>) -> Bare {
        let Self { process, dir, path, identity } = self;
        Bare { guest, qmp, process, path, identity, dir }
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// A machine started by hand. Ends when dropped.
pub(crate) struct Bare {
    pub(crate) guest: Guest,
    /// Connected when it is needed.
    qmp: Option<Qmp>,
    process: Process,
    path: Utf8PathBuf,
    identity: Configure,
    dir: tempfile::TempDir,
}

impl Bare {
    /// Gives it a name and an address of its own.
    pub(crate) async fn configure(&self) -> Result<()> {
        Ok(self.guest.configure(self.identity.clone()).await?)
    }

    /// Runs `true` to its end.
    pub(crate) async fn exec_true(&self) -> Result<()> {
        crate::same::exec_true(&self.guest).await
    }

    /// Runs a command to its end. Returns how long after `since` the first byte of its output
    /// came.
    pub(crate) async fn first_byte(&self, since: Instant, argv: &[&str]) -> Result<Duration> {
        let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
        let timeout = Some(Duration::from_secs(300));
        let spec = ExecSpec { argv, timeout, ..ExecSpec::default() };
        let mut running = self.guest.exec(spec).await?;
        let (mut first, mut code) = (None, None);
        while let Some(event) = running.next().await? {
            match event {
                ExecEvent::Stdout(_) => first = first.or_else(|| Some(since.elapsed())),
                ExecEvent::Stderr(_) => {}
                ExecEvent::Exit { code: exit, .. } => code = Some(exit),
            }
        }
        ensure!(code == Some(0), "a command over the bare link exited with {code:?}");
        first.context("a command over the bare link printed nothing")
    }

    /// Stops its virtual CPUs.
    pub(crate) async fn pause(&mut self) -> Result<()> {
        self.qmp().await?.stop().await
    }

    /// Lets it run on; its clock is behind.
    pub(crate) async fn go_on(&mut self) -> Result<()> {
        self.qmp().await?.go_on().await
    }

    async fn qmp(&mut self) -> Result<&mut Qmp> {
        if self.qmp.is_none() {
            let socket = UnixStream::connect(self.path.join(QMP_SOCKET)).await?;
            self.qmp = Some(Qmp::greet(socket).await?);
        }
        self.qmp.as_mut().context("it was just connected")
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
