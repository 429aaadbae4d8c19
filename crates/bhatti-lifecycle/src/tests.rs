//! The lifecycle on simulated machines, with a pretended agent on a real link.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bhatti_engine_sim::{Call, Fault, SimEngine, SimHost};
use bhatti_storage::Layout;
use bhatti_store::{Db, ImageRow, NewUser, Store, UserRow};
use bhatti_types::{EngineId, ImageId, Mib, Phase};
use bhatti_wire::message::{
    ActivityReply, Configure, ErrorKind, Failure, HelloReply, Operation, PROTOCOL_VERSION, Reply,
    Request,
};
use camino::Utf8PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{
    CreateSpec, Created, Deps, FileContent, GoldenLimits, PatchSpec, Sandboxes, ServiceError,
    Settings, Taps, Tasks, Thermal,
};

/// What the pretended agents were told, and how they are to behave.
#[derive(Default)]
struct Agents {
    configured: Mutex<Vec<Configure>>,
    files: Mutex<Vec<String>>,
    refuse_files: Mutex<bool>,
    /// Where the machines are, for an agent that is told to power off.
    host: OnceLock<SimHost>,
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

    async fn answer(self: Arc<Self>, id: &EngineId, mut stream: bhatti_link::Stream) -> Option<()> {
        let request: Request = bhatti_link::read_message(&mut stream).await.ok()??;
        let mut reply = Reply { failure: None };
        match request.operation? {
            Operation::Hello(_) => {
                let hello = HelloReply { protocol: PROTOCOL_VERSION, ..HelloReply::default() };
                bhatti_link::write_message(&mut stream, &hello).await.ok()?;
                return stream.shutdown().await.ok();
            }
            Operation::Configure(configure) => self.configured.lock().unwrap().push(configure),
            Operation::WriteFile(file) => {
                let mut content = Vec::new();
                stream.read_to_end(&mut content).await.ok()?;
                self.files.lock().unwrap().push(file.path);
                if *self.refuse_files.lock().unwrap() {
                    let kind = ErrorKind::NoSpace.into();
                    reply.failure = Some(Failure { kind, message: "disk full".to_owned() });
                }
            }
            Operation::PowerOff(_) => {
                self.host.get()?.power_off(id);
            }
            Operation::Activity(_) => {
                let reply = ActivityReply { since_millis: 10_000, ..ActivityReply::default() };
                bhatti_link::write_message(&mut stream, &reply).await.ok()?;
                return stream.shutdown().await.ok();
            }
            Operation::Quiesce(_) => {}
            Operation::Exec(_) => return None,
        }
        bhatti_link::write_message(&mut stream, &reply).await.ok()?;
        stream.shutdown().await.ok()
    }
}

/// Counts what a real network would have to do.
#[derive(Default)]
struct NoNetwork {
    released: AtomicUsize,
    broken: Mutex<bool>,
}

#[async_trait]
impl Taps for NoNetwork {
    async fn open_tap(
        &self,
        _subnet: u32,
        _id: &EngineId,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
        if *self.broken.lock().unwrap() { Err("no bridge".into()) } else { Ok(None) }
    }

    async fn open_detached(
        &self,
    ) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(None)
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
}

/// One daemon's sandboxes on it.
struct Daemon {
    sandboxes: Sandboxes,
    db: Db,
    tasks: Tasks,
    layout: Arc<Layout>,
}

