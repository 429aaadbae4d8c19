//! Sandboxes that sleep: a daemon, some users, and what is done with their sandboxes, each request
//! timed alone and never faster than the daemon's rate limits, which count per user.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bhatti_api::{CreateSandbox, ExecEvent, ExecRequest, PatchSandbox};
use bhatti_client::Client;
use bhatti_testkit::{TestDaemon, User};
use bhatti_types::{Labels, Status, Thermal};

use crate::log::{self, Frozen};
use crate::memory::{self, Footprint};
use crate::pace::Pace;
use crate::report::Part;
use crate::subject::{self, MEMORY_MIB};

/// Warm comes soon, and cold only on demand: what is to stay hot is kept so.
const CONFIG: &str = "thermal:
  warm_after: 1s
  cold_after: never
";
/// Enough for one round to follow the other without waiting for a rate limit.
pub(super) const USERS: usize = 5;
const MAX_SANDBOXES: u32 = 60;
/// The name of a template in the daemon, as the kernel shows it.
const TEMPLATE: &str = "bhatti-memory";
/// How long a sandbox may take to fall asleep by itself when the host is busy.
const ASLEEP: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// What is run to see a first byte.
pub(super) const ECHO: [&str; 2] = ["echo", "here"];

/// A daemon and its users.
pub(super) struct Fleet {
    daemon: TestDaemon,
    serve: i32,
    accounts: Vec<Account>,
    /// For names that were not there before.
    made: usize,
    origins: Origins,
}

/// Where the sandboxes that were made by API came from.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    pub(super) sandboxes: usize,
    pub(super) clones: usize,
    /// What the record says of one that is no clone.
    pub(super) other: Option<String>,
}

struct Account {
    user: User,
    client: Client,
    creates: Pace,
    execs: Pace,
    reads: Pace,
}

/// One sandbox of a [`Fleet`].
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pub(super) account: usize,
    pub(super) name: String,
    /// As the daemon's log names it.
    id: String,
}

/// Whether a sandbox falls asleep by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Hot,
    Free,
}

/// A sandbox that was made, and how long that took.
pub(super) struct Made {
    pub(super) sandbox: Sandbox,
    pub(super) took: Duration,
}

/// What a stop came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped {
    /// Request to answer.
    pub(super) took: Duration,
    /// In the daemon's own words.
    pub(super) frozen: Frozen,
}

impl Fleet {
    pub(super) fn start() -> Result<Self> {
        let before = memory::children_told_to("serve")?;
        let mut daemon = TestDaemon::start_with(CONFIG);
        // They are told with the results.
        daemon.allow_error("");
        let serve = subject::newest_daemon(&before)?;
        let account = |number| {
            let user = daemon.create_user(&format!("user{number}"), MAX_SANDBOXES);
            let (client, now) = (daemon.client(&user), Instant::now());
            let (creates, execs) = (Pace::of_creates(now), Pace::of_execs(now));
            Account { user, client, creates, execs, reads: Pace::of_reads(now) }
        };
        let accounts = (0..USERS).map(account).collect();
        Ok(Self { daemon, serve, accounts, made: 0, origins: Origins::default() })
    }

    /// A connection of its own for whoever owns the sandbox.
    pub(super) fn client(&self, of: &Sandbox) -> Client {
        self.daemon.client(&self.accounts[of.account].user)
    }

    /// Makes a sandbox by API.
    pub(super) async fn create(&mut self, account: usize, keep: Keep) -> Result<Made> {
        let name = self.name();
        let account_of = &mut self.accounts[account];
        account_of.create().await?;
        let wanted = CreateSandbox {
            name: name.clone(),
            cpus: Some(1.0),
            memory_mb: Some(MEMORY_MIB.into()),
            keep_hot: Some(keep == Keep::Hot),
            ..CreateSandbox::default()
        };
        let started = Instant::now();
        let created = account_of.client.create(&wanted).await.context("create failed")?;
        let took = started.elapsed();
        ensure!(!created.existing, "sandbox {name} was there already");
        account_of.read().await?;
        let record = account_of.client.get(&name).await.context("inspect failed")?;
        self.origins.count(record.last_transition.map(|last| last.reason).unwrap_or_default());
        Ok(Made { sandbox: Sandbox { account, name, id: created.sandbox.id }, took })
    }

