//! The lifecycle on simulated machines, with a pretended agent on a real link.

mod crash;
mod create;
mod dial;
mod foreign;
mod golden;
mod hold;
mod life;
mod recovery;
mod sleep;
mod snapshot;
mod told;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine::{DiskFormat, RootDisk};
use bhatti_engine_sim::{Call, SimEngine, SimHost};
use bhatti_storage::Layout;
use bhatti_store::{Db, ImageRow, NewUser, SandboxRow, Store, UserRow};
use bhatti_types::{EngineId, ImageId, Mib, Phase};
use bhatti_wire::message::{
    ActivityReply, Configure, ErrorKind, Failure, HelloReply, Operation, PROTOCOL_VERSION, Reply,
    Request,
};
use camino::Utf8PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) use life::Life;

use crate::{
    CreateSpec, Created, Deps, Events, FileContent, GoldenLimits, PatchSpec, Sandboxes,
    ServiceError, Settings, Taps, Tasks, Thermal,
};

/// What the pretended agents were told, and how they are to behave.
struct Agents {
    configured: Mutex<Vec<Configure>>,
    files: Mutex<Vec<String>>,
    refuse_files: Mutex<bool>,
    refuse_dials: Mutex<bool>,
    /// They answer for a file when they are told to.
    slow_files: Mutex<Option<Arc<tokio::sync::Notify>>>,
    refuse_identity: Mutex<bool>,
    /// What they are asked to hold.
    holds: Mutex<Holds>,
    /// When they were told to hold and when they were greeted, among the engine's calls.
    said: Mutex<Vec<(usize, Step)>>,
    /// It takes no greeting any more.
    mute: Mutex<bool>,
    /// So many greetings end without an answer.
    stumbles: AtomicUsize,
    /// How much its guests use of a CPU, in percent. `None`: it does not say.
    busy: Mutex<Option<u64>>,
    /// How often it was asked for that.
    questions: AtomicUsize,
    /// Where the machines are, for an agent that is told to power off.
    host: OnceLock<SimHost>,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            configured: Mutex::default(),
            files: Mutex::default(),
            refuse_files: Mutex::default(),
            refuse_dials: Mutex::default(),
            slow_files: Mutex::default(),
            refuse_identity: Mutex::default(),
            holds: Mutex::default(),
            said: Mutex::default(),
            mute: Mutex::default(),
            stumbles: AtomicUsize::default(),
            busy: Mutex::new(Some(0)),
            questions: AtomicUsize::default(),
            host: OnceLock::default(),
        }
    }
}

impl Agents {
    fn serve(self: &Arc<Self>, id: EngineId, stream: DuplexStream) {
        let agents = self.clone();
        tokio::spawn(async move {
            let on_stream = |stream| {
                let (agents, id) = (agents.clone(), id.clone());
                tokio::spawn(async move { agents.answer(&id, stream).await });
            };
            // It ends with the machine or the daemon; there is nobody to tell.
            bhatti_link::serve(stream, on_stream).await.ok();
        });
    }

    fn note(&self, step: Step) {
        let calls = self.host.get().map_or(0, |host| host.calls().len());
        self.said.lock().unwrap().push((calls, step));
    }

    fn become_sandbox(&self, configure: Configure) -> Reply {
        if *self.refuse_identity.lock().unwrap() {
            let kind = ErrorKind::Other.into();
            return Reply { failure: Some(Failure { kind, message: "no such device".to_owned() }) };
        }
        self.configured.lock().unwrap().push(configure);
        Reply { failure: None }
    }

