//! The real daemon as a process, and the real command to drive it.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use bhatti_client::Client;
use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::ip;
use crate::wait_for;

/// An account on a [`TestDaemon`].
#[derive(Clone, Debug)]
pub struct User {
    pub name: String,
    pub key: String,
}

/// How a command ended and what it printed.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output of a command that had to work.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Standard error of a command that had to fail with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stderr
    }
}

/// Which engine the daemons of all tests use, unless a test says something else; without it, what a
/// daemon chooses by itself.
const ENGINE: &str = "BHATTI_TEST_ENGINE";

/// The lines of a configuration that say so. Where there is a Firecracker for tests, every daemon
/// knows it.
fn engine_config(extra: &str) -> String {
    let lines = [
        ("engine", ENGINE),
        ("firecracker_bin", "BHATTI_FIRECRACKER_BIN"),
        ("firecracker_seccomp_filter", "BHATTI_FIRECRACKER_SECCOMP"),
    ];
    let unsaid = lines.into_iter().filter(|(key, _)| !extra.contains(&format!("{key}:")));
    unsaid
        .filter_map(|(key, variable)| Some(format!("{key}: {}\n", std::env::var(variable).ok()?)))
        .collect()
}

/// What the daemon's log says of each machine that came up by booting: one of a sandbox, and one
/// that was frozen at once for others to be cloned from.
const BOOTED: [&str; 2] = ["machine is up", "made a golden snapshot"];

/// A daemon with a data directory, a network and a control group of its own.
pub struct TestDaemon {
    scratch: tempfile::TempDir,
    prefix: String,
    extra_config: String,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
    url: String,
    admin: Option<User>,
    allowed_errors: Vec<String>,
}

impl TestDaemon {
    /// Starts one and waits until it serves. Call it inside [`crate::on_fresh_host`].
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with more lines in its configuration file.
    pub fn start_with(extra_config: &str) -> Self {
        let mut daemon = Self::prepared(extra_config);
        daemon.run();
        daemon
    }

    /// Everything but the process: configuration and guest files are in place.
    pub fn prepared(extra_config: &str) -> Self {
        let scratch = tempfile::Builder::new()
            .prefix("e2e-")
            .tempdir_in(scratch_root())
            .expect("a scratch directory");
        let mut tag = [0; 3];
        getrandom::fill(&mut tag).expect("random bytes");
        let prefix = format!("t{:02x}{:02x}{:02x}-", tag[0], tag[1], tag[2]);
        let daemon = Self {
            scratch,
            prefix,
            extra_config: extra_config.to_owned(),
            child: None,
            log: Arc::default(),
            url: String::new(),
            admin: None,
            allowed_errors: Vec::new(),
        };
        daemon.install_guest();
        daemon.write_config("");
        daemon
    }

    /// The same with a data directory on a file system of `mib` MiB.
    pub fn prepared_on_small_disk(mib: u32) -> Self {
        let daemon = Self::prepared("");
        let data = daemon.data_dir();
        std::fs::remove_dir_all(&data).expect("it was just made");
        std::fs::create_dir(&data).expect("a mount point");
        let size = format!("size={mib}m,mode=0711");
        let (tmpfs, flags) = (Some("tmpfs"), nix::mount::MsFlags::empty());
        // In this test's own mount namespace, so it goes with the test.
        nix::mount::mount(tmpfs, data.as_std_path(), tmpfs, flags, Some(size.as_str()))
            .expect("a small file system");
        daemon.install_guest();
        daemon
    }

    /// Writes `file` until less than `leave_mib` MiB are left on its file system.
    pub fn fill_disk(&self, file: &Utf8Path, leave_mib: u64) {
        let mut ballast = std::fs::File::create(file).expect("a file");
        let chunk = vec![1; 1 << 20];
        let free = || {
            let stat = nix::sys::statvfs::statvfs(file.as_std_path()).expect("it is there");
            (stat.blocks_available() * stat.fragment_size()) >> 20
        };
        while free() > leave_mib {
            ballast.write_all(&chunk).expect("there is room");
        }
        if leave_mib == 0 {
            // To the last byte; the write that finds no room is the point.
            while ballast.write_all(&chunk[..4096]).is_ok() {}
        }
    }