    /// Of all sandboxes made so far.
    pub(super) fn origins(&self) -> Origins {
        self.origins.clone()
    }

    /// The same by the command, ready to run, and the name it gives.
    pub(super) async fn create_command(&mut self, account: usize) -> Result<(String, Command)> {
        let (name, memory) = (self.name(), MEMORY_MIB.to_string());
        let of = &mut self.accounts[account];
        of.create().await?;
        let args = ["create", "--name", &name, "--cpus", "1", "--memory", &memory, "--keep-hot"];
        let command = self.daemon.prepare(Some(&of.user), &args);
        Ok((name, command))
    }

    fn name(&mut self) -> String {
        self.made += 1;
        format!("s{}", self.made)
    }

    /// Runs a shell line to its end.
    pub(super) async fn shell(&mut self, on: &Sandbox, line: &str) -> Result<()> {
        let of = &mut self.accounts[on.account];
        of.exec().await?;
        let cmd = ["sh", "-c", line].map(str::to_owned).into();
        let request = ExecRequest { cmd, ..ExecRequest::default() };
        let result = of.client.exec_buffered(&on.name, &request).await.context("exec failed")?;
        let (code, stderr) = (result.exit_code, &result.stderr);
        ensure!(code == 0, "{line:?} exited with {code}: {stderr}");
        Ok(())
    }

    /// Runs `true`.
    pub(super) async fn exec_true(&mut self, on: &Sandbox) -> Result<()> {
        let of = &mut self.accounts[on.account];
        of.exec().await?;
        subject::exec_true(&of.client, &on.name).await
    }

    /// How long after the request the first byte of a command's output came.
    pub(super) async fn first_byte(&mut self, of: &Sandbox) -> Result<Duration> {
        let account = &mut self.accounts[of.account];
        account.exec().await?;
        first_byte(&account.client, &of.name).await
    }

    /// Takes part of an account's allowance of execs, for requests over other connections.
    pub(super) async fn allow_execs(&mut self, account: usize, count: u32) {
        let wait = self.accounts[account].execs.take(count, Instant::now());
        tokio::time::sleep(wait).await;
    }

    /// Says whether a sandbox may fall asleep. Wakes nothing.
    pub(super) async fn keep(&mut self, sandbox: &Sandbox, keep: Keep) -> Result<()> {
        let of = &mut self.accounts[sandbox.account];
        of.read().await?;
        let patch = PatchSandbox { keep_hot: Some(keep == Keep::Hot), ..PatchSandbox::default() };
        of.client.patch(&sandbox.name, &patch).await.context("edit failed")?;
        Ok(())
    }

