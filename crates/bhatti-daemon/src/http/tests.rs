//! Requests through the whole router, on simulated machines that nobody boots: statuses, bodies
//! and texts of what needs no guest.

mod web_shell;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use bhatti_engine::Engine;
use bhatti_engine_sim::{SimEngine, SimHost};
use bhatti_lifecycle::{Deps, Events, GoldenLimits, Sandboxes, Settings, Taps, Tasks, Thermal};
use bhatti_storage::Layout;
use bhatti_store::{
    Change, Db, NewSandbox, NewSnapshot, NewUser, Reserved, ReservedSnapshot, Store, UserRow,
};
use bhatti_types::{ApiKey, Cpus, EngineId, Mib, Phase};
use camino::Utf8PathBuf;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::connection::Peer;
use super::{
    Api, Limits, Proxy, Public, Room, Site, Sockets, UnderWay, WebShells, public_router, router,
};

struct NoNetwork;

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[async_trait]
impl Taps for NoNetwork {
    async fn open_tap(&self, _: u32, _: &EngineId) -> Result<Option<OwnedFd>, Failed> {
        Ok(None)
    }

    async fn open_detached(&self) -> Result<Option<OwnedFd>, Failed> {
        Ok(None)
    }

    async fn apply(&self, _subnet: u32) -> Result<(), Failed> {
        Ok(())
    }

    async fn denied(&self, _: u32, _: std::net::Ipv4Addr) -> Result<u64, Failed> {
        Ok(0)
    }

    async fn release(&self, _subnet: u32) -> Result<(), Failed> {
        Ok(())
    }
}

/// A daemon's API with one account, which has the stopped sandbox `dev` and the snapshot
/// `before`.
struct World {
    _scratch: tempfile::TempDir,
    router: Router,
    /// The public side.
    public: Router,
    key: ApiKey,
    sandbox: String,
}

async fn world() -> World {
    let scratch = tempfile::tempdir().expect("a directory");
    let root = Utf8PathBuf::from_path_buf(scratch.path().to_owned()).expect("UTF-8");
    let layout = Arc::new(Layout::open(&root.join("data")).expect("a data directory"));
    let mut store = Store::open(layout.database().as_std_path()).expect("a store");
    let new =
        NewUser { name: "alice".to_owned(), max_sandboxes: 1, max_cpus: 4, max_memory: Mib(4096) };
    let (user, key) = store.create_user(&new).expect("a user");
    let sandbox = fill(&mut store, &user);
    let db = Db::start(store).expect("the store's thread");
    let engine: Arc<dyn Engine> = Arc::new(SimEngine::new(SimHost::echoing()));
    let info = engine.info().clone();
    let settings = Settings {
        kernel: root.join("vmlinux"),
        initramfs: root.join("initramfs"),
        default_image: "minimal".to_owned(),
        uids: (nix::unistd::getuid().as_raw(), 100),
        boot_timeout: Duration::from_secs(10),
        version: "test".to_owned(),
        thermal: Thermal::default(),
        goldens: GoldenLimits::default(),
    };
    let taps = Arc::new(NoNetwork);
    let tasks = Tasks::default();
    let (events, _recorder) = Events::start(db.clone());
    let deps =
        Deps { engine, taps, layout, db: db.clone(), settings, tasks, events: events.clone() };
    let sandboxes = Sandboxes::recover(deps).await.expect("recovers");
    let limits = Limits::default();
    let (under_way, sockets) = (UnderWay::default(), Sockets::new(Tasks::default()));
    let room = Room::default();
    let web_shells = Arc::new(WebShells::default());
    let started = Instant::now();
    let proxy = Proxy::new(Tasks::default());
    let site = Site::at(([127, 0, 0, 1], 8090).into());
    let public = Arc::new(Public::new(Some(site), None, bhatti_config::PublicLimits::default()));
    let engine = info;
    let api = Api {
        sandboxes,
        db,
        events,
        limits,
        under_way,
        sockets,
        room,
        proxy,
        public,
        web_shells,
        engine,
        started,
    };
    let api = Arc::new(api);
    let public = public_router(api.clone());
    World { _scratch: scratch, router: router(api), public, key, sandbox }
}

