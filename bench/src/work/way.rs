//! The two ways to a machine, and what can be done over both.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bhatti_api::{ExecRequest, ExecStreamRequest};
use bhatti_client::{Client, ExecOutput, ExecStdin};
use bhatti_guest_client::{ExecEvent, ExecSpec, Guest, Mode, Stdin, StdinWriter};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::pace::Pace;
use crate::subject::{self, RESIDENT, Subject};

/// As long as the API gives a command by default, so that the same code runs.
const LIMIT: Duration = Duration::from_secs(300);

/// A way to the resident.
pub(crate) enum Way<'a> {
    Link(Guest),
    Api(Api<'a>),
}

pub(crate) struct Api<'a> {
    pub(crate) client: &'a Client,
    pace: RefCell<Pace>,
}

impl<'a> Way<'a> {
    /// Its link itself, while no daemon runs; and the task to abort in order to hang up.
    pub(crate) async fn link(subject: &Subject) -> Result<(Self, JoinHandle<()>)> {
        let socket = UnixStream::connect(subject.agent_socket()?).await?;
        let (guest, driver) = Guest::connect(socket, Mode::Reconnect).await?;
        let driver = tokio::spawn(async {
            drop(driver.await);
        });
        guest.hello(env!("CARGO_PKG_VERSION")).await?;
        Ok((Self::Link(guest), driver))
    }

    pub(crate) async fn api(subject: &'a Subject) -> Result<Self> {
        subject::connect(&subject.client).await?;
        let pace = RefCell::new(Pace::of_execs(Instant::now()));
        Ok(Self::Api(Api { client: &subject.client, pace }))
    }

    /// Waits until the API would take `n` commands at once. Not within what is measured.
    pub(crate) async fn rest(&self, n: u32) -> Result<()> {
        if let Self::Api(api) = self {
            let wait = api.pace.borrow_mut().take(n, Instant::now());
            tokio::time::sleep(wait).await;
            subject::connect(api.client).await?;
        }
        Ok(())
    }

    /// Runs a shell line and returns what it printed, which has to work.
    pub(crate) async fn shell(&self, line: &str) -> Result<String> {
        self.run(&["sh", "-c", line]).await
    }

    /// Runs a command to its end and returns what it printed.
    pub(crate) async fn run(&self, argv: &[&str]) -> Result<String> {
        let cmd: Vec<String> = argv.iter().map(ToString::to_string).collect();
        match self {
            Self::Link(guest) => {
                let spec = ExecSpec { argv: cmd, timeout: Some(LIMIT), ..ExecSpec::default() };
                let mut running = guest.exec(spec).await?;
                let mut printed = Vec::new();
                let code = loop {
                    match running.next().await?.context("no exit")? {
                        ExecEvent::Stdout(bytes) => printed.extend_from_slice(&bytes),
                        ExecEvent::Stderr(_) => {}
                        ExecEvent::Exit { code, .. } => break code,
                    }
                };
                ensure!(code == 0, "{argv:?} over the link exited with {code}");
                Ok(String::from_utf8(printed)?)
            }
            Self::Api(api) => {
                let request = ExecRequest { cmd, ..ExecRequest::default() };
                let result = api.client.exec_buffered(RESIDENT, &request).await?;
                ensure!(result.exit_code == 0, "{argv:?} over the API: {}", result.stderr);
                Ok(result.stdout)
            }
        }
    }

    /// `n` commands `true` at once: until the last has ended.
    pub(crate) async fn at_once(&self, n: usize) -> Result<Duration> {
        self.rest(u32::try_from(n)?).await?;
        let started = Instant::now();
        try_join_all((0..n).map(|_| self.run(&["true"]))).await?;
        Ok(started.elapsed())
    }

    /// `n` shells that wait for their stdin to end and then run `true`: from its end until the
    /// last has ended.
    pub(crate) async fn let_go(&self, n: usize) -> Result<Duration> {
        let mut waiting = Vec::new();
        for _ in 0..n {
            self.rest(1).await?;
            waiting.push(Command::start(self, &["sh", "-c", "read _; /usr/bin/true"]).await?);
        }
        let started = Instant::now();
        try_join_all(waiting.into_iter().map(|command| command.transfer(Bytes::new(), 0))).await?;
        Ok(started.elapsed())
    }

    /// Bytes to a command that only counts them.
    pub(crate) async fn stdin(&self, content: Bytes) -> Result<()> {
        let size = content.len();
        let command = Command::start(self, &["wc", "-c"]).await?;
        let printed = command.transfer(content, 0).await?.1;
        ensure!(printed.trim() == size.to_string(), "{printed:?} of {size} bytes arrived");
        Ok(())
    }