    /// Waits until all of these have fallen asleep.
    pub(super) async fn until_warm(&mut self, sandboxes: &[Sandbox]) -> Result<()> {
        let started = Instant::now();
        for (number, account) in self.accounts.iter_mut().enumerate() {
            let of: Vec<_> = sandboxes.iter().filter(|of| of.account == number).collect();
            while !of.is_empty() {
                account.read().await?;
                let list = account.client.list(&Labels::new()).await.context("list failed")?;
                let is_warm = |name: &str| {
                    list.iter().any(|it| it.name == name && it.thermal == Some(Thermal::Warm))
                };
                let awake: Vec<_> =
                    of.iter().filter(|of| !is_warm(&of.name)).map(|of| &of.name).collect();
                if awake.is_empty() {
                    break;
                }
                ensure!(started.elapsed() < ASLEEP, "these do not go warm: {awake:?}");
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Makes a sandbox cold, whatever it was.
    pub(super) async fn stop(&mut self, sandbox: &Sandbox) -> Result<Stopped> {
        let of = &mut self.accounts[sandbox.account];
        of.read().await?;
        let log = log::Mark::now(&self.daemon.log_file())?;
        let started = Instant::now();
        let stopped = of.client.stop(&sandbox.name).await.context("stop failed")?;
        let took = started.elapsed();
        ensure!(stopped.status == Status::Stopped, "a stopped sandbox is {}", stopped.status);
        Ok(Stopped { took, frozen: log.frozen(&sandbox.id).await? })
    }

    /// Makes a sandbox hot.
    pub(super) async fn start_again(&mut self, sandbox: &Sandbox) -> Result<()> {
        let of = &mut self.accounts[sandbox.account];
        of.read().await?;
        let started = of.client.start(&sandbox.name, false).await.context("start failed")?;
        ensure!(started.status == Status::Running, "a started sandbox is {}", started.status);
        Ok(())
    }

    pub(super) async fn destroy(&mut self, sandbox: &Sandbox) -> Result<()> {
        self.destroy_named(sandbox.account, &sandbox.name).await
    }

    pub(super) async fn destroy_named(&mut self, account: usize, name: &str) -> Result<()> {
        let of = &mut self.accounts[account];
        of.read().await?;
        subject::destroy(&of.client, name).await
    }

    /// All machines there are: how many, and what they hold together.
    pub(super) fn machines(&self) -> Result<(usize, Footprint)> {
        let pids = self.daemon.machines();
        let all = pids.iter().map(|pid| Footprint::of(*pid)).sum::<Result<Footprint>>()?;
        Ok((pids.len(), all))
    }

    /// What the daemon itself holds, and what its templates take.
    pub(super) fn daemon_memory(&self) -> Result<(Footprint, f64)> {
        Ok((Footprint::of(self.serve)?, memory::memory_files(self.serve, TEMPLATE)?))
    }

    /// Ends the daemon, and its machines. Says what it complained of.
    pub(super) fn end(mut self) -> Result<Part> {
        let code = self.daemon.terminate();
        ensure!(code == 0, "the daemon ended with {code}");
        Part::errors(&self.daemon.log_file(), "errors in the log, sandboxes that sleep")
    }
}

impl Origins {
    fn count(&mut self, reason: String) {
        self.sandboxes += 1;
        if reason.contains("golden") {
            self.clones += 1;
        } else {
            eprintln!("a sandbox that should be a clone is not: {reason}");
            self.other = Some(reason);
        }
    }
}

impl Account {
    /// Waits until another create is allowed, with a connection ready.
    async fn create(&mut self) -> Result<()> {
        tokio::time::sleep(self.creates.take(1, Instant::now())).await;
        subject::connect(&self.client).await
    }

    async fn exec(&mut self) -> Result<()> {
        tokio::time::sleep(self.execs.take(1, Instant::now())).await;
        subject::connect(&self.client).await
    }

    async fn read(&mut self) -> Result<()> {
        tokio::time::sleep(self.reads.take(1, Instant::now())).await;
        subject::connect(&self.client).await
    }
}

/// Runs a command to its end; how long after the request the first byte of its output came.
pub(super) async fn first_byte(client: &Client, sandbox: &str) -> Result<Duration> {
    let request = ExecRequest { cmd: ECHO.map(str::to_owned).into(), ..ExecRequest::default() };
    let started = Instant::now();
    let mut stream = client.exec_stream(sandbox, &request).await.context("exec failed")?;
    let (mut first, mut code) = (None, None);
    while let Some(event) = stream.next().await.context("exec failed")? {
        match event {
            ExecEvent::Stdout { .. } => first = first.or_else(|| Some(started.elapsed())),
            ExecEvent::Stderr { .. } => {}
            ExecEvent::Exit { exit_code, .. } => code = Some(exit_code),
            ExecEvent::Error { data } => anyhow::bail!("a command did not end: {data}"),
        }
    }
    ensure!(code == Some(0), "a command exited with {code:?}");
    first.context("a command printed nothing")
}
