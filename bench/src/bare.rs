//! The bare engine: a VMM started by hand, and the link to its agent. No daemon, no store, no
//! control group, no namespace for the VMM, nothing written down that is not measured.
//!
//! What makes two machines the same is taken from one the daemon has booted, and which VMM it is: of
//! QEMU ([`qemu`]) board, accelerator, CPU, memory, firmware and kernel line; of Firecracker
//! ([`firecracker`]) its configuration and its filter. So the comparison stays fair when the engine's
//! choices change, and on hosts with KVM. Disk, sockets and network are spelled here.
//!
//! Made before the clock starts: directory, disk, the TAP. In the clock: the process, the VMM's own
//! start, then boot or device state, the handshake, the greeting. How long the disk took is told
//! beside it: where an engine has no layers, a copy of it is part of every create.

mod api;
mod board;
mod firecracker;
mod pages;
mod qemu;
mod qmp;
mod saved;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bhatti_guest_client::{ExecEvent, ExecSpec, Guest, GuestError, Mode};
use bhatti_net::plan::Guest as Entry;
use bhatti_net::{Denied, Directory, NetConfig, Networks, guest_mac, guest_subnet};
use bhatti_types::EngineId;
use bhatti_wire::message::{Configure, Network};
use camino::{Utf8Path, Utf8PathBuf};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::net::UnixStream;

use api::Api;
use firecracker::Firecracker;
use qemu::Qemu;
use qmp::Qmp;
pub(crate) use saved::{Medium, Saved, Written};

/// Longer than a boot takes on two busy cores under software emulation.
const DEADLINE: Duration = Duration::from_secs(90);
/// The user index in a network of our own, and the guest's last octet there.
const USER: u32 = 7;
const HOST_PART: u8 = 2;

/// Names in a machine's directory. The link of QEMU's machines is the first socket, Firecracker has it
/// behind the same one.
const AGENT_SOCKET: &str = "agent.sock";
const CONTROL_SOCKET: &str = "control.sock";
const LOG: &str = "vmm.log";
/// How much of what a VMM said is of interest.
const LOG_TAIL: usize = 1000;

/// Starts machines by hand.
pub(crate) struct Bench {
    program: PathBuf,
    vmm: Vmm,
    image: Utf8PathBuf,
    scratch: Utf8PathBuf,
    networks: Networks,
}

/// Machines that are spoken to over their link alone: their networks let nothing through.
struct Nobody;

impl Directory for Nobody {
    fn guests(
        &self,
        _: u32,
    ) -> Result<BTreeMap<Ipv4Addr, Entry>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(BTreeMap::new())
    }

    fn denied(&self, _: u32, _: &Entry, _: &Denied) {}
}

/// Which VMM it is, and what all its machines have in common.
enum Vmm {
    Qemu(Qemu),
    Firecracker(Firecracker),
}

/// A connection to a VMM that obeys.
enum Control {
    Qemu(Qmp),
    Firecracker(Api),
}

impl Bench {
    /// Machines like the one the daemon has booted as process `pid` in `dir`, from the files in the
    /// daemon's `data_dir`.
    pub(crate) async fn like(
        pid: i32,
        dir: &Path,
        data_dir: &Utf8Path,
        scratch: &Utf8Path,
    ) -> Result<Self> {
        let program = program(pid)?;
        let kernel = data_dir.join("kernel/vmlinux");
        let initramfs = data_dir.join("kernel/initramfs.cpio");
        let vmm = match program.file_name() {
            Some(name) if name == "firecracker" => {
                Vmm::Firecracker(Firecracker::like(pid, dir, &kernel, &initramfs).await?)
            }
            _ => Vmm::Qemu(Qemu::like(pid, kernel, initramfs)?),
        };
        let config = NetConfig { prefix: "bare-".to_owned(), ..NetConfig::default() };
        let networks =
            Networks::open(config, Arc::new(Nobody)).await.context("cannot open a network")?;
        // The network is made now, and not within what is measured.
        let tap = networks.open_tap(USER, &EngineId::random()).await;
        drop(tap.context("cannot make a network")?);
        let image = data_dir.join("images").join(bhatti_testkit::image_file("minimal"));
        Ok(Self { program, vmm, image, scratch: scratch.to_owned(), networks })
    }

    /// Boots one machine, gives it its identity, and says how long that took.
    pub(crate) async fn boot(&self) -> Result<(Bare, Times)> {
        let prepared = self.prepare(None).await?;
        let disk = prepared.took;
        let started = Instant::now();
        let mut starting = self.start(prepared, None)?;
        let (control, runs) = match &self.vmm {
            // It runs its machine as soon as it can, and tells nobody.
            Vmm::Qemu(_) => (None, None),
            Vmm::Firecracker(firecracker) => {
                let api = starting.within(async |this| firecracker.boot(this).await).await?;
                (Some(api), Some(started.elapsed()))
            }
        };
        let guest = starting.within(Starting::greet(Mode::FirstBoot)).await?;
        let first_reply = started.elapsed();
        let bare = starting.with(guest, control.map(Control::Firecracker));
        bare.configure().await?;
        Ok((bare, Times { disk, runs, first_reply, configured: started.elapsed() }))
    }