/// Records what the account has. Returns the sandbox's id.
pub(super) fn fill(store: &mut Store, user: &UserRow) -> String {
    let name = |text: &str| text.parse().expect("a name");
    let new = NewSandbox {
        owner: user.id.clone(),
        name: name("dev"),
        image: "minimal".to_owned(),
        cpus: Cpus::ONE,
        memory: Mib(512),
        disk_size: Mib(0),
        hugepages: false,
        keep_hot: false,
        labels: Default::default(),
        env: Default::default(),
        init: String::new(),
        files_digest: String::new(),
        net_policy: Default::default(),
        uids: (1000, 1000),
    };
    let address = std::net::Ipv4Addr::new(10, 0, 1, 2);
    let reserved = store.reserve_sandbox(&new, |_| Some(address)).expect("reserves");
    let Reserved::New(row) = reserved else { panic!("{reserved:?}") };
    let (from, change) = ([Phase::Creating], Change::default());
    store.set_phase(&row.id, &from, Phase::Stopped, "powered off", &change).expect("stopped");
    let new = NewSnapshot {
        owner: user.id.clone(),
        name: name("before"),
        source_sandbox: row.id.clone(),
        image: "minimal".to_owned(),
        cpus: Cpus::ONE,
        memory: Mib(512),
        disk_size: Mib(0),
        hugepages: false,
        env: Default::default(),
        init: String::new(),
        hostname: "dev".to_owned(),
        net_policy: Default::default(),
    };
    let reserved = store.reserve_snapshot(&new).expect("reserves");
    let ReservedSnapshot::New(snapshot) = reserved else { panic!("{reserved:?}") };
    store.finish_snapshot(&snapshot.id, None, &json!({}), (36 << 20) + 1).expect("finished");
    row.id.to_string()
}

impl World {
    /// Sends `method path body`; returns the status and the body, or its text in quotes.
    async fn ask(&self, method: Method, path: &str, body: &str) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.key.reveal()))
            .extension(Peer([192, 0, 2, 1].into()))
            .body(Body::from(body.to_owned()))
            .expect("a request");
        let Ok(response) = self.router.clone().oneshot(request).await;
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        let text = String::from_utf8_lossy(&body).into_owned();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The same for what is to be refused.
    async fn refused(&self, method: Method, path: &str, body: &str, status: u16, text: &str) {
        let wanted = (status, json!({ "error": text }));
        assert_eq!(self.ask(method.clone(), path, body).await, wanted, "{method} {path} {body}");
    }
}

#[tokio::test]
async fn stopping_what_is_stopped_changes_nothing() {
    let world = world().await;
    for key in ["dev", world.sandbox.as_str()] {
        let (status, body) = world.ask(Method::POST, &format!("/sandboxes/{key}/stop"), "").await;
        assert_eq!((status, &body["status"]), (200, &json!("stopped")), "{body}");
        assert_eq!(body["last_transition"]["to"], "stopped");
        assert_eq!(body["last_transition"]["reason"], "powered off");
        assert!(body["last_transition"]["at"].is_string() && body.get("thermal").is_none());
    }
    let (_, listed) = world.ask(Method::GET, "/sandboxes", "").await;
    assert!(listed[0].get("last_transition").is_none(), "{listed}");
}

/// Who is cut off while he sends may never read why.
#[tokio::test]
async fn what_a_stranger_sends_is_taken_before_he_is_refused() {
    let world = world().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let refused = async |expect: Option<&str>| {
        let taken = sent.clone();
        let pieces = futures_util::stream::iter(0..100).map(move |_| {
            taken.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::convert::Infallible>(vec![0; 1 << 16])
        });
        let mut request = Request::put("/sandboxes/dev/files?path=/x");
        if let Some(expect) = expect {
            request = request.header("expect", expect);
        }
        let request = request.body(Body::from_stream(pieces)).expect("a request");
        let Ok(response) = world.router.clone().oneshot(request).await;
        assert_eq!(response.status(), 401);
        sent.swap(0, Ordering::Relaxed)
    };
    assert_eq!(refused(None).await, 100);
    assert_eq!(refused(Some("100-continue")).await, 0, "it waits to be asked");
}

