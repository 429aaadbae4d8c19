//! A host of its own for each test: directory, control group, and the guest's files.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bhatti_engine::conformance::{Harness, patience};
use bhatti_engine::{Below, BootSpec, Carrier, Engine, Private, RootDisk, Shape, Vm, VmRecord};
use bhatti_engine_firecracker::{FirecrackerConfig, FirecrackerEngine};
use bhatti_link::{Link, read_message, write_message};
use bhatti_types::{EngineId, Mib};
use bhatti_wire::message::{
    Exec, ExecOutput, ExecOutputEvent, Hello, HelloReply, Operation, PROTOCOL_VERSION, Request,
};
use camino::{Utf8Path, Utf8PathBuf};

/// Nobody has this uid.
pub(crate) const OWNER: Private = Private { uid: 64123, gid: 64124 };

/// The hierarchies a group may be in, on old and new hosts.
pub(crate) const HIERARCHIES: [&str; 6] = ["cpu", "cpu,cpuacct", "memory", "pids", "unified", "."];

pub(crate) struct FirecrackerHarness {
    /// Gone with the harness, if it is its own.
    scratch: Option<tempfile::TempDir>,
    path: Utf8PathBuf,
    pub(crate) cgroup: String,
    guest: Utf8PathBuf,
    pinged: AtomicBool,
}

impl FirecrackerHarness {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::getuid().is_root(), "these tests confine processes: run them as root");
        let scratch = tempfile::tempdir().unwrap();
        // What the daemon does with its own: others may pass through, not look.
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("bhatti-test-{}-{number}", std::process::id());
        let path = Utf8PathBuf::from_path_buf(scratch.path().to_owned()).unwrap();
        let mut harness = Self::at(path, cgroup);
        harness.scratch = Some(scratch);
        harness
    }

    /// The same host for another process.
    pub(crate) fn at(path: Utf8PathBuf, cgroup: String) -> Self {
        let pinged = AtomicBool::new(false);
        Self { scratch: None, path, cgroup, guest: guest_dir(), pinged }
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// A machine in a place that is there, with a disk that is there.
    pub(crate) fn machine(&self, id: EngineId, dir: Utf8PathBuf, root: RootDisk) -> BootSpec {
        BootSpec {
            id,
            dir,
            shape: Shape { milli_cpus: 1000, memory: Mib(256) },
            kernel: self.guest.join("vmlinux"),
            initramfs: self.guest.join("initramfs.cpio"),
            root,
            nic: None,
            owner: OWNER,
            hugepages: false,
        }
    }

    /// The machine's directories in every hierarchy.
    pub(crate) fn groups(&self, id: &str) -> Vec<std::path::PathBuf> {
        let place = |h: &&str| Path::new("/sys/fs/cgroup").join(h).join(&self.cgroup).join(id);
        HIERARCHIES.iter().map(place).filter(|path| path.exists()).collect()
    }

    pub(crate) async fn firecracker(&self) -> FirecrackerEngine {
        let from = |name| std::env::var(name).ok().map(Utf8PathBuf::from);
        let config = FirecrackerConfig {
            program: Some(from("BHATTI_FIRECRACKER_BIN").expect("BHATTI_FIRECRACKER_BIN is set")),
            seccomp_filter: from("BHATTI_FIRECRACKER_SECCOMP"),
            cgroup: self.cgroup.clone(),
            ..FirecrackerConfig::default()
        };
        FirecrackerEngine::start(config).await.unwrap()
    }
}

impl Drop for FirecrackerHarness {
    fn drop(&mut self) {
        if self.scratch.is_none() {
            return;
        }
        // A failed test may leave machines; ending them here keeps the next test honest.
        for hierarchy in HIERARCHIES {
            let parent = Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.cgroup);
            let Ok(groups) = std::fs::read_dir(&parent) else { continue };
            for group in groups.filter_map(Result::ok).map(|e| e.path()).filter(|p| p.is_dir()) {
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
                while std::fs::remove_dir(&group).is_err() && std::time::Instant::now() < deadline {
                    let procs = std::fs::read_to_string(group.join("cgroup.procs"));
                    for pid in procs.unwrap_or_default().lines().filter_map(|l| l.parse().ok()) {
                        let pid = nix::unistd::Pid::from_raw(pid);
                        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
                        nix::sys::wait::waitpid(pid, None).ok();
                    }
                }
            }
            std::fs::remove_dir(&parent).ok();
        }
    }
}

fn guest_dir() -> Utf8PathBuf {
    let dir = match std::env::var("BHATTI_GUEST_DIR") {
        Ok(dir) => Utf8PathBuf::from(dir),
        Err(_) => Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
    };
    for file in ["vmlinux", "initramfs.cpio", "rootfs-minimal-amd64.ext4"] {
        assert!(dir.join(file).exists(), "there is no {dir}/{file}; run: cargo xtask guest");
    }
    dir
}

/// A conversation with the agent of a machine.
pub(crate) struct Talk {
    link: Link,
    driver: tokio::task::JoinHandle<()>,
}

