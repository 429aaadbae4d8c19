//! Keys typed at a shell's prompt, until what they show is there: over the link, over the API, and
//! through `bhatti shell` in a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bhatti_api::route::Terminal as Wanted;
use bhatti_client::TerminalEvent;
use bhatti_guest_client::{SessionEvent, SessionSpec, Which};
use bytes::Bytes;
use nix::pty::{Winsize, openpty};
use tokio::sync::mpsc;

use super::way::Way;
use crate::report::{Part, Table};
use crate::stats::Series;
use crate::subject::{RESIDENT, Subject};

/// Keys on a line, and lines, in a round.
const KEYS: usize = 40;
const LINES: usize = 2;
/// Between two keys: a fast typist, and well above what one takes.
const GAP: Duration = Duration::from_millis(60);
const DEADLINE: Duration = Duration::from_secs(30);

/// Typed first. What it prints differs from what is typed.
const SET_PROMPT: &str = "PS1='rea''dy> '\r";
const PROMPT: &[u8] = b"ready> ";

/// A terminal, however it is reached.
trait Screen {
    async fn write(&mut self, bytes: &'static [u8]) -> Result<()>;
    async fn next(&mut self) -> Result<Bytes>;

    /// Reads until `wanted` was shown.
    async fn shows(&mut self, wanted: &[u8]) -> Result<()> {
        let mut shown = Vec::new();
        let read = async {
            while !shown.windows(wanted.len()).any(|window| window == wanted) {
                shown.extend_from_slice(&self.next().await?);
            }
            anyhow::Ok(())
        };
        let read = tokio::time::timeout(DEADLINE, read).await;
        read.with_context(|| {
            let (wanted, shown) =
                (String::from_utf8_lossy(wanted), String::from_utf8_lossy(&shown));
            format!("{wanted:?} was never shown, but {shown:?}")
        })?
    }

    /// Ends the shell, and sees its end: one that nobody sees is remembered, and counts.
    async fn ends(&mut self) -> Result<()> {
        self.write(b"exit\r").await?;
        let ended = async { while self.next().await.is_ok() {} };
        tokio::time::timeout(DEADLINE, ended).await.context("the shell does not end")
    }

    /// Types comments, and times each key.
    async fn types(&mut self, series: &mut Series) -> Result<()> {
        self.write(SET_PROMPT.as_bytes()).await?;
        self.shows(PROMPT).await?;
        for _ in 0..LINES {
            self.write(b"#").await?;
            self.shows(b"#").await?;
            for _ in 0..KEYS {
                tokio::time::sleep(GAP).await;
                let started = Instant::now();
                self.write(b"x").await?;
                self.shows(b"x").await?;
                series.push(started.elapsed());
            }
            self.write(b"\r").await?;
            self.shows(PROMPT).await?;
        }
        Ok(())
    }
}

struct Linked(bhatti_guest_client::Attached);

impl Screen for Linked {
    async fn write(&mut self, bytes: &'static [u8]) -> Result<()> {
        Ok(self.0.input.write(Bytes::from_static(bytes)).await?)
    }

    async fn next(&mut self) -> Result<Bytes> {
        match self.0.output.next().await? {
            Some(SessionEvent::Output(bytes)) => Ok(bytes),
            other => bail!("the shell is over: {other:?}"),
        }
    }
}

struct Served(bhatti_client::Terminal);

impl Screen for Served {
    async fn write(&mut self, bytes: &'static [u8]) -> Result<()> {
        Ok(self.0.input.write(Bytes::from_static(bytes)).await?)
    }

    async fn next(&mut self) -> Result<Bytes> {
        match self.0.output.next().await? {
            TerminalEvent::Output(bytes) => Ok(bytes),
            other => bail!("the shell is over: {other:?}"),
        }
    }
}

/// `bhatti shell` as a process in a terminal of ours.
struct Typed {
    process: Child,
    keyboard: File,
    screen: mpsc::Receiver<Bytes>,
}

impl Typed {
    fn start(mut command: Command) -> Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(&size, None).context("cannot open a terminal")?;
        let theirs = File::from(terminal.slave);
        let process = command
            .env("TERM", "xterm")
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs.try_clone()?))
            .stderr(Stdio::from(theirs))
            .spawn()
            .context("cannot start the shell")?;
        let keyboard = File::from(terminal.master);
        let mut shown = keyboard.try_clone()?;
        let (sender, screen) = mpsc::channel(64);
        // Ends with the process: reading fails once nobody has the other end open.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = shown.read(&mut buffer) {
                if sender.blocking_send(Bytes::copy_from_slice(&buffer[..n])).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, keyboard, screen })
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Screen for Typed {
    async fn write(&mut self, bytes: &'static [u8]) -> Result<()> {
        Ok(self.keyboard.write_all(bytes)?)
    }

    async fn next(&mut self) -> Result<Bytes> {
        self.screen.recv().await.context("the shell is over")
    }
}

pub(super) struct Keys {
    link: Series,
    api: Series,
    shell: Series,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self {
            link: Series::new("link"),
            api: Series::new("API"),
            shell: Series::new("`bhatti shell`"),
        }
    }

    pub(super) async fn over_link(&mut self, way: &Way<'_>) -> Result<()> {
        let Way::Link(guest) = way else { bail!("no link") };
        let attached = guest.attach(Which::New(SessionSpec::default())).await?;
        let mut screen = Linked(attached);
        screen.types(&mut self.link).await?;
        screen.ends().await
    }

    pub(super) async fn over_api(&mut self, way: &Way<'_>) -> Result<()> {
        let Way::Api(api) = way else { bail!("no API") };
        way.rest(1).await?;
        let mut screen = Served(api.client.terminal(RESIDENT, Wanted::New).await?);
        screen.types(&mut self.api).await?;
        screen.ends().await
    }

    pub(super) async fn through_shell(&mut self, subject: &Subject) -> Result<()> {
        let mut screen = Typed::start(subject.command(&["shell", RESIDENT, "--new"]))?;
        screen.types(&mut self.shell).await?;
        screen.ends().await
    }

    pub(super) fn part(&self) -> Part {
        let mut table = Table::of_series("a key until it is shown", "over link, p50");
        for series in [&self.link, &self.api, &self.shell] {
            let extra = series.percentile(50) - self.link.percentile(50);
            table.series(series, 2, [format!("{extra:+.2} ms")]);
        }
        Part { tables: vec![table], ..Part::default() }
    }
}