#[tokio::test]
async fn sleep_is_refused_in_the_contracts_words() {
    let world = world().await;
    let post = Method::POST;
    let nobody = "sandbox \"x\" not found";
    world.refused(post.clone(), "/sandboxes/x/stop", "", 404, nobody).await;
    world.refused(post.clone(), "/sandboxes/x/start", "rubbish", 404, nobody).await;
    let checkpoint = "/sandboxes/dev/checkpoint";
    for body in ["{}", "{\"name\":\"\"}", "{\"name\":\"a/b\"}"] {
        world.refused(post.clone(), checkpoint, body, 400, "valid name required").await;
    }
    world.refused(post.clone(), checkpoint, "", 400, "invalid json: EOF").await;
    let off = "sandbox \"dev\" is not running";
    world.refused(post.clone(), checkpoint, "{\"name\":\"new\"}", 409, off).await;
    let taken = "snapshot \"before\" already exists — delete first";
    world.refused(post, checkpoint, "{\"name\":\"before\"}", 409, taken).await;
    for path in ["stop", "start", "checkpoint"] {
        let path = format!("/sandboxes/dev/{path}");
        world.refused(Method::GET, &path, "", 405, "method not allowed").await;
    }
}

#[tokio::test]
async fn snapshots_are_listed_shown_and_deleted() {
    let world = world().await;
    let (status, listed) = world.ask(Method::GET, "/snapshots", "").await;
    assert_eq!(status, 200);
    let shown = &listed[0];
    assert_eq!(shown["name"], "before");
    assert_eq!(shown["source_sandbox"], json!(world.sandbox));
    assert_eq!(shown["size_mb"], 37, "rounded up");
    let fields: Vec<&String> = shown.as_object().expect("an object").keys().collect();
    let mut wanted = ["id", "user_id", "name", "source_sandbox", "size_mb", "created_at"];
    wanted.sort_unstable();
    assert_eq!(fields, wanted);
    for path in ["/snapshots/before", "/snapshots/before/", "/snapshots/before/whatever"] {
        assert_eq!(world.ask(Method::GET, path, "").await, (200, shown.clone()), "{path}");
    }
    let gone = (200, json!({"status": "deleted"}));
    assert_eq!(world.ask(Method::DELETE, "/snapshots/before", "").await, gone);
    assert_eq!(world.ask(Method::GET, "/snapshots", "").await, (200, json!([])));
    let nobody = "snapshot \"before\" not found";
    world.refused(Method::GET, "/snapshots/before", "", 404, nobody).await;
    world.refused(Method::DELETE, "/snapshots/before", "", 404, nobody).await;
}

#[tokio::test]
async fn a_resume_needs_a_body_a_snapshot_and_room() {
    let world = world().await;
    let post = Method::POST;
    let resume = "/snapshots/before/resume";
    world.refused(post.clone(), resume, "", 400, "invalid json: EOF").await;
    let rule = "invalid sandbox name: must match [a-zA-Z0-9][a-zA-Z0-9._-]{0,62}";
    world.refused(post.clone(), resume, "{\"name\":\"-\"}", 400, rule).await;
    let nobody = "snapshot \"x\" not found";
    world.refused(post.clone(), "/snapshots/x/resume", "{}", 404, nobody).await;
    world.refused(post.clone(), resume, "{}", 429, "sandbox limit reached (1/1)").await;
    world.refused(post, "/snapshots/", "", 400, "missing snapshot name").await;
    world.refused(Method::GET, resume, "", 405, "method not allowed").await;
    world.refused(Method::PUT, "/snapshots", "", 405, "method not allowed").await;
}