    fn install_guest(&self) {
        let guest = guest_dir();
        let image = image_file("minimal");
        for (dir, file) in [("kernel", "vmlinux"), ("kernel", "initramfs.cpio"), ("images", &image)]
        {
            let (from, to) = (guest.join(file), self.data_dir().join(dir).join(file));
            assert!(from.exists(), "{from} is missing; run: cargo xtask guest");
            std::fs::create_dir_all(to.parent().expect("it has one")).expect("a directory");
            // Read-only for the daemon, so a link will do where one is possible.
            if std::fs::hard_link(&from, &to).is_err() {
                let copy = ["--sparse=always", from.as_str(), to.as_str()];
                let copied = Command::new("cp").args(copy).status().expect("cp runs");
                assert!(copied.success(), "cp {from} {to}");
            }
        }
    }

    fn write_config(&self, client: &str) {
        // Any port, but for tests that have one in mind. Not as the API's is written: some tests
        // put another in place of that.
        let public = if self.extra_config.contains("public_proxy_listen:") {
            ""
        } else {
            "public_proxy_listen: localhost:0\n"
        };
        let text = format!(
            "listen: 127.0.0.1:0\ndata_dir: {}\nnetwork_prefix: {}\n{}\n{}{public}{client}",
            self.data_dir(),
            self.prefix,
            self.extra_config,
            engine_config(&self.extra_config),
        );
        std::fs::write(self.config(), text).expect("a config file");
    }

    /// Has the next start of the daemon find these lines in its configuration file, in place of those it
    /// was made with.
    pub fn reconfigure(&mut self, extra_config: &str) {
        extra_config.clone_into(&mut self.extra_config);
        self.write_config("");
    }