impl House {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("vmlinux"), "kernel").unwrap();
        std::fs::write(scratch.path().join("initramfs"), "initramfs").unwrap();
        let agents = Arc::new(Agents::default());
        let guests = agents.clone();
        let host = SimHost::new(Arc::new(move |id, stream| guests.serve(id, stream)));
        agents.host.set(host.clone()).ok();
        Self { scratch, host, agents, network: Arc::default() }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.scratch.path().join(name)).unwrap()
    }

    async fn daemon(&self) -> Daemon {
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
        let tasks = Tasks::default();
        let sandboxes = Sandboxes::recover(Deps {
            engine: Arc::new(SimEngine::new(self.host.clone())),
            taps: self.network.clone(),
            layout: layout.clone(),
            db: db.clone(),
            settings: Settings {
                kernel: self.path("vmlinux"),
                initramfs: self.path("initramfs"),
                default_image: "minimal".to_owned(),
                uids: (nix::unistd::getuid().as_raw(), 100),
                boot_timeout: Duration::from_secs(10),
                nameservers: Vec::new(),
                version: "test".to_owned(),
                thermal: Thermal::default(),
                goldens: GoldenLimits { count: 0, bytes: 0 },
            },
            tasks: tasks.clone(),
        })
        .await
        .unwrap();
        Daemon { sandboxes, db, tasks, layout }
    }

    /// Fails unless the host is as if no sandbox had ever been.
    async fn assert_nothing_left(&self, daemon: &Daemon) {
        assert!(self.host.running().is_empty(), "machines run");
        let (rows, _) = daemon.db.call(|store| store.all_sandboxes()).await.unwrap();
        assert_eq!(rows, [], "rows are left");
        for part in ["sandboxes", "bases"] {
            let left = std::fs::read_dir(self.path("data").join(part)).unwrap().count();
            assert_eq!(left, 0, "{part} are left");
        }
    }
}

impl Daemon {
    async fn user(&self, name: &str, max_sandboxes: u32) -> UserRow {
        let new =
            NewUser { name: name.to_owned(), max_sandboxes, max_cpus: 4, max_memory: Mib(4096) };
        self.db.call(move |store| store.create_user(&new)).await.unwrap().0
    }

    /// Ends it as a clean shutdown does.
    async fn stop(self) {
        drop(self.sandboxes);
        self.tasks.shut_down(Duration::from_secs(10)).await.unwrap();
        drop(self.layout);
    }
}

fn named(name: &str) -> CreateSpec {
    CreateSpec { name: Some(name.parse().unwrap()), ..CreateSpec::default() }
}

#[tokio::test]
async fn a_create_gives_the_guest_its_identity() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    let file = FileContent { path: "/etc/x".into(), mode: 0o644, content: "x".into() };
    let spec = CreateSpec {
        env: [("A".to_owned(), "1".to_owned())].into(),
        files: vec![file],
        ..named("dev")
    };
    let Created::New(row) = daemon.sandboxes.create(&alice, spec.clone()).await.unwrap() else {
        panic!("it is new")
    };
    assert_eq!((row.phase, row.ip.to_string().as_str()), (Phase::Hot, "10.0.1.2"));
    let told = house.agents.configured.lock().unwrap().clone();
    assert_eq!((told.len(), told[0].hostname.as_str(), told[0].env["A"].as_str()), (1, "dev", "1"));
    let network = told[0].network.clone().unwrap();
    assert_eq!((network.address.as_str(), network.gateway.as_str()), ("10.0.1.2", "10.0.1.1"));
    assert_eq!(*house.agents.files.lock().unwrap(), ["/etc/x"]);
    // Again: the same, or less, finds it. Something else is a conflict.
    for same in [spec.clone(), named("dev")] {
        let again = daemon.sandboxes.create(&alice, same).await.unwrap();
        assert!(matches!(again, Created::Existing(found) if found.id == row.id));
    }
    let other = CreateSpec { memory: Some(Mib(2048)), ..named("dev") };
    let refused = daemon.sandboxes.create(&alice, other).await;
    assert!(matches!(refused, Err(ServiceError::Exists(_))), "{refused:?}");
    assert_eq!(house.host.started(), 1);
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    house.assert_nothing_left(&daemon).await;
    assert_eq!(house.network.released.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_failed_boot_leaves_nothing() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    let with_file = || CreateSpec {
        files: vec![FileContent { path: "/x".into(), mode: 0o644, content: "x".into() }],
        ..named("dev")
    };
    for call in [Call::CreateRoot, Call::Boot, Call::OpenLink] {
        house.host.inject(call, Fault::Fail("no".to_owned()));
        let failed = daemon.sandboxes.create(&alice, with_file()).await;
        assert!(matches!(failed, Err(ServiceError::Create(_))), "{call:?}: {failed:?}");
        house.assert_nothing_left(&daemon).await;
    }
    house.host.inject(Call::Boot, Fault::Die("kernel panic".to_owned()));
    let died = daemon.sandboxes.create(&alice, with_file()).await.unwrap_err();
    assert!(crate::chain(&died).contains("kernel panic"), "{}", crate::chain(&died));
    house.assert_nothing_left(&daemon).await;
    *house.agents.refuse_files.lock().unwrap() = true;
    let refused = daemon.sandboxes.create(&alice, with_file()).await.unwrap_err();
    assert!(crate::chain(&refused).contains("disk full"), "{}", crate::chain(&refused));
    house.assert_nothing_left(&daemon).await;
    *house.network.broken.lock().unwrap() = true;
    let cut = daemon.sandboxes.create(&alice, named("dev")).await.unwrap_err();
    assert!(crate::chain(&cut).contains("no bridge"), "{}", crate::chain(&cut));
    house.assert_nothing_left(&daemon).await;
    *house.network.broken.lock().unwrap() = false;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    assert_eq!(house.host.faults_left(), 0);
}

