//! Which operation is allowed in which phase: the whole policy, as one table.

use bhatti_types::Phase;

/// What somebody wants of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make it usable: the guest answers afterwards.
    Use,
    /// Freeze it, whoever uses it.
    Stop,
    /// Save it as it is, without waking it.
    Checkpoint,
    /// Change its record: name, labels, flags.
    Edit,
    /// Remove it.
    Destroy,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is work to do.
    Do,
    /// Nothing to do; it is so already.
    AlreadyDone,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("sandbox is still being created")]
    StillCreating,
    #[error("sandbox is being destroyed")]
    BeingDestroyed,
    #[error("sandbox state is unknown: only reading and destroying it are possible")]
    Unknown,
}

/// The policy. Every pair is spelled out, so a new phase or operation does not compile until
/// someone decides.
pub fn admit(phase: Phase, op: Op) -> Result<Verdict, Denied> {
    match (phase, op) {
        (Phase::Hot, Op::Use) => Ok(Verdict::AlreadyDone),
        (Phase::Warm | Phase::Cold | Phase::Stopped, Op::Use) => Ok(Verdict::Do),
        (
            Phase::Hot | Phase::Warm | Phase::Cold | Phase::Stopped | Phase::Unknown,
            Op::Edit | Op::Destroy,
        ) => Ok(Verdict::Do),
        (Phase::Hot | Phase::Warm, Op::Stop) => Ok(Verdict::Do),
        (Phase::Cold | Phase::Stopped, Op::Stop) => Ok(Verdict::AlreadyDone),
        (Phase::Hot | Phase::Warm | Phase::Cold | Phase::Stopped, Op::Checkpoint) => {
            Ok(Verdict::Do)
        }
        (Phase::Destroying, Op::Destroy) => Ok(Verdict::AlreadyDone),
        (Phase::Unknown, Op::Use | Op::Stop | Op::Checkpoint) => Err(Denied::Unknown),
        (Phase::Creating, _) => Err(Denied::StillCreating),
        (Phase::Destroying, Op::Use | Op::Stop | Op::Checkpoint | Op::Edit) => {
            Err(Denied::BeingDestroyed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_starts_in_a_sandbox_that_is_going() {
        for phase in Phase::ALL {
            let usable = admit(phase, Op::Use).is_ok();
            assert_eq!(
                usable,
                matches!(phase, Phase::Hot | Phase::Warm | Phase::Cold | Phase::Stopped),
                "{phase}"
            );
            let removable = admit(phase, Op::Destroy).is_ok();
            assert_eq!(removable, phase != Phase::Creating, "{phase}");
        }
    }
}