/// The order of the contract, and a GET that is no upgrade wakes nothing.
#[tokio::test]
async fn an_exec_stream_begins_with_an_upgrade() {
    let world = world().await;
    let nobody = "sandbox \"x\" not found";
    world.refused(Method::GET, "/sandboxes/x/exec/stream", "", 404, nobody).await;
    let answer = world.ask(Method::GET, "/sandboxes/dev/exec/stream", "").await;
    assert_eq!(answer, (400, Value::String("Bad Request\n".to_owned())));
    let (_, dev) = world.ask(Method::GET, "/sandboxes/dev", "").await;
    assert_eq!(dev["status"], "stopped");
}

/// The order of the contract, and nothing is woken for what is refused.
#[tokio::test]
async fn what_leads_to_no_program_is_refused() {
    let world = world().await;
    let (get, post) = (Method::GET, Method::POST);
    for port in ["0", "65536", "x", "+80"] {
        for way in ["proxy", "forward"] {
            let path = format!("/sandboxes/x/{way}/{port}");
            world.refused(get.clone(), &path, "", 400, "invalid port").await;
        }
    }
    let nobody = "sandbox \"x\" not found";
    world.refused(get.clone(), "/sandboxes/x/forward/80", "", 404, nobody).await;
    let answer = world.ask(get.clone(), "/sandboxes/dev/forward/80", "").await;
    assert_eq!(answer, (400, Value::String("Bad Request\n".to_owned())));
    let not_allowed = "method not allowed";
    world.refused(post.clone(), "/sandboxes/dev/forward/80", "", 405, not_allowed).await;
    world.refused(Method::PUT, "/sandboxes/dev/publish", "", 405, not_allowed).await;
    world.refused(post.clone(), "/sandboxes/dev/publish/80", "", 404, "not found").await;
    world.refused(post, "/sandboxes/x/publish", "rubbish", 404, nobody).await;
    let (_, dev) = world.ask(get, "/sandboxes/dev", "").await;
    assert_eq!(dev["status"], "stopped");
}

#[tokio::test]
async fn publishing_wakes_nothing_and_a_stranger_learns_little() {
    let world = world().await;
    let (status, rule) =
        world.ask(Method::POST, "/sandboxes/dev/publish", "{\"port\":80,\"alias\":\"web\"}").await;
    assert_eq!((status, &rule["url"]), (201, &json!("http://web.localhost:8090/")));
    let (_, listed) = world.ask(Method::GET, "/sandboxes", "").await;
    assert_eq!(listed[0]["urls"], json!(["http://web.localhost:8090/"]));
    assert_eq!(listed[0]["status"], "stopped");
    let ask = async |host: &str, length: u64| {
        let request = Request::post("/x")
            .header("host", host)
            .header("content-length", length)
            .extension(Peer([192, 0, 2, 1].into()))
            .body(Body::empty())
            .expect("a request");
        let Ok(response) = world.public.clone().oneshot(request).await;
        let body = axum::body::to_bytes(response.into_body(), 1000).await.expect("a body");
        String::from_utf8_lossy(&body).into_owned()
    };
    let not_found = "{\"error\":\"not found\"}\n";
    for host in ["other.localhost", "web.example", "localhost", "a.web.localhost", ""] {
        assert_eq!(ask(host, 0).await, not_found, "{host}");
    }
    // Nor by trying all there may be.
    let guess = async |n: u8| {
        let request = Request::get("/").header("host", "guess.localhost");
        let request = request.extension(Peer([192, 0, 2, n].into())).body(Body::empty());
        let Ok(response) = world.public.clone().oneshot(request.expect("a request")).await;
        response.status().as_u16()
    };
    let mut last = 404;
    for _ in 0..1000 {
        last = guess(9).await;
    }
    assert_eq!((last, guess(8).await), (429, 404));
    let too_large = "{\"error\":\"request body too large\"}\n";
    assert_eq!(ask("web.localhost", (50 << 20) + 1).await, too_large);
    let (status, _) = world.ask(Method::DELETE, "/sandboxes/dev/publish/80", "").await;
    assert_eq!(status, 204);
    assert_eq!(ask("web.localhost", 0).await, not_found);
}