    /// Bytes from a command that makes them out of nothing.
    pub(crate) async fn stdout(&self, size: usize) -> Result<()> {
        let command = Command::start(self, &["head", "-c", &size.to_string(), "/dev/zero"]).await?;
        let (came, _) = command.transfer(Bytes::new(), size).await?;
        ensure!(came == size, "{came} bytes of {size} came");
        Ok(())
    }

    pub(crate) async fn write_file(&self, path: &str, content: Bytes) -> Result<()> {
        match self {
            Self::Link(guest) => guest.write_file(path, 0o644, content).await?,
            Self::Api(api) => {
                drop(api.client.write_file(RESIDENT, path, Some(0o644), content).await?);
            }
        }
        Ok(())
    }

    /// Returns how many bytes came.
    pub(crate) async fn read_file(&self, path: &str) -> Result<usize> {
        let mut came = 0;
        match self {
            Self::Link(guest) => {
                let mut content = guest.read_file(path, None).await?.content;
                while let Some(bytes) = content.next().await? {
                    came += bytes.len();
                }
            }
            Self::Api(api) => {
                let mut content = api.client.read_file(RESIDENT, path).await?;
                while let Some(bytes) = content.next().await? {
                    came += bytes.len();
                }
            }
        }
        Ok(came)
    }
}

/// A command that runs, with its stdin.
enum Command<'a> {
    Link(bhatti_guest_client::Running, StdinWriter),
    Api(bhatti_client::ExecSocket<'a>, ExecStdin),
}

/// What a command printed that is looked at.
const SHORT: usize = 100;

impl<'a> Command<'a> {
    async fn start(way: &'a Way<'_>, argv: &[&str]) -> Result<Self> {
        let cmd: Vec<String> = argv.iter().map(ToString::to_string).collect();
        match way {
            Way::Link(guest) => {
                let spec = ExecSpec {
                    argv: cmd,
                    timeout: Some(LIMIT),
                    stdin: Stdin::Pipe,
                    ..ExecSpec::default()
                };
                let mut running = guest.exec(spec).await?;
                let stdin = running.take_stdin().context("it was asked for")?;
                Ok(Self::Link(running, stdin))
            }
            Way::Api(api) => {
                let request =
                    ExecStreamRequest { cmd, stdin: true, ..ExecStreamRequest::default() };
                let socket = api.client.exec_socket(RESIDENT, &request).await?;
                let mut socket = socket.context("the daemon does not stream")?;
                ensure!(matches!(socket.next().await?, Some(ExecOutput::Started { .. })));
                let stdin = socket.take_stdin().context("it was asked for")?;
                Ok(Self::Api(socket, stdin))
            }
        }
    }

    /// Feeds it `content`, waits for its good end, and says how much it printed, and what, if that
    /// is short.
    async fn transfer(self, content: Bytes, expected: usize) -> Result<(usize, String)> {
        let mut said = Vec::with_capacity(SHORT);
        let mut came = 0;
        let mut take = |bytes: &Bytes| {
            came += bytes.len();
            if expected <= SHORT {
                said.extend_from_slice(bytes.slice(..bytes.len().min(SHORT)).as_ref());
            }
        };
        let code = match self {
            Self::Link(mut running, mut stdin) => {
                let feed = async {
                    stdin.write(content).await?;
                    stdin.finish().await?;
                    anyhow::Ok(())
                };
                let read = async {
                    loop {
                        match running.next().await?.context("no exit")? {
                            ExecEvent::Stdout(bytes) => take(&bytes),
                            ExecEvent::Stderr(_) => {}
                            ExecEvent::Exit { code, .. } => break anyhow::Ok(code),
                        }
                    }
                };
                tokio::try_join!(feed, read)?.1
            }
            Self::Api(mut socket, mut stdin) => {
                let control = socket.control();
                let feed = async {
                    stdin.write(content).await?;
                    stdin.finish().await?;
                    anyhow::Ok(())
                };
                let read = async {
                    loop {
                        match socket.next().await?.context("no exit")? {
                            ExecOutput::Stdout(bytes) => {
                                take(&bytes);
                                control.taken(bytes.len() as u64).await?;
                            }
                            ExecOutput::Started { .. } | ExecOutput::Stderr(_) => {}
                            ExecOutput::Exit(code) => break anyhow::Ok(code),
                            ExecOutput::Error(why) => bail!("{why}"),
                        }
                    }
                };
                tokio::try_join!(feed, read)?.1
            }
        };
        ensure!(code == 0, "a command exited with {code}");
        Ok((came, String::from_utf8_lossy(&said).into_owned()))
    }
}