    async fn answer(self: Arc<Self>, id: &EngineId, mut stream: bhatti_link::Stream) -> Option<()> {
        let request: Request = bhatti_link::read_message(&mut stream).await.ok()??;
        let mut reply = Reply { failure: None };
        match request.operation? {
            Operation::Hello(hello) => {
                if *self.mute.lock().unwrap() || less(&self.stumbles) {
                    return None;
                }
                self.note(Step::Hello);
                let applied = hello.identity.map(|identity| self.become_sandbox(identity));
                let protocol = PROTOCOL_VERSION;
                let hello = HelloReply { protocol, applied, ..HelloReply::default() };
                bhatti_link::write_message(&mut stream, &hello).await.ok()?;
                return stream.shutdown().await.ok();
            }
            Operation::Configure(configure) => reply = self.become_sandbox(configure),
            Operation::WriteFile(file) => {
                let mut content = Vec::new();
                stream.read_to_end(&mut content).await.ok()?;
                self.files.lock().unwrap().push(file.path);
                let slow = self.slow_files.lock().unwrap().clone();
                if let Some(told) = slow {
                    told.notified().await;
                }
                if *self.refuse_files.lock().unwrap() {
                    let kind = ErrorKind::NoSpace.into();
                    reply.failure = Some(Failure { kind, message: "disk full".to_owned() });
                }
            }
            Operation::Dial(_) if *self.refuse_dials.lock().unwrap() => {
                let kind = ErrorKind::Refused.into();
                reply.failure = Some(Failure { kind, message: "nobody listens".to_owned() });
            }
            Operation::Dial(_) => {
                bhatti_link::write_message(&mut stream, &reply).await.ok()?;
                let (mut from, mut to) = tokio::io::split(stream);
                return tokio::io::copy(&mut from, &mut to).await.ok().map(drop);
            }
            Operation::PowerOff(_) => {
                self.host.get()?.power_off(id);
            }
            Operation::Activity(_) => {
                self.questions.fetch_add(1, Ordering::Relaxed);
                let busy = (*self.busy.lock().unwrap())?;
                let reply = ActivityReply {
                    since_millis: 10_000,
                    busy_millis: busy * 100,
                    ..ActivityReply::default()
                };
                bhatti_link::write_message(&mut stream, &reply).await.ok()?;
                return stream.shutdown().await.ok();
            }
            Operation::Quiesce(_) => {}
            Operation::Hold(_) => {
                self.note(Step::Hold);
                let holds = *self.holds.lock().unwrap();
                let kind = match holds {
                    Holds::Everything => None,
                    Holds::Unknown => Some(ErrorKind::Unsupported),
                    Holds::NotAll => Some(ErrorKind::Other),
                    Holds::Never => std::future::pending().await,
                };
                let failure = |kind| Failure { kind, message: "it runs on".to_owned() };
                reply.failure = kind.map(i32::from).map(failure);
            }
            // Nothing in here asks for more.
            _ => return None,
        }
        bhatti_link::write_message(&mut stream, &reply).await.ok()?;
        stream.shutdown().await.ok()
    }
}

/// What an agent that is asked to hold everything does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Holds {
    #[default]
    Everything,
    /// It is from before there was the question.
    Unknown,
    NotAll,
    /// It does not answer.
    Never,
}

/// What matters of the order in which a machine stands and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Hold,
    Hello,
    Engine(Call),
}

