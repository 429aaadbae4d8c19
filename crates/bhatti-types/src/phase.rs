//! The states of a sandbox, and the only place that spells their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Everything that can be true of a sandbox, as one value.
///
/// Destroyed sandboxes have no value at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The intent is recorded and the name taken; nothing is promised yet. Not listed.
    Creating,
    /// The machine runs.
    Hot,
    /// The machine's virtual CPUs stand; its memory is where it was. Continues within
    /// milliseconds.
    Warm,
    /// No machine: memory, device state and disk are in files, and it continues from there.
    Cold,
    /// No machine; the disk is kept. The next operation that needs the guest boots it.
    Stopped,
    /// We cannot vouch for it; a human should look. Only reading and destroying are allowed.
    Unknown,
    /// Being removed; nothing may start. Not listed.
    Destroying,
}

/// The word the API and the database use for a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Running,
    Stopped,
    Unknown,
}

/// The second word, in listings, for running sandboxes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thermal {
    Hot,
    Warm,
    Cold,
}

/// Whether the reason for a sandbox's phase says that something was lost on the way to it.
///
/// Those who write reasons say "is lost" or "are lost" then; clients warn. A name quoted in a
/// reason cannot have a space in it.
pub fn tells_of_loss(reason: &str) -> bool {
    reason.contains(" is lost") || reason.contains(" are lost")
}

impl Phase {
    /// Every phase, for exhaustive tests.
    pub const ALL: [Phase; 7] = [
        Phase::Creating,
        Phase::Hot,
        Phase::Warm,
        Phase::Cold,
        Phase::Stopped,
        Phase::Unknown,
        Phase::Destroying,
    ];

    /// The two words clients see. `None`: not listed.
    pub fn wire(self) -> Option<(Status, Option<Thermal>)> {
        match self {
            Phase::Creating | Phase::Destroying => None,
            Phase::Hot => Some((Status::Running, Some(Thermal::Hot))),
            Phase::Warm => Some((Status::Running, Some(Thermal::Warm))),
            // The contract: no second word for what does not run.
            Phase::Cold | Phase::Stopped => Some((Status::Stopped, None)),
            Phase::Unknown => Some((Status::Unknown, None)),
        }
    }

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Creating => "creating",
            Phase::Hot => "hot",
            Phase::Warm => "warm",
            Phase::Cold => "cold",
            Phase::Stopped => "stopped",
            Phase::Unknown => "unknown",
            Phase::Destroying => "destroying",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Phase {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|phase| phase.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a phase"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Running => "running",
            Status::Stopped => "stopped",
            Status::Unknown => "unknown",
        })
    }
}

impl fmt::Display for Thermal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Thermal::Hot => "hot",
            Thermal::Warm => "warm",
            Thermal::Cold => "cold",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_reads_back_what_it_writes() {
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse(), Ok(phase));
        }
        assert!("running".parse::<Phase>().is_err());
    }
}