    /// Starts the process and waits until it serves.
    pub fn run(&mut self) {
        let mut child = Command::new(bhatti())
            .arg("serve")
            .env("BHATTI_CONFIG", self.config().as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("bhatti starts; build it first");
        let stdout = child.stdout.take().expect("piped");
        self.child = Some(child);
        self.log.lock().expect("not poisoned").clear();
        let log = self.log.clone();
        let whole = std::fs::OpenOptions::new().append(true).create(true).open(self.log_file());
        let mut whole = whole.expect("the log file opens");
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if BOOTED.contains(&message(&line).as_str()) {
                    count_boot(&line);
                }
                writeln!(whole, "{line}").expect("the log file takes a line");
                log.lock().expect("not poisoned").push(line);
            }
        });
        let address = wait_for("the daemon serves", || {
            let exited = self.child.as_mut().expect("running").try_wait().expect("it can be asked");
            assert!(exited.is_none(), "daemon ended: {:?}", self.log.lock().expect("log"));
            let log = self.log.lock().expect("not poisoned");
            let ready = log.iter().find(|line| message(line) == "ready")?;
            field(ready, "listen")
        });
        self.assert_accelerated();
        self.url = format!("http://{address}");
        if self.admin.is_none() {
            self.admin = Some(self.create_user("admin", 50));
        }
    }

    /// Where `BHATTI_TEST_ACCEL` says what machines have to run on, the daemon must have found it by
    /// itself: a test that was meant for KVM says nothing under emulation. And so with the engine.
    fn assert_accelerated(&self) {
        let log = self.log.lock().expect("not poisoned");
        let chosen = log.iter().find(|line| message(line) == "engine chosen");
        for (variable, name) in [("BHATTI_TEST_ACCEL", "accel"), (ENGINE, "engine")] {
            let Ok(wanted) = std::env::var(variable) else { continue };
            if name == "engine" && self.extra_config.contains("engine:") {
                continue; // this test has an opinion
            }
            let found = chosen.and_then(|line| field(line, name));
            assert_eq!(found.as_deref(), Some(wanted.as_str()), "{chosen:?}");
        }
    }

    /// The engine it has chosen, as it says itself.
    pub fn engine(&self) -> String {
        let log = self.log.lock().expect("not poisoned");
        let chosen = log.iter().find(|line| message(line) == "engine chosen");
        chosen.and_then(|line| field(line, "engine")).expect("it runs, so it has chosen one")
    }

    /// `bhatti user create`; the account with its key.
    pub fn create_user(&self, name: &str, max_sandboxes: u32) -> User {
        let max = max_sandboxes.to_string();
        let out =
            self.command(None, &["user", "create", "--name", name, "--max-sandboxes", &max]).ok();
        let key = out
            .lines()
            .find(|line| line.contains("API key:"))
            .and_then(|line| line.split_whitespace().last())
            .expect("the key is shown")
            .to_owned();
        User { name: name.to_owned(), key }
    }

    /// The account every [`Self::cli`] call uses.
    pub fn admin(&self) -> &User {
        self.admin.as_ref().expect("the daemon ran")
    }

    /// Runs `bhatti` as the admin.
    pub fn cli(&self, args: &[&str]) -> Ran {
        self.command(Some(self.admin()), args)
    }

    /// Runs `bhatti` as `user`.
    pub fn cli_as(&self, user: &User, args: &[&str]) -> Ran {
        self.command(Some(user), args)
    }

    fn command(&self, user: Option<&User>, args: &[&str]) -> Ran {
        Ran::new(self.prepare(user, args).output().expect("bhatti runs"))
    }

    /// A `bhatti` command that is not started yet.
    pub fn prepare(&self, user: Option<&User>, args: &[&str]) -> Command {
        let mut command = Command::new(bhatti());
        command.args(args).env("BHATTI_CONFIG", self.config().as_str());
        command.env("TMPDIR", self.scratch.path()).stdin(Stdio::null());
        command.env("BHATTI_URL", &self.url);
        if let Some(user) = user {
            command.env("BHATTI_TOKEN", &user.key);
        }
        command
    }

    /// A client as `user`, for what the command does not say.
    pub fn client(&self, user: &User) -> Client {
        Client::new(&self.url, Some(&user.key)).expect("the daemon's own address parses")
    }

    /// `http://127.0.0.1:<port>`
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The daemon's data directory.
    pub fn data_dir(&self) -> Utf8PathBuf {
        self.scratch_path().join("data")
    }

    /// A directory of this test's own.
    pub fn scratch_path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.scratch.path()).expect("target/ has a UTF-8 path")
    }

    /// All the daemon ever said, over every restart.
    pub fn log_file(&self) -> Utf8PathBuf {
        self.scratch_path().join("daemon.log")
    }

    /// Whether the scratch directory stays when this goes, for somebody to look into.
    pub fn keep_scratch(&mut self, keep: bool) {
        self.scratch.disable_cleanup(keep);
    }

    /// The configuration file.
    pub fn config(&self) -> Utf8PathBuf {
        self.scratch_path().join("config.yaml")
    }

    /// Ends the daemon as a crash would. Machines go on.
    pub fn kill_9(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().expect("ours to kill");
        child.wait().expect("it ends");
    }

    /// Ends the daemon as an operator would and waits for it.
    pub fn terminate(&mut self) -> i32 {
        let mut child = self.child.take().expect("running");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("ours to signal");
        wait_for("the daemon ends", || child.try_wait().expect("it can be asked"))
            .code()
            .unwrap_or(-1)
    }

    /// Whether the daemon's log has a line with `text` since it was started last.
    pub fn logged(&self, text: &str) -> bool {
        self.count_logged(text) > 0
    }

    /// How many lines with `text` the daemon's log has since it was started last.
    pub fn count_logged(&self, text: &str) -> usize {
        let log = self.log.lock().expect("not poisoned");
        log.iter().filter(|line| line.contains(text)).count()
    }

    /// How many machines the daemon booted since it was started last. What was woken or cloned
    /// does not count.
    pub fn boots(&self) -> usize {
        let log = self.log.lock().expect("not poisoned");
        log.iter().filter(|line| BOOTED.contains(&message(line).as_str())).count()
    }

    /// Announces that the log will have an ERROR line containing `text`.
    pub fn allow_error(&mut self, text: &str) {
        self.allowed_errors.push(text.to_owned());
    }

    /// ERROR lines of the daemon's log, since it was started last, that nobody announced.
    pub fn unannounced_errors(&self) -> Vec<String> {
        let log = self.log.lock().expect("not poisoned");
        let errors = log.iter().filter(|line| field(line, "level").as_deref() == Some("ERROR"));
        let allowed = |line: &str| self.allowed_errors.iter().any(|text| line.contains(text));
        errors.filter(|line| !allowed(line)).cloned().collect()
    }

    /// What the daemon's process holds, in MiB: `VmRSS` now, `VmHWM` at most.
    #[track_caller]
    pub fn memory_mib(&self, what: &str) -> u64 {
        let pid = self.child.as_ref().expect("running").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: u64 = kib.and_then(|kib| kib.parse().ok()).expect("a line of /proc/PID/status");
        kib >> 10
    }

    /// How many files, sockets and pipes the daemon's process has open.
    #[track_caller]
    pub fn open_files(&self) -> usize {
        let pid = self.child.as_ref().expect("running").id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
    }

    /// Pids of the machines' processes, from the control group of this daemon.
    pub fn machines(&self) -> Vec<i32> {
        self.processes_in("")
    }

    /// Pids in the control group of this daemon, or in one below it.
    pub(crate) fn processes_in(&self, below: &str) -> Vec<i32> {
        let group = self.prefix.trim_end_matches('-').to_owned();
        let mut pids = Vec::new();
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"] {
            collect_pids(&PathBuf::from(root).join(&group).join(below), &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Fails unless nothing of any sandbox is left on this host.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.machines(), [0; 0], "machines are left");
        assert_eq!(self.leftovers(), Vec::<String>::new(), "files are left");
        let namespaces = ip("netns list");
        assert!(!namespaces.contains(&self.prefix), "namespaces are left: {namespaces}");
        let links = ip("-br link");
        // lo, and this test's own cable to the world.
        let ours: Vec<_> = links
            .lines()
            .filter(|line| !line.starts_with("lo ") && !line.starts_with("w0@"))
            .collect();
        assert!(ours.is_empty(), "links are left: {ours:?}");
    }
}

