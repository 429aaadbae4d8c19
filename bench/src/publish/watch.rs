//! What a proxy works, and whether the guest's CPU quota holds the guest back meanwhile.
//!
//! Rates depend on who else uses the host's cores; work for a request or a MiB hardly does.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bhatti_testkit::TestDaemon;
use camino::Utf8PathBuf;

use super::host::Proxy;

/// The processes of both proxies, and the guest's.
pub(super) struct Watch {
    daemon: i32,
    nginx: u32,
    /// Of the machine's control group.
    cpu_stat: Utf8PathBuf,
}

/// What has been used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Processor time of a proxy.
    pub(super) work: Duration,
    /// Periods of the guest's quota.
    pub(super) periods: u64,
    /// Those of them at whose end it had to wait for the next one.
    pub(super) held_back: u64,
}

impl Watch {
    /// Of a daemon with one machine, and an nginx with its workers.
    pub(super) fn new(daemon: &TestDaemon, nginx: u32) -> Result<Self> {
        let machine = *daemon.machines().first().context("no machine runs")?;
        let status = fs::read_to_string(format!("/proc/{machine}/status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let daemon = parent.context("a machine has a parent")?.trim().parse()?;
        Ok(Self { daemon, nginx, cpu_stat: cpu_stat(machine)? })
    }

    pub(super) fn used(&self, proxy: Proxy) -> Result<Used> {
        let work = match proxy {
            Proxy::Ours => worked(&self.daemon.to_string())?,
            Proxy::Nginx => {
                let master = self.nginx;
                let workers = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
                workers.split_whitespace().map(worked).sum::<Result<_>>()?
            }
        };
        let stat = fs::read_to_string(&self.cpu_stat)?;
        let field = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        Ok(Used { work, periods: field("nr_periods "), held_back: field("nr_throttled ") })
    }
}

impl Used {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            work: self.work.saturating_sub(before.work),
            periods: self.periods - before.periods,
            held_back: self.held_back - before.held_back,
        }
    }
}

/// The processor time of all threads a process has.
fn worked(pid: &str) -> Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile did not do much.
        let Ok(stat) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanos += stat.split(' ').next().context("three numbers")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Where the kernel counts for the control group a process is in.
fn cpu_stat(pid: i32) -> Result<Utf8PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let found = groups.lines().find_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            some if some.split(',').any(|one| one == "cpu") => "/sys/fs/cgroup/cpu",
            _ => return None,
        };
        let file = Utf8PathBuf::from(format!("{root}{group}/cpu.stat"));
        // On a hybrid host only one of the two has it.
        fs::read_to_string(&file).ok()?.contains("nr_periods").then_some(file)
    });
    found.context("the machine has no CPU quota")
}