impl Talk {
    /// Greets the agent, which sets its clock and stirs its randomness.
    pub(crate) async fn with(vm: &dyn Vm) -> Self {
        let Carrier::Single(stream) = vm.open_link().await.unwrap();
        let nonce = EngineId::random().as_str().as_bytes().try_into().unwrap();
        let connect = bhatti_link::connect(stream, nonce, bhatti_link::Mode::Reconnect);
        let (link, driver) = tokio::time::timeout(patience(), connect).await.unwrap().unwrap();
        let driver = tokio::spawn(async move { drop(driver.await) });
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            host_version: "test".to_owned(),
            unix_nanos: u64::try_from(now.as_nanos()).unwrap(),
            entropy: [7; 64].to_vec().into(),
            identity: None,
        };
        let mut stream = link.open().unwrap();
        write_message(&mut stream, &Request { operation: Some(Operation::Hello(hello)) })
            .await
            .unwrap();
        let reply = read_message::<HelloReply>(&mut stream);
        tokio::time::timeout(patience(), reply).await.unwrap().unwrap().expect("a reply");
        Self { link, driver }
    }

    /// Hangs up. Returns when that is done: a VMM serves one link at a time.
    pub(crate) async fn end(self) {
        self.driver.abort();
        // Aborted or at its end, it holds no link any more.
        self.driver.await.ok();
    }

    /// What a script prints in the guest; it must succeed.
    pub(crate) async fn run(&self, script: &str) -> String {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let exec = Operation::Exec(Exec { argv, ..Exec::default() });
        let mut stream = self.link.open().unwrap();
        write_message(&mut stream, &Request { operation: Some(exec) }).await.unwrap();
        let mut output = Vec::new();
        loop {
            let said = read_message::<ExecOutput>(&mut stream).await.unwrap();
            match said.expect("an exit comes last").event.unwrap() {
                ExecOutputEvent::Started(_) => {}
                ExecOutputEvent::Stdout(bytes) | ExecOutputEvent::Stderr(bytes) => {
                    output.extend_from_slice(&bytes);
                }
                ExecOutputEvent::Failed(failure) => panic!("{script}: {failure:?}"),
                ExecOutputEvent::Exit(exit) => {
                    assert_eq!(exit.code, 0, "{script}: {}", String::from_utf8_lossy(&output));
                    return String::from_utf8(output).unwrap().trim_end().to_owned();
                }
            }
        }
    }
}

/// What a script prints in the guest, over a link of its own.
pub(crate) async fn ask(vm: &dyn Vm, script: &str) -> String {
    let talk = Talk::with(vm).await;
    let said = talk.run(script).await;
    talk.end().await;
    said
}

#[async_trait]
impl Harness for FirecrackerHarness {
    async fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(self.firecracker().await)
    }

    async fn spec(&self) -> BootSpec {
        let id = EngineId::random();
        let dir = self.path().join(id.as_str());
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&dir, Some(OWNER.uid), Some(OWNER.gid)).unwrap();
        let base = self.guest.join("rootfs-minimal-amd64.ext4");
        let engine = self.firecracker().await;
        let below = Below::image(base);
        let root = engine.create_root(below, &dir, None, OWNER).await.unwrap();
        self.machine(id, dir, root)
    }

    async fn ping(&self, carrier: Carrier) -> Result<(), String> {
        let Carrier::Single(stream) = carrier;
        // Whatever was pinged before may be in the middle of a former link.
        let mode = match self.pinged.swap(true, Ordering::Relaxed) {
            false => bhatti_link::Mode::FirstBoot,
            true => bhatti_link::Mode::Reconnect,
        };
        let nonce = EngineId::random().as_str().as_bytes().try_into().unwrap();
        let (link, driver) =
            bhatti_link::connect(stream, nonce, mode).await.map_err(|error| error.to_string())?;
        link.close();
        driver.await;
        Ok(())
    }

    async fn murder(&self, record: &VmRecord) {
        let pid = nix::unistd::Pid::from_raw(record.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    async fn traces(&self, machine: &VmRecord) -> Vec<String> {
        let mut found = Vec::new();
        // Pid 0 stands for "never started".
        if machine.pid > 0 && Path::new(&format!("/proc/{}", machine.pid)).exists() {
            found.push(format!("process {}", machine.pid));
        }
        let groups = self.groups(machine.id.as_str());
        found.extend(groups.iter().map(|group| group.display().to_string()));
        for socket in ["api.sock", "vsock.sock", "state.pipe", "memory.sock"] {
            let path = machine.dir.join(socket);
            if path.exists() {
                found.push(path.to_string());
            }
        }
        found
    }

    async fn remember(&self, vm: &dyn Vm, text: &str) {
        // /dev/shm is memory and nothing else.
        ask(vm, &format!("printf %s '{text}' > /dev/shm/remembered")).await;
    }

    async fn recall(&self, vm: &dyn Vm) -> String {
        ask(vm, "cat /dev/shm/remembered").await
    }

    fn shelf(&self) -> Utf8PathBuf {
        let shelf = self.path().join(format!("shelf-{}", EngineId::random()));
        std::fs::create_dir(&shelf).unwrap();
        std::fs::set_permissions(&shelf, PermissionsExt::from_mode(0o700)).unwrap();
        shelf
    }

    fn booted(&self) {
        let Ok(log) = std::env::var("BHATTI_BOOT_LOG") else { return };
        let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        writeln!(log, "firecracker kvm {}", self.cgroup).unwrap();
    }
}