#[tokio::test]
async fn two_creates_of_one_name_make_one() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.set_latency(Call::Boot, Duration::from_millis(50));
    let create = || daemon.sandboxes.create(&alice, named("dev"));
    let (a, b, c) = tokio::join!(create(), create(), create());
    let new = [a, b, c].map(|created| matches!(created.unwrap(), Created::New(_)));
    assert_eq!(new.iter().filter(|new| **new).count(), 1);
    assert_eq!(house.host.started(), 1);
}

#[tokio::test]
async fn a_create_after_a_failed_twin_tries_itself() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.set_latency(Call::Boot, Duration::from_millis(50));
    house.host.inject(Call::Boot, Fault::Fail("no".to_owned()));
    let create = || daemon.sandboxes.create(&alice, named("dev"));
    let (a, b) = tokio::join!(create(), create());
    assert_eq!((a.is_err(), b.is_ok()), (true, true));
    assert_eq!(house.host.running().len(), 1);
}

#[tokio::test]
async fn twenty_creates_at_once_respect_the_quota() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    let creates = (0..20).map(|i| {
        let (sandboxes, alice) = (daemon.sandboxes.clone(), alice.clone());
        tokio::spawn(async move { sandboxes.create(&alice, named(&format!("c{i}"))).await })
    });
    let creates: Vec<_> = creates.collect();
    let mut made = 0;
    for create in creates {
        match create.await.unwrap() {
            Ok(_) => made += 1,
            Err(ServiceError::Quota { used: 5, max: 5 }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((made, house.host.running().len()), (5, 5));
}

/// The caller goes away: the sandbox is made all the same.
#[tokio::test]
async fn a_create_nobody_waits_for_is_finished() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.set_latency(Call::Boot, Duration::from_millis(50));
    let create = daemon.sandboxes.create(&alice, named("dev"));
    let reserved = async {
        while daemon.db.call(|store| store.all_sandboxes()).await.unwrap().0.is_empty() {}
    };
    tokio::select! {
        biased;
        _ = create => panic!("it is still booting"),
        () = reserved => {}
    }
    // An identical create waits for the one under way.
    let found = daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    assert!(matches!(found, Created::Existing(row) if row.phase == Phase::Hot));
    assert_eq!(house.host.started(), 1);
}

#[tokio::test]
async fn a_restart_adopts_what_runs() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let running = house.host.running();
    daemon.stop().await;
    assert_eq!(house.host.running(), running, "a machine outlives the daemon");
    let daemon = house.daemon().await;
    assert_eq!(house.host.running(), running);
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.agents.configured.lock().unwrap().len(), 1, "it is not configured again");
    daemon.stop().await;
    house.host.reboot();
    let daemon = house.daemon().await;
    let row = daemon.sandboxes.get(&alice, "dev").await.unwrap();
    assert_eq!((row.phase, row.reason.as_str()), (Phase::Stopped, crate::recover::LOST));
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(daemon.sandboxes.get(&alice, "dev").await.unwrap().phase, Phase::Hot);
    assert_eq!(house.host.started(), 2);
}

