//! Wiring: everything is opened here, in an order that a failure can leave at any point.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bhatti_config::{OnShutdown, ServerConfig};
use bhatti_engine::{Engine, EngineError};
use bhatti_lifecycle::{
    Deps, Events, GoldenLimits, Recorder, Sandboxes, ServiceError, Settings, Tasks, Thermal,
};
use bhatti_net::plan::Guest;
use bhatti_net::{Denied, Directory, NetConfig, NetError, Networks, Upstreams};
use bhatti_storage::{DiskError, Layout};
use bhatti_store::{Db, GuestRow, ImageRow, Store, StoreError};
use bhatti_types::{EventKind, ImageId};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::VERSION;
use crate::engine::{self, Bound, Chosen};
use crate::http::{
    Api, CertificateError, Limits, Proxy, Public, Room, Sockets, UnderWay, WebShells,
};
use crate::listeners::Listeners;

/// Why the daemon did not start. Each is one sentence with what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("bhatti serve needs root: it makes namespaces, TAP devices and cgroups")]
    NotRoot,
    #[error("{what} {path} is missing: run `make up`, or set {key} in the configuration")]
    MissingFile { what: &'static str, path: Utf8PathBuf, key: &'static str },
    #[error("failed to listen on {address}: {hint}")]
    Listen {
        address: SocketAddr,
        hint: String,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to set up the domain")]
    Certificate(#[from] CertificateError),
    #[error("failed to prepare the data directory")]
    Disk(#[from] DiskError),
    #[error("failed to list images in {path}")]
    Images {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to open the store")]
    Store(#[from] StoreError),
    #[error("failed to prepare the engine")]
    Engine(#[from] EngineError),
    #[error("failed to prepare networking")]
    Network(#[from] NetError),
    #[error("failed to recover the sandboxes of a former run")]
    Recover(#[from] ServiceError),
}

/// How long requests under way may take once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(30);

/// How long sandboxes may take to come to rest afterwards: an interrupted create is undone.
const SETTLE: Duration = Duration::from_secs(30);

/// How long putting all machines to disk may take, and powering off those that are left.
pub(crate) const PUT_AWAY: Duration = Duration::from_secs(600);

/// A daemon that has everything it needs and serves nobody yet.
pub struct App {
    listeners: Listeners,
    address: SocketAddr,
    api: Arc<Api>,
    tasks: Tasks,
    /// Apart from the rest, so that requests under way still find everything they need.
    connections: Tasks,
    recorder: Recorder,
    networks: Networks,
    on_shutdown: OnShutdown,
    /// Held for as long as this daemon may end machines.
    _claim: engine::Claim,
}

impl App {
    /// Opens everything and binds the port.
    pub async fn build(config: ServerConfig) -> Result<Self, StartError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(StartError::NotRoot);
        }
        require("guest kernel", &config.kernel, "kernel")?;
        require("guest initramfs", &config.initramfs, "initramfs")?;
        let layout = Arc::new(Layout::open(&config.data_dir)?);
        // Before anything with side effects: a taken port must not disturb running sandboxes.
        let tasks = Tasks::default();
        let listeners = Listeners::bind(&config, &tasks).await?;
        let address = listeners.address;
        let mut store = Store::open(layout.database().as_std_path())?;
        register_images(&mut store, &layout.images())?;
        let bound = Bound::of(&store)?;
        let db = Db::start(store)?;
        // Claimed before anything is swept: what another daemon runs is not ours to end.
        let Chosen { engine, info, claim } = engine::start(&config, bound).await?;
        let (events, recorder) = Events::start(db.clone());
        let people = Arc::new(People { db: db.clone(), events: events.clone() });
        let networks = Networks::open(net_config(&config), people).await?;
        let settings = settings(&config);
        // Everything is as recorded before the first request is read.
        let (sandboxes, recovered) =
            recover(engine, networks.clone(), layout, db.clone(), settings, &tasks, &events)
                .await?;
        tracing::info!(version = VERSION, listen = %address, data_dir = %config.data_dir, "ready");
        let listening =
            json!({ "version": VERSION, "recovered_vms": recovered, "listen": address });
        events.record(EventKind::DaemonStarted, None, None, listening);
        let connections = Tasks::default();
        let api = Arc::new(Api {
            sandboxes,
            db,
            events,
            limits: Limits::default(),
            under_way: UnderWay::default(),
            sockets: Sockets::new(connections.clone()),
            room: Room::default(),
            proxy: Proxy::new(connections.clone()),
            public: Arc::new(Public::new(
                listeners.site.clone(),
                listeners.secure(),
                config.public_limits,
            )),
            web_shells: Arc::new(WebShells::default()),
            engine: info,
            started: Instant::now(),
        });
        let on_shutdown = config.on_shutdown;
        Ok(Self {
            listeners,
            address,
            api,
            tasks,
            connections,
            recorder,
            networks,
            on_shutdown,
            _claim: claim,
        })
    }

    /// Where it listens; the real port if 0 was configured.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All sandboxes, for what an operator asks by a signal.
    pub fn sandboxes(&self) -> Sandboxes {
        self.api.sandboxes.clone()
    }

    /// Where to say what happened.
    pub fn events(&self) -> Events {
        self.api.events.clone()
    }

    /// Serves until `stop` fires, then drains. Machines go on running, or go to disk: after the
    /// last request, which may need one, and before what they are made of is closed.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        self.listeners.serve(&self.api, &self.tasks, &self.connections, stop).await;
        let sandboxes = self.api.sandboxes.clone();
        drop(self.api);
        if let Err(left) = self.connections.shut_down(DRAIN).await {
            // Their commands go on in the guests; only the answers are lost.
            tracing::warn!(left, "requests were cut off");
        }
        if self.on_shutdown == OnShutdown::Freeze {
            tracing::info!("freezing every machine");
            sandboxes.freeze_all(PUT_AWAY).await;
        }
        drop(sandboxes);
        let settled = self.tasks.shut_down(SETTLE).await;
        // After the last undo, which may free a network. The host's rules stay while a user's
        // network does: guests run on.
        if let Err(error) = self.networks.close().await {
            tracing::warn!(
                error = bhatti_lifecycle::chain(&error),
                "failed to remove the host's rules"
            );
        }
        // After the last that could say something.
        self.recorder.close().await;
        match settled {
            Ok(()) => {
                tracing::info!("stopped; machines that run go on");
                Ok(())
            }
            Err(left) => anyhow::bail!("{left} tasks did not end within {} s", SETTLE.as_secs()),
        }
    }
}

fn settings(config: &ServerConfig) -> Settings {
    let (thermal, goldens) = (config.thermal, config.goldens);
    Settings {
        kernel: config.kernel.clone(),
        initramfs: config.initramfs.clone(),
        default_image: config.default_image.clone(),
        uids: (config.jail_uid_base, VMM_UIDS),
        boot_timeout: Duration::from_secs(u64::from(config.boot_timeout_sec)),
        version: VERSION.to_owned(),
        thermal: Thermal { warm_after: thermal.warm_after, cold_after: thermal.cold_after },
        goldens: GoldenLimits {
            // At most 1024.
            count: goldens.max_count as usize,
            bytes: u64::from(goldens.max_mb) << 20,
        },
    }
}

/// How many sandboxes can have a VMM uid of their own.
pub(crate) const VMM_UIDS: u32 = 65_536;

/// All sandboxes, and how many a former run has left.
async fn recover(
    engine: Arc<dyn Engine>,
    networks: Networks,
    layout: Arc<Layout>,
    db: Db,
    settings: Settings,
    tasks: &Tasks,
    events: &Events,
) -> Result<(Sandboxes, u32), StartError> {
    let deps = Deps {
        engine,
        taps: Arc::new(networks.clone()),
        layout,
        db: db.clone(),
        settings,
        tasks: tasks.clone(),
        events: events.clone(),
    };
    let sandboxes = Sandboxes::recover(deps).await?;
    let users = db.call(|store| store.users()).await?;
    let in_use: Vec<u32> =
        users.iter().filter(|user| user.sandboxes > 0).map(|user| user.subnet_index).collect();
    let removed = networks.sweep(&in_use).await?;
    if !removed.is_empty() {
        tracing::info!(?removed, "removed networks of users without sandboxes");
    }
    Ok((sandboxes, users.iter().map(|user| user.sandboxes).sum()))
}

fn require(what: &'static str, path: &Utf8Path, key: &'static str) -> Result<(), StartError> {
    if path.is_file() {
        Ok(())
    } else {
        Err(StartError::MissingFile { what, path: path.to_owned(), key })
    }
}

fn register_images(store: &mut Store, dir: &Utf8Path) -> Result<(), StartError> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let (found, rejected) = bhatti_storage::discover(dir, arch)
        .map_err(|source| StartError::Images { path: dir.to_owned(), source })?;
    for error in rejected {
        tracing::warn!(error = bhatti_lifecycle::chain(&error), "not registered as an image");
    }
    if found.is_empty() {
        tracing::warn!(dir = %dir, "no images found: every create will fail; run `make up`");
    }
    let rows: Vec<ImageRow> = found
        .into_iter()
        .map(|image| ImageRow {
            id: ImageId::tier(&image.tier, &image.arch),
            owner: None,
            name: image.tier,
            source: "built-in".to_owned(),
            file: image.file,
            size: image.size,
            created_at: Timestamp::now(),
        })
        .collect();
    Ok(store.set_builtin_images(&rows)?)
}

fn net_config(config: &ServerConfig) -> NetConfig {
    let upstreams = match config.dns_upstreams.as_slice() {
        [] => Upstreams::OfTheHost,
        servers => Upstreams::Fixed(servers.to_vec()),
    };
    NetConfig { prefix: config.network_prefix.clone(), upstreams, ..NetConfig::default() }
}

/// Who is in a user's network, as the store has it at that moment.
struct People {
    db: Db,
    events: Events,
}

impl Directory for People {
    fn guests(
        &self,
        index: u32,
    ) -> Result<BTreeMap<Ipv4Addr, Guest>, Box<dyn std::error::Error + Send + Sync>> {
        let rows = self.db.read(|store| store.guests_in(index))?;
        let guest = |row: GuestRow| {
            let guest = Guest { name: row.name, id: row.engine_id, policy: row.net_policy };
            (row.ip, guest)
        };
        Ok(rows.into_iter().map(guest).collect())
    }

    fn denied(&self, index: u32, guest: &Guest, what: &Denied) {
        let name = &guest.name;
        let meta = match what {
            Denied::Name(host) => json!({ "name": name, "host": host }),
            Denied::Rebinding(host, to) => json!({ "name": name, "host": host, "to": to }),
            Denied::Address { to, protocol, port } => {
                json!({ "name": name, "to": to, "protocol": protocol, "port": port })
            }
        };
        let rows = self.db.read(|store| store.guests_in(index)).unwrap_or_default();
        if let Some(row) = rows.into_iter().find(|row| row.engine_id == guest.id) {
            let (owner, sandbox) = (Some(&row.owner), Some(&row.sandbox));
            self.events.record(EventKind::EgressDenied, owner, sandbox, meta);
        }
    }
}