impl TestDaemon {
    /// What lies in the directories of the data directory that sandboxes and snapshots fill.
    fn leftovers(&self) -> Vec<String> {
        // Whatever else there is, or will be, has to be empty once nothing exists.
        const STAYS: [&str; 3] = ["kernel", "images", "goldens"];
        let mut left = Vec::new();
        for entry in self.data_dir().read_dir_utf8().expect("it exists").flatten() {
            if !entry.path().is_dir() || STAYS.contains(&entry.file_name()) {
                continue;
            }
            let inside = entry.path().read_dir_utf8().expect("it can be read").flatten();
            left.extend(inside.map(|inside| inside.path().to_string()));
        }
        left
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        for pid in self.machines() {
            // It may have ended by itself meanwhile.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        wait_for("machines end", || self.machines().is_empty().then_some(()));
        let group = self.prefix.trim_end_matches('-').to_owned();
        for root in ["", "unified/", "cpu/", "memory/", "pids/"] {
            remove_groups(&PathBuf::from(format!("/sys/fs/cgroup/{root}{group}")));
        }
        if std::thread::panicking() {
            let log = self.log.lock().map(|log| log.join("\n")).unwrap_or_default();
            drop(writeln!(std::io::stderr(), "--- daemon log ---\n{log}"));
            return;
        }
        let errors = self.unannounced_errors();
        assert!(errors.is_empty(), "unannounced errors in the daemon's log: {errors:?}");
    }
}

fn collect_pids(dir: &std::path::Path, pids: &mut Vec<i32>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| !is_kernels(pid)));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), pids);
        }
    }
}

/// KVM has a thread of the kernel's own for each machine, in the machine's group. Its parent is the
/// one of all such threads, which has number 2; it goes with the machine.
fn is_kernels(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line == "PPid:\t2")
}

fn remove_groups(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    // What is not there, or not empty yet, stays: the next boot of the host has it clean.
    drop(std::fs::remove_dir(dir));
}

fn count_boot(line: &str) {
    let Some(path) = std::env::var_os("BHATTI_BOOT_LOG") else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    writeln!(file.expect("the boot log opens"), "{line}").expect("the boot log takes a line");
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or(Value::Null)
}

/// The message of a JSON log line.
fn message(line: &str) -> String {
    parsed(line)["fields"]["message"].as_str().unwrap_or_default().to_owned()
}

/// A field of a JSON log line, wherever it is.
fn field(line: &str, name: &str) -> Option<String> {
    let value = parsed(line);
    value[name].as_str().or_else(|| value["fields"][name].as_str()).map(str::to_owned)
}

/// `target/<profile>/`, where this test or benchmark and the program were built.
fn build_dir() -> PathBuf {
    let me = std::env::current_exe().expect("a running program has a path");
    let dir = me.parent().expect("a program is in a directory");
    // Tests are one directory further down.
    if dir.ends_with("deps") { dir.join("..") } else { dir.to_owned() }
}

/// The program under test: `BHATTI_BIN`, or the one built beside the test.
fn bhatti() -> PathBuf {
    std::env::var_os("BHATTI_BIN").map_or_else(|| build_dir().join("bhatti"), PathBuf::from)
}

/// What the file of a built-in image is called on this host.
pub fn image_file(tier: &str) -> String {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!("rootfs-{tier}-{arch}.ext4")
}

fn guest_dir() -> Utf8PathBuf {
    match std::env::var("BHATTI_GUEST_DIR") {
        Ok(dir) => Utf8PathBuf::from(dir),
        Err(_) => Utf8PathBuf::from_path_buf(build_dir().join("../guest")).expect("UTF-8"),
    }
}

/// On the file system of the guest files, so that they can be linked.
fn scratch_root() -> PathBuf {
    let root = build_dir().join("../e2e");
    std::fs::create_dir_all(&root).expect("target/ can be written");
    root.canonicalize().expect("it was just made")
}
