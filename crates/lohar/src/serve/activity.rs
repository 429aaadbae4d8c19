//! Says whether the machine works, so that one that does is not put to sleep.
//!
//! Five small files of `/proc`, and no look at single processes: the price does not grow with
//! what runs. All are counters of the kernel, so work between two reports is not missed.
//!
//! Promises:
//! - Our own CPU time is not in the report, and what the question itself sets in motion is not taken
//!   for work, so that asking keeps nobody awake.
//! - Every file is read up to a limit. Beyond it there are more connections than matter.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::PoisonError;
use std::time::Duration;

use bhatti_wire::message::{ActivityReply, ErrorKind};
use nix::time::{ClockId, clock_gettime};

use crate::guest::{Guest, MAX_COMMANDS};

/// The most that is read of one file, in bytes: some 1700 connections.
const MAX_TEXT: u64 = 256 * 1024;

/// A question that comes over vsock is brought by a thread of the kernel, which may still be runnable
/// while it is answered. So whoever is runnable is looked at again, so often and after so long; work
/// lasts longer.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// The kernel's counters at one moment; all only grow. Zero: when the machine booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of the clock that stands still with the machine.
    pub clock: Duration,
    /// CPU time of all tasks.
    pub everybody: Duration,
    /// CPU time of the agent.
    pub own: Duration,
    /// Received and sent, in bytes.
    pub network: u64,
}

/// The kernel does not say what was asked.
#[derive(Debug, thiserror::Error)]
enum ActivityError {
    #[error("failed to read {path}")]
    Read {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not understood")]
    Format { path: &'static str },
    #[error("failed to read a clock")]
    Clock(#[from] nix::Error),
}

/// Answers one question.
pub async fn activity(guest: &Guest) -> ActivityReply {
    let commands = MAX_COMMANDS.saturating_sub(guest.commands.available_permits()) as u32;
    let runnable = lasting(|| look("/proc/stat", runnable)).await;
    match runnable.and_then(|runnable| report(guest, commands, runnable)) {
        Ok(reply) => reply,
        Err(error) => ActivityReply {
            failure: Some(super::failure(ErrorKind::Other, &error)),
            ..ActivityReply::default()
        },
    }
}

/// How many are runnable for longer than a moment: the fewest that several looks find.
async fn lasting(
    mut look: impl FnMut() -> Result<u32, ActivityError>,
) -> Result<u32, ActivityError> {
    let mut fewest = look()?;
    for _ in 1..LOOKS {
        if fewest == 0 {
            break;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
        fewest = fewest.min(look()?);
    }
    Ok(fewest)
}

fn report(guest: &Guest, commands: u32, runnable: u32) -> Result<ActivityReply, ActivityError> {
    let ticked = look("/proc/stat", ticked)?;
    // A kernel without IPv6 has no such file.
    let tcp6 = if_present(look("/proc/net/tcp6", |text| Some(connections(text))))?;
    let connections = look("/proc/net/tcp", |text| Some(connections(text)))? + tcp6.unwrap_or(0);
    let now = Counters::read(ticked)?;
    // Nothing panics while holding it, and PID 1 must not die of a poisoned lock.
    let mut last = guest.counters.lock().unwrap_or_else(PoisonError::into_inner);
    let reply = ActivityReply {
        failure: None,
        runnable,
        busy_millis: millis(now.others_since(&last)),
        since_millis: millis(now.clock.saturating_sub(last.clock)),
        connections,
        moved_bytes: now.network.saturating_sub(last.network),
        commands,
    };
    *last = now;
    Ok(reply)
}

impl Counters {
    /// `ticked` stands in where the kernel keeps no exact account.
    fn read(ticked: Duration) -> Result<Self, ActivityError> {
        Ok(Self {
            network: look("/proc/net/dev", |text| Some(network_bytes(text)))?,
            everybody: if_present(look("/proc/schedstat", cpu_time))?.unwrap_or(ticked),
            own: clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into(),
            clock: clock_gettime(ClockId::CLOCK_MONOTONIC)?.into(),
        })
    }

    /// CPU time of everybody but the agent. The time slice it is in now is in its own time
    /// already, in everybody's only at the next report: too little by that much once, too much
    /// the next time.
    fn others_since(&self, last: &Self) -> Duration {
        let everybody = self.everybody.saturating_sub(last.everybody);
        everybody.saturating_sub(self.own.saturating_sub(last.own))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn look<T>(path: &'static str, find: impl FnOnce(&str) -> Option<T>) -> Result<T, ActivityError> {
    let failed = |source| ActivityError::Read { path, source };
    let mut bytes = Vec::with_capacity(4096);
    File::open(path).map_err(failed)?.take(MAX_TEXT).read_to_end(&mut bytes).map_err(failed)?;
    find(&String::from_utf8_lossy(&bytes)).ok_or(ActivityError::Format { path })
}

/// `None` if the kernel has no such file.
fn if_present<T>(outcome: Result<T, ActivityError>) -> Result<Option<T>, ActivityError> {
    match outcome {
        Err(ActivityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}

/// From `/proc/stat`: tasks that run or wait for a disk, without the one that reads this.
fn runnable(stat: &str) -> Option<u32> {
    let value = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u32>().ok()
    };
    Some(value("procs_running ")?.saturating_sub(1).saturating_add(value("procs_blocked ")?))
}

/// From `/proc/stat`: the time of all CPUs but what was idle, stolen or waiting. In ticks of
/// 10 ms, each given to whoever ran at its end, which for short bursts is anybody.
fn ticked(stat: &str) -> Option<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let numbers = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> =
        numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
    let &[user, nice, system, _idle, _waiting, interrupt, softirq, ..] = numbers.as_slice() else {
        return None;
    };
    let ticks = [user, nice, system, interrupt, softirq].into_iter().fold(0, u64::saturating_add);
    Some(TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX)))
}

/// From `/proc/schedstat`: what all tasks ran on all CPUs, in exact nanoseconds.
fn cpu_time(schedstat: &str) -> Option<Duration> {
    const RUN_TIME: usize = 7;
    let cpus = schedstat.lines().filter(|line| line.starts_with("cpu"));
    let times = cpus.map(|line| line.split_ascii_whitespace().nth(RUN_TIME)?.parse::<u64>().ok());
    let total = times.collect::<Option<Vec<_>>>()?;
    (!total.is_empty()).then(|| Duration::from_nanos(total.into_iter().sum()))
}

/// From `/proc/net/tcp` or `tcp6`: established connections to other machines.
fn connections(table: &str) -> u32 {
    const ESTABLISHED: &str = "01";
    let is_foreign = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let (Some(peer), Some(state)) = (fields.next(), fields.next()) else { return false };
        state == ESTABLISHED && peer_address(peer).is_some_and(|peer| !peer.is_loopback())
    };
    table.lines().skip(1).filter(is_foreign).count() as u32
}

/// The address of `0100007F:1F90`: words of eight hex digits, each as the CPU reads it.
fn peer_address(peer: &str) -> Option<IpAddr> {
    let (digits, _port) = peer.split_once(':')?;
    let word = |index: usize| {
        let word = digits.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    };
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// From `/proc/net/dev`: bytes received and sent by all interfaces but the loopback.
fn network_bytes(dev: &str) -> u64 {
    const SENT: usize = 8;
    let of = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        if name.trim() == "lo" {
            return None;
        }
        let mut numbers = numbers.split_ascii_whitespace();
        let received: u64 = numbers.next()?.parse().ok()?;
        let sent: u64 = numbers.nth(SENT - 1)?.parse().ok()?;
        received.checked_add(sent)
    };
    dev.lines().filter_map(of).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests;
