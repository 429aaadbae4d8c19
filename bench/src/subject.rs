//! The daemon under measurement that boots its machines, through its API and its command.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use bhatti_api::{CreateSandbox, ExecRequest};
use bhatti_client::Client;
use bhatti_testkit::{TestDaemon, User};

use crate::memory;
use crate::report::Part;

/// The sandbox that is there all the time.
pub(crate) const RESIDENT: &str = "resident";
/// What every machine is, in MiB; with one CPU.
pub(crate) const MEMORY_MIB: u32 = 512;

/// Every create boots, and nothing sleeps.
const CONFIG: &str = "goldens:
  max_mb: 0
thermal:
  warm_after: never
  cold_after: never
";

/// A daemon with one sandbox, [`RESIDENT`], and two users: one who owns it, and one who has none.
pub(crate) struct Subject {
    pub(crate) daemon: TestDaemon,
    owner: User,
    pub(crate) client: Client,
    pub(crate) newcomer: Client,
}

impl Subject {
    pub(crate) async fn start() -> Result<Self> {
        let mut daemon = TestDaemon::start_with(CONFIG);
        // They are told with the results.
        daemon.allow_error("");
        let owner = daemon.create_user("bench", 10);
        let newcomer = daemon.create_user("newcomer", 10);
        let (client, newcomer) = (daemon.client(&owner), daemon.client(&newcomer));
        create(&client, RESIDENT).await?;
        Ok(Self { daemon, owner, client, newcomer })
    }

    /// The resident's VMM. Only while it is the only machine.
    pub(crate) fn resident_pid(&self) -> Result<i32> {
        match self.daemon.machines()[..] {
            [pid] => Ok(pid),
            ref pids => bail!("one machine should be there, these are: {pids:?}"),
        }
    }

    /// `bhatti create` as a process of its own, ready to run.
    pub(crate) fn create_command(&self, name: &str) -> Command {
        let memory = MEMORY_MIB.to_string();
        self.command(&["create", "--name", name, "--cpus", "1", "--memory", &memory])
    }

    /// Any `bhatti` command of the owner's, ready to run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.daemon.prepare(Some(&self.owner), args)
    }

    /// Ends the daemon in order. The resident goes on.
    pub(crate) fn stop_daemon(&mut self) -> Result<()> {
        let code = self.daemon.terminate();
        ensure!(code == 0, "the daemon ended with {code}");
        Ok(())
    }

    /// Starts it again. It adopts the resident, and listens elsewhere than before.
    pub(crate) fn start_daemon(&mut self) {
        self.daemon.run();
        self.client = self.daemon.client(&self.owner);
    }

    /// The host's end of the resident's link. Only while it is the only machine.
    pub(crate) fn agent_socket(&self) -> Result<std::path::PathBuf> {
        Ok(self.resident_dir()?.join("agent.sock"))
    }

    /// Where the resident's VMM works. Only while it is the only machine.
    pub(crate) fn resident_dir(&self) -> Result<std::path::PathBuf> {
        let mut dirs = std::fs::read_dir(self.daemon.data_dir().join("sandboxes"))?;
        let dir = dirs.next().context("the resident has a directory")??;
        ensure!(dirs.next().is_none(), "one machine should be there");
        Ok(dir.path())
    }

    /// Removes the resident and ends the daemon. Says what it complained of.
    pub(crate) async fn end(mut self) -> Result<Part> {
        destroy(&self.client, RESIDENT).await?;
        self.stop_daemon()?;
        Part::errors(&self.daemon.log_file(), "errors in the log, sandboxes that boot")
    }
}

/// The one daemon that is none of those in `before`.
pub(crate) fn newest_daemon(before: &[i32]) -> Result<i32> {
    let mut daemons = memory::children_told_to("serve")?;
    daemons.retain(|pid| !before.contains(pid));
    match daemons[..] {
        [pid] => Ok(pid),
        _ => bail!("one daemon should have been started, these were: {daemons:?}"),
    }
}

/// Makes sure of a connection, before a clock starts: the client does not use one again that was
/// idle for some seconds, and making one is not what is measured.
pub(crate) async fn connect(client: &Client) -> Result<()> {
    client.health().await.context("the daemon does not answer")?;
    Ok(())
}

/// `DELETE /sandboxes/:s`
pub(crate) async fn destroy(client: &Client, name: &str) -> Result<()> {
    connect(client).await?;
    client.destroy(name).await.context("destroy failed")?;
    Ok(())
}

/// `POST /sandboxes`
pub(crate) async fn create(client: &Client, name: &str) -> Result<()> {
    let wanted = CreateSandbox {
        name: name.to_owned(),
        cpus: Some(1.0),
        memory_mb: Some(MEMORY_MIB.into()),
        ..CreateSandbox::default()
    };
    let created = client.create(&wanted).await.context("create failed")?;
    ensure!(!created.existing, "sandbox {name} was there already");
    Ok(())
}

/// `true` to its end.
pub(crate) async fn exec_true(client: &Client, name: &str) -> Result<()> {
    let result = exec(client, name, "true").await?;
    ensure!(result.is_empty(), "`true` printed {result:?}");
    Ok(())
}

/// What a command printed, which had to work. The words are split at spaces.
pub(crate) async fn exec(client: &Client, name: &str, command: &str) -> Result<String> {
    let cmd = command.split(' ').map(str::to_owned).collect();
    let request = ExecRequest { cmd, ..ExecRequest::default() };
    let result = client.exec_buffered(name, &request).await.context("exec failed")?;
    ensure!(
        result.exit_code == 0,
        "{command:?} exited with {}: {}",
        result.exit_code,
        result.stderr
    );
    Ok(result.stdout)
}

/// Runs a process to its end; its output is read only if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    // Not the whole command: its environment holds a key.
    ensure!(
        output.status.success(),
        "{:?} {:?} failed ({}): {}",
        command.get_program(),
        command.get_args(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
