//! Faults a test asks for, taken in order by the calls they are meant for.

use std::collections::VecDeque;
use std::time::Duration;

use bhatti_engine::EngineError;

/// Which call of the engine or the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    CreateRoot,
    Boot,
    Restore,
    Adopt,
    End,
    Sweep,
    OpenLink,
    Pause,
    Resume,
    Save,
    SealDisk,
    DiskTop,
    MergeDisk,
    Kill,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this text and has no effect, except that a failed [`Call::Save`]
    /// leaves rubbish in its directory.
    Fail(String),
    /// The call takes this much longer and then succeeds.
    Slow(Duration),
    /// [`Call::SealDisk`] has its effect, and fails with this text all the same. To other calls it
    /// is [`Fault::Fail`].
    Unheard(String),
    /// [`Call::Restore`] finds what was saved whole, and of no use on this host for this reason. To
    /// other calls it is [`Fault::Fail`].
    Refuse(String),
    /// The call never returns; only dropping it ends it. It has no effect.
    Hang,
    /// The machine dies during the call. On [`Call::Boot`] and [`Call::Restore`] it dies just
    /// after it has started, so the call succeeds; calls that have no machine treat this as [`Fault::Fail`].
    Die(String),
}

/// The faults waiting for their calls.
#[derive(Debug, Default)]
pub(crate) struct Faults(VecDeque<(Call, Fault)>);

impl Faults {
    pub(crate) fn push(&mut self, call: Call, fault: Fault) {
        self.0.push_back((call, fault));
    }

    /// The first one for `call`, which is then spent.
    pub(crate) fn take(&mut self, call: Call) -> Option<Fault> {
        let place = self.0.iter().position(|(wanted, _)| *wanted == call)?;
        self.0.remove(place).map(|(_, fault)| fault)
    }

    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }
}

/// The error of a call that was told to fail.
pub(crate) fn failure(call: Call, message: String) -> EngineError {
    EngineError::Control { command: format!("{call:?}"), message }
}