    /// What a machine that continues `saved` needs before it can be started.
    pub(crate) async fn ready(&self, saved: &Saved) -> Result<Ready> {
        Ok(Ready(self.prepare(Some(saved)).await?))
    }

    /// Continues a saved machine. It has greeted, and is whoever it was.
    pub(crate) async fn restore(&self, ready: Ready, saved: &Saved) -> Result<(Bare, Restored)> {
        let disk = ready.0.took;
        let started = Instant::now();
        let mut starting = self.start(ready.0, Some(saved))?;
        let loaded = starting.within(async |this| {
            Ok(match &self.vmm {
                Vmm::Qemu(qemu) => Control::Qemu(qemu.load(this, saved).await?),
                Vmm::Firecracker(_) => Control::Firecracker(Firecracker::load(this, saved).await?),
            })
        });
        let loaded = loaded.await;
        let control = loaded.with_context(|| format!("the VMM says: {}", starting.log()))?;
        let guest = starting.within(Starting::greet(Mode::Reconnect)).await?;
        let first_reply = started.elapsed();
        let restored = Restored { disk, started, first_reply };
        Ok((starting.with(guest, Some(control)), restored))
    }

    /// What a machine needs before it can be started, to boot or over the disk of a saved one.
    async fn prepare(&self, saved: Option<&Saved>) -> Result<Prepared> {
        let id = EngineId::random();
        let dir = tempfile::Builder::new().prefix("bare-").tempdir_in(&self.scratch)?;
        let path = Utf8PathBuf::try_from(dir.path().to_owned())?;
        let begun = Instant::now();
        match &self.vmm {
            Vmm::Qemu(_) => qemu::make_disk(&path, &self.image, saved)?,
            Vmm::Firecracker(_) => firecracker::make_disk(&path, &self.image, saved)?,
        }
        let took = begun.elapsed();
        let tap = match &self.vmm {
            Vmm::Qemu(_) => {
                let tap = self.networks.open_tap(USER, &id).await;
                Tap::Open(tap.context("cannot open a TAP")?)
            }
            Vmm::Firecracker(_) => Tap::Named(firecracker::NamedTap::new(&id)?),
        };
        let mac = guest_mac(&id);
        let identity = Self::identity(&mac)?;
        Ok(Prepared { dir, path, tap, mac, identity, took })
    }

    /// Starts the process. Without `saved` it is to boot.
    fn start(&self, prepared: Prepared, saved: Option<&Saved>) -> Result<Starting> {
        let Prepared { dir, path, tap, mac, identity, .. } = prepared;
        let mut command = Command::new(&self.program);
        let memory = match &self.vmm {
            Vmm::Qemu(qemu) => {
                let memory = saved.map(Saved::memory).transpose()?;
                qemu.arguments(&mut command, &path, tap.open()?, &mac, memory.as_ref());
                memory
            }
            Vmm::Firecracker(firecracker) => {
                firecracker.arguments(&mut command);
                None
            }
        };
        // The child inherits them. They are closed before anything else is started here.
        for inherited in [tap.open().ok(), memory.as_ref()].into_iter().flatten() {
            fcntl(inherited.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // QEMU complains that /dev/zero has no length, which is of no interest to anybody.
        command.stderr(fs::File::create(path.join(LOG))?).current_dir(&path);
        let child = command.spawn().context("cannot start a VMM by hand")?;
        let tap = match tap {
            Tap::Open(_) => None,
            Tap::Named(tap) => Some(tap),
        };
        Ok(Starting { process: Process(child), dir, path, mac, tap, identity })
    }

    /// What the daemon would tell the guest.
    fn identity(mac: &str) -> Result<Configure> {
        let subnet = guest_subnet(USER)?;
        let [a, b, c, _] = subnet.network().octets();
        let network = Network {
            address: format!("{a}.{b}.{c}.{HOST_PART}"),
            prefix_len: u32::from(subnet.prefix_len()),
            gateway: format!("{a}.{b}.{c}.1"),
            nameservers: vec![subnet.at(1).to_string()],
            mac: mac.to_owned(),
        };
        let hostname = "bare".to_owned();
        Ok(Configure { hostname, network: Some(network), ..Configure::default() })
    }
}

/// The program of a process, where we can start it too.
pub(crate) fn program(pid: i32) -> Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).context("cannot find the VMM's program")
}

/// From the start of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Before that: its disk was made.
    pub(crate) disk: Duration,
    /// The VMM has said that its machine runs, if it is one that says so.
    pub(crate) runs: Option<Duration>,
    /// The agent has answered the greeting.
    pub(crate) first_reply: Duration,
    /// It has its name and address.
    pub(crate) configured: Duration,
}