/// A daemon that dies in the middle of a create leaves a row, a directory and a machine.
#[tokio::test]
async fn what_a_crash_cut_short_is_undone() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("half")).await.unwrap();
    daemon.stop().await;
    // The last step of a create is the move to `hot`; without it, it was cut short.
    let store = house.path("data/state.db");
    let mut store = Store::open(store.as_std_path()).unwrap();
    let id = store.all_sandboxes().unwrap().0[0].id.clone();
    store
        .set_phase(
            &id,
            &[Phase::Hot],
            Phase::Creating,
            "as before the last step",
            &bhatti_store::Change::default(),
        )
        .unwrap();
    drop(store);
    assert_eq!(house.host.running().len(), 1);
    let stray = house.path("data/sandboxes").join(EngineId::random().as_str());
    std::fs::create_dir(&stray).unwrap();

    let daemon = house.daemon().await;
    house.assert_nothing_left(&daemon).await;
    assert!(!stray.exists(), "directories nobody knows are swept");
    daemon.sandboxes.create(&alice, named("half")).await.unwrap();
}

/// A shutdown in the middle of a create undoes it.
#[tokio::test]
async fn a_shutdown_undoes_what_is_not_finished() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    house.host.inject(Call::OpenLink, Fault::Hang);
    let (sandboxes, caller) = (daemon.sandboxes.clone(), alice.clone());
    let create = tokio::spawn(async move { sandboxes.create(&caller, named("half")).await });
    while house.host.running().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(daemon.sandboxes.list(&alice).await.unwrap().is_empty(), "it is not listed yet");
    daemon.stop().await;
    assert!(create.await.unwrap().is_err());
    let daemon = house.daemon().await;
    house.assert_nothing_left(&daemon).await;
}

#[tokio::test]
async fn a_machine_that_ends_is_booted_on_use() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let [id] = house.host.running().into_iter().collect::<Vec<_>>().try_into().unwrap();
    assert!(house.host.power_off(&id));
    let row = loop {
        let row = daemon.sandboxes.get(&alice, "dev").await.unwrap();
        if row.phase != Phase::Hot {
            break row;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((row.phase, row.reason.as_str()), (Phase::Stopped, "the guest powered off"));
    assert!(row.stopped_at.is_some());
    let lease = || daemon.sandboxes.lease(&alice, "dev");
    let (a, b) = tokio::join!(lease(), lease());
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(house.host.started(), 2, "one boot for both");
    assert_eq!(house.agents.configured.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_destroy_that_fails_can_be_tried_again() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    house.host.inject(Call::Kill, Fault::Fail("busy".to_owned()));
    assert!(daemon.sandboxes.destroy(&alice, "dev").await.is_err());
    daemon.sandboxes.destroy(&alice, "dev").await.unwrap();
    house.assert_nothing_left(&daemon).await;
    let gone = daemon.sandboxes.destroy(&alice, "dev").await;
    assert!(matches!(gone, Err(ServiceError::NoSandbox(_))));
}

#[tokio::test]
async fn others_see_nothing() {
    let house = House::new();
    let daemon = house.daemon().await;
    let (alice, bob) = (daemon.user("alice", 5).await, daemon.user("bob", 5).await);
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    let patch = PatchSpec { keep_hot: Some(true), ..PatchSpec::default() };
    let gone = |result: Result<(), ServiceError>| matches!(result, Err(ServiceError::NoSandbox(_)));
    assert!(gone(daemon.sandboxes.get(&bob, "dev").await.map(drop)));
    assert!(gone(daemon.sandboxes.patch(&bob, "dev", patch).await.map(drop)));
    assert!(gone(daemon.sandboxes.lease(&bob, "dev").await.map(drop)));
    assert!(gone(daemon.sandboxes.destroy(&bob, "dev").await));
    assert!(daemon.sandboxes.list(&bob).await.unwrap().is_empty());
}

/// What is wrong with one sandbox must not keep the daemon from the others.
#[tokio::test]
async fn a_machine_that_cannot_be_told_is_unknown_and_the_rest_goes_on() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("odd")).await.unwrap();
    daemon.sandboxes.create(&alice, named("fine")).await.unwrap();
    let running = house.host.running();
    daemon.stop().await;
    // Rows are recovered oldest first.
    house.host.inject(Call::Adopt, Fault::Fail("its socket is gone".to_owned()));
    let daemon = house.daemon().await;
    assert_eq!(house.host.running(), running, "what cannot be told is left alone");
    let odd = daemon.sandboxes.get(&alice, "odd").await.unwrap();
    assert_eq!(odd.phase, Phase::Unknown);
    assert!(odd.reason.contains("its socket is gone"), "{}", odd.reason);
    let refused = daemon.sandboxes.lease(&alice, "odd").await.map(drop);
    assert!(matches!(refused, Err(ServiceError::Denied(_))), "{refused:?}");
    daemon.sandboxes.lease(&alice, "fine").await.unwrap();
    // What was wrong has passed: the next start takes it back, and an unknown one can be destroyed.
    daemon.stop().await;
    let daemon = house.daemon().await;
    assert_eq!(daemon.sandboxes.get(&alice, "odd").await.unwrap().phase, Phase::Hot);
    daemon.sandboxes.lease(&alice, "odd").await.unwrap();
    daemon.stop().await;
    house.host.inject(Call::Adopt, Fault::Fail("again".to_owned()));
    let daemon = house.daemon().await;
    daemon.sandboxes.destroy(&alice, "odd").await.unwrap();
    daemon.sandboxes.destroy(&alice, "fine").await.unwrap();
    house.assert_nothing_left(&daemon).await;
}

