//! What a run counts, and what it says at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Sums over a run.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) cycles: u64,
    /// Operations by kind: how many, and how many of those a crash of the daemon cut short.
    pub(crate) deeds: BTreeMap<&'static str, (u64, u64)>,
    /// States sandboxes were looked into from.
    pub(crate) looks: BTreeMap<String, u64>,
    /// What was lost and had to be, because a machine was killed; each time it was said.
    pub(crate) said: u64,
    /// Operations that failed with no crash to blame.
    pub(crate) failed: u64,
    /// Sandboxes that did not hold what they have to.
    pub(crate) lost: u64,
    /// The largest distance between a guest's clock and the host's, beyond the call itself.
    pub(crate) clock_off: Duration,
}

impl Tally {
    pub(crate) fn count(&mut self, deed: &'static str, cut_short: bool) {
        let (all, cut) = self.deeds.entry(deed).or_default();
        *all += 1;
        *cut += u64::from(cut_short);
    }

    pub(crate) fn problems(&self) -> u64 {
        self.failed + self.lost
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "operations:")?;
        for (deed, (all, cut)) in &self.deeds {
            let cut = if *cut > 0 { format!("  ({cut} cut short)") } else { String::new() };
            writeln!(f, "  {deed:<24} {all:>6}{cut}")?;
        }
        let looks: Vec<String> =
            self.looks.iter().map(|(state, times)| format!("{times} {state}")).collect();
        writeln!(f, "looked into, by state before: {}", looks.join(", "))?;
        writeln!(f, "memory lost with a killed VMM, and said: {}", self.said)?;
        writeln!(f, "clocks at most {} ms off", self.clock_off.as_millis())?;
        writeln!(f, "cycles done: {}", self.cycles)?;
        writeln!(f, "operations failed: {}", self.failed)?;
        write!(f, "states lost: {}", self.lost)
    }
}
