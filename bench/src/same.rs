//! `true` in one and the same machine, over its link itself and through the daemon.
//!
//! Two machines differ from each other, and one from itself a minute later, by more than a daemon
//! adds. So here it is one machine, the resident: the daemon is ended (its machine goes on), this
//! program takes the link, runs a block of commands, gives the link back, the daemon is started
//! again and adopts the machine, and the same block goes through the API. Paced alike.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bhatti_guest_client::{ExecEvent, ExecSpec, Guest, Mode};
use tokio::net::UnixStream;

use crate::stats::Series;
use crate::subject::{self, RESIDENT, Subject};

/// Commands in a block.
const BLOCK: usize = 20;
/// Before each block, not counted: caches and connections.
const WARM_UP: usize = 5;
/// Between two commands; keeps the API below its rate limit.
const GAP: Duration = Duration::from_millis(120);

/// Both series, of the same length.
pub(crate) struct SameMachine {
    pub(crate) link: Series,
    pub(crate) api: Series,
}

impl SameMachine {
    /// Runs `runs` commands over each, in blocks.
    pub(crate) async fn measure(subject: &mut Subject, runs: usize) -> Result<Self> {
        let mut both = Self {
            link: Series::new("exec true, link, same machine"),
            api: Series::new("exec true, API, same machine"),
        };
        for _ in 0..runs.div_ceil(BLOCK) {
            both.over_the_link(subject).await?;
            both.through_the_api(subject).await?;
        }
        Ok(both)
    }

    async fn over_the_link(&mut self, subject: &mut Subject) -> Result<()> {
        subject.stop_daemon()?;
        let socket = UnixStream::connect(subject.agent_socket()?).await?;
        let (guest, driver) = Guest::connect(socket, Mode::Reconnect).await?;
        let driver = tokio::spawn(driver);
        guest.hello(env!("CARGO_PKG_VERSION")).await?;
        for turn in 0..WARM_UP + BLOCK {
            tokio::time::sleep(GAP).await;
            let started = Instant::now();
            exec_true(&guest).await?;
            if turn >= WARM_UP {
                self.link.push(started.elapsed());
            }
        }
        // Hangs up, so that the daemon's link is the next one served.
        driver.abort();
        Ok(())
    }

    async fn through_the_api(&mut self, subject: &mut Subject) -> Result<()> {
        subject.start_daemon();
        for turn in 0..WARM_UP + BLOCK {
            tokio::time::sleep(GAP).await;
            let started = Instant::now();
            subject::exec_true(&subject.client, RESIDENT).await?;
            if turn >= WARM_UP {
                self.api.push(started.elapsed());
            }
        }
        Ok(())
    }

    pub(crate) fn all(&self) -> [&Series; 2] {
        [&self.link, &self.api]
    }
}

/// `true` to its end, with the daemon's default limit, so that the same code runs.
pub(crate) async fn exec_true(guest: &Guest) -> Result<()> {
    let timeout = Some(Duration::from_secs(300));
    let argv = vec!["true".to_owned()];
    let mut running = guest.exec(ExecSpec { argv, timeout, ..ExecSpec::default() }).await?;
    let mut code = None;
    while let Some(event) = running.next().await? {
        if let ExecEvent::Exit { code: exit, .. } = event {
            code = Some(exit);
        }
    }
    ensure!(code.context("no exit")? == 0, "`true` over the bare link exited with {code:?}");
    Ok(())
}
