//! After a restart: what should exist against what does.

use bhatti_store::SandboxRow;
use bhatti_types::Phase;

/// What to do about one recorded sandbox, before looking at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// A create or a destroy was cut short: take away what there is.
    Undo,
    /// It should run: find its machine and take it over; without one it is stopped.
    Adopt,
    /// It was frozen: what is left of its machine goes.
    Finish,
    /// Nothing should run; it boots when it is used.
    Keep,
}

/// The plan for one row. Pure; running it twice changes nothing the second time.
pub(crate) fn plan(row: &SandboxRow) -> Plan {
    match row.phase {
        Phase::Creating | Phase::Destroying => Plan::Undo,
        // What could not be told last time may be clear now.
        Phase::Hot | Phase::Warm | Phase::Unknown => Plan::Adopt,
        Phase::Cold => Plan::Finish,
        Phase::Stopped => Plan::Keep,
    }
}

/// Why a sandbox that should run does not.
pub(crate) const LOST: &str = "its machine was gone when the daemon started (host reboot or crash): memory is lost, the disk is kept";

/// Why a sandbox that could not be vouched for runs again.
pub(crate) const FOUND: &str = "its machine was found again when the daemon started";