/// Whether there was one left, which there is not any more.
fn less(left: &AtomicUsize) -> bool {
    let less = |left: usize| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

/// Counts what a real network would have to do.
#[derive(Default)]
struct NoNetwork {
    released: AtomicUsize,
    applied: AtomicUsize,
    broken: Mutex<bool>,
    /// So many calls fail.
    stumbles: AtomicUsize,
    leads: Mutex<Leads>,
    /// How often a guest was dialled.
    dialled: AtomicUsize,
}

/// Where connections to guests go.
#[derive(Clone, Copy, Default)]
enum Leads {
    /// There is no network.
    #[default]
    NoNetwork,
    /// To that port of the test.
    To(u16),
    /// Nobody answers.
    Nowhere,
    /// It refuses, after a while.
    Late(Duration),
}

#[async_trait]
impl Taps for NoNetwork {
    async fn open_tap(
        &self,
        _subnet: u32,
        _id: &EngineId,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
        if less(&self.stumbles) || *self.broken.lock().unwrap() {
            Err("no bridge".into())
        } else {
            Ok(None)
        }
    }

    async fn open_detached(
        &self,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(None)
    }

    async fn apply(&self, _subnet: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if less(&self.stumbles) {
            return Err("no nft".into());
        }
        self.applied.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn denied(
        &self,
        _: u32,
        _: std::net::Ipv4Addr,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        Ok(0)
    }

    async fn dial(
        &self,
        _: u32,
        _: &EngineId,
        _: std::net::Ipv4Addr,
        _: u16,
    ) -> Result<Option<tokio::net::TcpStream>, Box<dyn std::error::Error + Send + Sync>> {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        let leads = *self.leads.lock().unwrap();
        match leads {
            Leads::NoNetwork => Ok(None),
            Leads::To(port) => Ok(Some(tokio::net::TcpStream::connect(("127.0.0.1", port)).await?)),
            Leads::Late(how_long) => {
                tokio::time::sleep(how_long).await;
                Err("refused".into())
            }
            Leads::Nowhere => std::future::pending().await,
        }
    }

    async fn release(&self, _subnet: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.released.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A pretended host that daemons come and go on.
struct House {
    scratch: tempfile::TempDir,
    host: SimHost,
    agents: Arc<Agents>,
    network: Arc<NoNetwork>,
    thermal: Thermal,
    goldens: GoldenLimits,
    fingerprint: &'static str,
    boot_timeout: Duration,
}

/// One daemon's sandboxes on it.
struct Daemon {
    sandboxes: Sandboxes,
    db: Db,
    tasks: Tasks,
    layout: Arc<Layout>,
}

/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(60);

/// No golden snapshots.
const BOOT: GoldenLimits = GoldenLimits { count: 0, bytes: 0 };

impl House {
    /// Where every create boots, and nothing falls asleep within a test.
    fn new() -> Self {
        // In memory where there is such a place: what is tested here is no medium.
        let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        std::fs::write(scratch.path().join("vmlinux"), "kernel").unwrap();
        std::fs::write(scratch.path().join("initramfs"), "initramfs").unwrap();
        let agents = Arc::new(Agents::default());
        let guests = agents.clone();
        let host = SimHost::new(Arc::new(move |id, stream| guests.serve(id, stream)));
        agents.host.set(host.clone()).ok();
        let (thermal, goldens) = (Thermal::default(), BOOT);
        let network = Arc::default();
        let boot_timeout = Duration::from_secs(10);
        Self { scratch, host, agents, network, thermal, goldens, fingerprint: "sim", boot_timeout }
    }

    fn with_goldens(count: usize) -> Self {
        Self { goldens: GoldenLimits { count, bytes: 1 << 30 }, ..Self::new() }
    }

    /// Where sandboxes sleep after so many milliseconds.
    fn sleepy(warm: Option<u64>, cold: Option<u64>) -> Self {
        let [warm_after, cold_after] = [warm, cold].map(|after| after.map(Duration::from_millis));
        Self { thermal: Thermal { warm_after, cold_after }, ..Self::new() }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.scratch.path().join(name)).unwrap()
    }

    async fn daemon(&self) -> Daemon {
        self.daemon_of(Life::default()).await.unwrap()
    }

    /// `None`: its life was too short to come up.
    async fn daemon_of(&self, life: Life) -> Option<Daemon> {
        let layout = Arc::new(Layout::open(&self.path("data")).unwrap());
        let image = layout.images().join("rootfs-minimal-amd64.ext4");
        if !image.exists() {
            let mut content = vec![0; 8192];
            content[1080..1082].copy_from_slice(&[0x53, 0xef]);
            std::fs::write(&image, content).unwrap();
        }
        let mut store = Store::open(layout.database().as_std_path()).unwrap();
        let row = ImageRow {
            id: ImageId::tier("minimal", "amd64"),
            owner: None,
            name: "minimal".to_owned(),
            source: "built-in".to_owned(),
            file: image,
            size: Mib(1),
            created_at: jiff::Timestamp::now(),
        };
        store.set_builtin_images(&[row]).unwrap();
        let db = Db::start(store).unwrap();
        let mut tasks = Tasks::default();
        tasks.life = life.clone();
        let engine = SimEngine::new(self.host.clone()).with_fingerprint(self.fingerprint);
        let recovered = Sandboxes::recover(Deps {
            engine: Arc::new(engine),
            taps: self.network.clone(),
            layout: layout.clone(),
            db: db.clone(),
            settings: Settings {
                kernel: self.path("vmlinux"),
                initramfs: self.path("initramfs"),
                default_image: "minimal".to_owned(),
                uids: (nix::unistd::getuid().as_raw(), 100),
                boot_timeout: self.boot_timeout,
                version: "test".to_owned(),
                thermal: self.thermal,
                goldens: self.goldens,
            },
            tasks: tasks.clone(),
            events: Events::start(db.clone()).0,
        });
        match life.guard(recovered).await {
            Some(sandboxes) => Some(Daemon { sandboxes: sandboxes.unwrap(), db, tasks, layout }),
            None => {
                bury(db, tasks, layout).await;
                None
            }
        }
    }

    /// Fails unless the host is as if no sandbox had ever been.
    async fn assert_nothing_left(&self, daemon: &Daemon) {
        assert!(self.host.running().is_empty(), "machines run");
        let (rows, _) = daemon.db.call(|store| store.all_sandboxes()).await.unwrap();
        assert_eq!(rows, [], "rows are left");
        for part in ["sandboxes", "bases", "frozen", "layers"] {
            assert_eq!(self.names(part), BTreeSet::new(), "{part} are left");
        }
    }

    /// What lies in a part of the data directory.
    fn names(&self, part: &str) -> BTreeSet<String> {
        let Ok(entries) = self.path("data").join(part).read_dir_utf8() else {
            return BTreeSet::new();
        };
        entries.map(|entry| entry.unwrap().file_name().to_owned()).collect()
    }

    /// How machines came to stand and to go on, in the order it happened.
    fn steps(&self) -> Vec<Step> {
        let mut said = self.agents.said.lock().unwrap().clone().into_iter().peekable();
        let mut steps = Vec::new();
        let calls = self.host.calls();
        for at in 0..=calls.len() {
            steps.extend(std::iter::from_fn(|| said.next_if(|(when, _)| *when <= at)).map(|s| s.1));
            let call = calls.get(at).copied();
            let wanted = [Call::Pause, Call::Save, Call::Resume, Call::Restore];
            steps.extend(call.filter(|call| wanted.contains(call)).map(Step::Engine));
        }
        steps
    }

    /// The only machine that runs.
    fn machine(&self) -> EngineId {
        let [id] = self.host.running().into_iter().collect::<Vec<_>>().try_into().unwrap();
        id
    }
}

/// Waits for what the tasks of a dead daemon sent elsewhere, and lets go of its directory.
async fn bury(db: Db, tasks: Tasks, layout: Arc<Layout>) {
    tasks.life.end();
    tasks.shut_down(Duration::from_secs(10)).await.unwrap();
    eventually("file operations end", async || Arc::strong_count(&layout) == 1).await;
    db.call(|_| Ok(())).await.unwrap();
}

/// Waits for a state.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Daemon {
    async fn user(&self, name: &str, max_sandboxes: u32) -> UserRow {
        let new =
            NewUser { name: name.to_owned(), max_sandboxes, max_cpus: 4, max_memory: Mib(4096) };
        self.db.call(move |store| store.create_user(&new)).await.unwrap().0
    }

    /// The user of a former daemon.
    async fn known(&self, user: &UserRow) -> UserRow {
        let id = user.id.clone();
        self.db.call(move |store| store.user(&id)).await.unwrap()
    }

    async fn row(&self, user: &UserRow, name: &str) -> SandboxRow {
        self.sandboxes.get(user, name).await.unwrap()
    }

    async fn phase(&self, user: &UserRow, name: &str) -> Phase {
        self.row(user, name).await.phase
    }

    /// Waits until the record says so too.
    async fn comes_to(&self, user: &UserRow, name: &str, phase: Phase) -> SandboxRow {
        let recorded = async || {
            let (id, key) = (user.id.clone(), name.to_owned());
            let row = self.db.call(move |store| store.find_sandbox(&id, &key)).await.unwrap();
            row.unwrap()
        };
        eventually(&format!("{name} is {phase}"), async || recorded().await.phase == phase).await;
        recorded().await
    }

    /// What the guest has on its disk, layer by layer.
    fn disk(row: &SandboxRow) -> String {
        let disk: RootDisk = serde_json::from_value(row.root_disk.clone().unwrap()).unwrap();
        if disk.format == DiskFormat::Raw {
            return std::fs::read_to_string(disk.file).unwrap();
        }
        // What another engine has left takes the place of the image.
        let taken_over = disk.base.iter().filter(|base| base.as_str().contains("/layers/"));
        let layers = taken_over.chain(&disk.layers).chain([&disk.file]);
        layers.map(|layer| std::fs::read_to_string(layer).unwrap()).collect()
    }

    /// Has the guest write to its disk.
    async fn write(&self, user: &UserRow, name: &str, text: &str) {
        use std::io::Write;
        let row = self.row(user, name).await;
        let disk: RootDisk = serde_json::from_value(row.root_disk.unwrap()).unwrap();
        let mut top = std::fs::File::options().append(true).open(disk.file).unwrap();
        top.write_all(text.as_bytes()).unwrap();
    }

    /// Ends it as a clean shutdown does.
    async fn stop(self) {
        drop(self.sandboxes);
        self.tasks.shut_down(Duration::from_secs(10)).await.unwrap();
        drop(self.layout);
    }

    /// Ends it as `kill -9` does.
    async fn die(self) {
        let Self { sandboxes, db, tasks, layout } = self;
        drop(sandboxes);
        bury(db, tasks, layout).await;
    }
}

fn named(name: &str) -> CreateSpec {
    CreateSpec { name: Some(name.parse().unwrap()), ..CreateSpec::default() }
}
