//! When a sandbox falls asleep: the whole policy, as pure functions.
//!
//! A sandbox is quiet while nobody holds a pin on it and its guest does no work. Quiet for
//! `warm_after` it is paused; quiet for `cold_after` it is frozen. Both times count from the same
//! moment. Before pausing, the guest is asked twice: once for a baseline, once for what it did
//! since, so that work which a user has waited for does not count as work nobody waits for.

use std::time::Duration;

use bhatti_guest_client::Activity;
use bhatti_types::Phase;

/// After how much quiet a sandbox sleeps. `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thermal {
    /// Virtual CPUs stop, memory stays.
    pub warm_after: Option<Duration>,
    /// Memory goes to files, the process ends.
    pub cold_after: Option<Duration>,
}

impl Default for Thermal {
    /// The times the contract promises.
    fn default() -> Self {
        Self {
            warm_after: Some(Duration::from_secs(30)),
            cold_after: Some(Duration::from_secs(30 * 60)),
        }
    }
}

/// What is known when a decision is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quiet {
    pub(crate) phase: Phase,
    pub(crate) keep_hot: bool,
    /// Somebody uses it now.
    pub(crate) in_use: bool,
    /// For how long nothing has happened.
    pub(crate) since: Duration,
    /// The guest has been asked for a baseline in this time.
    pub(crate) baseline: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until something changes.
    Nothing,
    /// Look again after this long.
    Look(Duration),
    /// Ask the guest what it has done so far; the answer decides nothing.
    Baseline,
    /// Ask the guest what it did since, then pause it or begin again.
    Decide,
    /// Freeze it.
    Freeze,
}

/// The share of `warm_after` over which the guest's own work is looked at.
const WINDOW: u32 = 3;

/// The decision.
pub(crate) fn next(thermal: Thermal, quiet: Quiet) -> Next {
    if quiet.keep_hot || quiet.in_use {
        return Next::Nothing;
    }
    let due = |after: Duration| after.checked_sub(quiet.since).filter(|left| !left.is_zero());
    match quiet.phase {
        Phase::Hot => {
            // Without a warm state it goes from hot to cold directly.
            let Some(after) = thermal.warm_after.or(thermal.cold_after) else {
                return Next::Nothing;
            };
            let asked = after - after / WINDOW;
            match (quiet.baseline, due(asked), due(after)) {
                (false, Some(left), _) => Next::Look(left),
                (false, None, _) => Next::Baseline,
                (true, _, Some(left)) => Next::Look(left),
                (true, _, None) => Next::Decide,
            }
        }
        Phase::Warm => match thermal.cold_after.map(due) {
            None => Next::Nothing,
            Some(Some(left)) => Next::Look(left),
            Some(None) => Next::Freeze,
        },
        Phase::Creating | Phase::Cold | Phase::Stopped | Phase::Unknown | Phase::Destroying => {
            Next::Nothing
        }
    }
}

/// The share of one CPU, in percent, from which on a guest is at work. A shell loop around
/// `sleep 1` takes some 3 % under emulation and a fraction of that on KVM.
const BUSY_PERCENT: u128 = 8;

/// Bytes over the network, between two reports, from which on an open connection is in use.
/// Keep-alives and neighbour discovery stay below.
const MOVED_BYTES: u64 = 2048;

/// What the guest is doing, if it is doing something.
pub(crate) fn work(report: &Activity) -> Option<String> {
    let percent = report.busy.as_millis() * 100 / report.since.as_millis().max(1);
    if percent >= BUSY_PERCENT {
        return Some(format!("its processes use {percent} % of a CPU"));
    }
    if report.runnable > 0 {
        return Some(format!("{} of its processes are runnable", report.runnable));
    }
    if report.connections > 0 && report.moved_bytes >= MOVED_BYTES {
        let (open, moved) = (report.connections, report.moved_bytes);
        return Some(format!("{open} open connections moved {moved} bytes"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet(phase: Phase, since: u64) -> Quiet {
        let since = Duration::from_secs(since);
        Quiet { phase, keep_hot: false, in_use: false, since, baseline: false }
    }

    fn seconds(seconds: u64) -> Next {
        Next::Look(Duration::from_secs(seconds))
    }

    #[test]
    fn the_promised_times() {
        let thermal = Thermal::default();
        let hot = |since, baseline| next(thermal, Quiet { baseline, ..quiet(Phase::Hot, since) });
        assert_eq!(hot(0, false), seconds(20));
        assert_eq!(hot(20, false), Next::Baseline);
        assert_eq!(hot(20, true), seconds(10));
        assert_eq!(hot(30, true), Next::Decide);
        assert_eq!(next(thermal, quiet(Phase::Warm, 31)), seconds(1769));
        assert_eq!(next(thermal, quiet(Phase::Warm, 1800)), Next::Freeze);
    }

    #[test]
    fn whoever_uses_it_or_wants_it_hot_is_heard() {
        for phase in Phase::ALL {
            let old = quiet(phase, 1_000_000);
            assert_eq!(next(Thermal::default(), Quiet { in_use: true, ..old }), Next::Nothing);
            assert_eq!(next(Thermal::default(), Quiet { keep_hot: true, ..old }), Next::Nothing);
        }
    }

    #[test]
    fn never_is_never() {
        let never = Thermal { warm_after: None, cold_after: None };
        assert_eq!(next(never, quiet(Phase::Hot, 1_000_000)), Next::Nothing);
        assert_eq!(next(never, quiet(Phase::Warm, 1_000_000)), Next::Nothing);
        let only_cold = Thermal { cold_after: Some(Duration::from_secs(60)), ..never };
        let hot = Quiet { baseline: true, ..quiet(Phase::Hot, 60) };
        assert_eq!(next(only_cold, hot), Next::Decide);
    }

    #[test]
    fn what_counts_as_work() {
        let idle = Activity {
            since: Duration::from_secs(10),
            busy: Duration::from_millis(300),
            ..Activity::default()
        };
        assert_eq!(work(&idle), None);
        assert!(work(&Activity { busy: Duration::from_millis(900), ..idle }).is_some());
        assert!(work(&Activity { runnable: 1, ..idle }).is_some());
        assert_eq!(work(&Activity { connections: 3, ..idle }), None, "open, but nothing moves");
        assert!(work(&Activity { connections: 1, moved_bytes: 5000, ..idle }).is_some());
        assert!(work(&Activity { since: Duration::ZERO, ..idle }).is_some());
    }
}