#[tokio::test]
async fn a_wake_that_fails_leaves_no_machine_and_can_be_tried_again() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    daemon.sandboxes.power_off_all().await;
    assert_eq!(daemon.sandboxes.get(&alice, "dev").await.unwrap().phase, Phase::Stopped);
    assert!(house.host.running().is_empty());
    house.host.inject(Call::OpenLink, Fault::Fail("no".to_owned()));
    assert!(daemon.sandboxes.lease(&alice, "dev").await.is_err());
    assert!(house.host.running().is_empty(), "half a wake is no wake");
    daemon.sandboxes.lease(&alice, "dev").await.unwrap();
    assert_eq!(house.host.running().len(), 1);
}

/// A boot that hangs does not stand in the way of whoever wants the sandbox gone.
#[tokio::test]
async fn a_destroy_interrupts_a_wake() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("dev")).await.unwrap();
    daemon.sandboxes.power_off_all().await;
    house.host.inject(Call::OpenLink, Fault::Hang);
    let wake = daemon.sandboxes.lease(&alice, "dev");
    let destroy = async {
        while house.host.running().is_empty() {
            tokio::task::yield_now().await;
        }
        daemon.sandboxes.destroy(&alice, "dev").await
    };
    let both = async { tokio::join!(wake, destroy) };
    let (woken, destroyed) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert!(woken.is_err() && destroyed.is_ok());
    house.assert_nothing_left(&daemon).await;
}

#[tokio::test]
async fn a_rename_changes_neither_host_name_nor_machine_id() {
    let house = House::new();
    let daemon = house.daemon().await;
    let alice = daemon.user("alice", 5).await;
    daemon.sandboxes.create(&alice, named("my_box")).await.unwrap();
    let patch = PatchSpec { name: Some("other".parse().unwrap()), ..PatchSpec::default() };
    daemon.sandboxes.patch(&alice, "my_box", patch).await.unwrap();
    daemon.sandboxes.power_off_all().await;
    daemon.sandboxes.lease(&alice, "other").await.unwrap();
    let told = house.agents.configured.lock().unwrap().clone();
    assert_eq!((told[0].hostname.as_str(), told.len()), ("my-box", 2));
    assert_eq!((&told[0].hostname, &told[0].machine_id), (&told[1].hostname, &told[1].machine_id));
    assert_eq!(told[0].machine_id.len(), 32);
}