/// The same of a machine that was continued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    pub(crate) disk: Duration,
    pub(crate) started: Instant,
    pub(crate) first_reply: Duration,
}

struct Prepared {
    dir: tempfile::TempDir,
    path: Utf8PathBuf,
    tap: Tap,
    mac: String,
    identity: Configure,
    /// To make its disk.
    took: Duration,
}

/// How a VMM gets its TAP.
enum Tap {
    /// Inherited.
    Open(OwnedFd),
    /// It opens it itself.
    Named(firecracker::NamedTap),
}

impl Tap {
    fn open(&self) -> Result<&OwnedFd> {
        match self {
            Self::Open(tap) => Ok(tap),
            Self::Named(_) => bail!("it is opened by its name"),
        }
    }
}

/// A machine that can be started; its clock is not running yet.
pub(crate) struct Ready(Prepared);

/// A process whose guest has not answered yet.
struct Starting {
    process: Process,
    dir: tempfile::TempDir,
    path: Utf8PathBuf,
    mac: String,
    tap: Option<firecracker::NamedTap>,
    identity: Configure,
}

impl Starting {
    async fn within<T>(&mut self, step: impl AsyncFnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let done = tokio::time::timeout(DEADLINE, step(self)).await;
        done.context("a bare machine did not answer in time")?
    }

    /// Connects to the agent, and exchanges greetings.
    fn greet(mode: Mode) -> impl AsyncFnOnce(&mut Self) -> Result<Guest> {
        async move |this: &mut Self| {
            until_kept(async || {
                let (guest, driver) = match this.tap {
                    None => Guest::connect(this.socket(AGENT_SOCKET).await?, mode).await?,
                    Some(_) => Guest::connect(firecracker::link(this).await?, mode).await?,
                };
                tokio::spawn(driver);
                guest.hello(env!("CARGO_PKG_VERSION")).await?;
                Ok(guest)
            })
            .await
        }
    }

    /// Connects to one of its sockets as soon as the VMM listens.
    async fn socket(&mut self, name: &str) -> Result<UnixStream> {
        let socket = self.path.join(name);
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_not_yet(&error) => {}
                Err(error) => return Err(error).context("cannot connect to a bare machine"),
            }
            if let Some(status) = self.process.0.try_wait()? {
                bail!("the VMM started by hand ended: {status}: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The end of what the VMM said.
    fn log(&self) -> String {
        let said = fs::read(self.path.join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&said[said.len().saturating_sub(LOG_TAIL)..]).into_owned()
    }

    fn with(self, guest: Guest, control: Option<Control>) -> Bare {
        let Self { process, dir, path, tap, identity, .. } = self;
        Bare { guest, control, process, _tap: tap, path, identity, dir }
    }
}

/// As often as the daemon opens a link that broke again.
const TRIES: u32 = 4;

/// A link that the guest keeps. One that goes on drops what it has, also what was just made and has said
/// its first byte.
async fn until_kept<T>(mut greet: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match greet().await {
            Err(error) if matches!(error.downcast_ref(), Some(GuestError::LinkLost(_))) => {}
            outcome => return outcome,
        }
    }
    greet().await
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// A machine started by hand. Ends when dropped.
pub(crate) struct Bare {
    pub(crate) guest: Guest,
    /// QEMU's is connected when it is needed.
    control: Option<Control>,
    process: Process,
    /// Goes after the process.
    _tap: Option<firecracker::NamedTap>,
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
        match self.control().await? {
            Control::Qemu(qmp) => qmp.stop().await,
            Control::Firecracker(api) => firecracker::pause(api).await,
        }
    }

    /// Lets it run on; its clock is behind.
    pub(crate) async fn go_on(&mut self) -> Result<()> {
        match self.control().await? {
            Control::Qemu(qmp) => qmp.go_on().await,
            Control::Firecracker(api) => firecracker::go_on(api).await,
        }
    }

    async fn control(&mut self) -> Result<&mut Control> {
        if self.control.is_none() {
            let socket = UnixStream::connect(self.path.join(CONTROL_SOCKET)).await?;
            self.control = Some(Control::Qemu(Qmp::greet(socket).await?));
        }
        self.control.as_mut().context("it was just connected")
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

    #[tokio::test]
    async fn a_link_that_is_lost_is_made_again() {
        // How many are lost before one is kept, and how many are made then.
        for (lost, made) in [(0, Some(1)), (3, Some(4)), (4, None)] {
            let mut tried = 0;
            let kept = until_kept(async || {
                tried += 1;
                ensure!(tried > lost, GuestError::LinkLost(None));
                Ok(tried)
            });
            assert_eq!(kept.await.ok(), made, "{lost}");
        }
        let mut tried = 0;
        let other = until_kept(async || {
            tried += 1;
            Err::<(), _>(GuestError::TooManyOperations.into())
        });
        other.await.unwrap_err();
        assert_eq!(tried, 1, "anything else is an answer");
    }
}
