//! Making a machine that answers, by hand and through bhatti: what is the same whether it boots or
//! continues a saved one.

use std::time::Duration;

use crate::stats::Series;

/// How long each way of making one took, a sample a round.
pub(crate) struct Makes {
    /// The first reply by hand: what a create is measured against.
    pub(crate) bare: Series,
    /// With the making of its disk before that.
    bare_with_disk: Series,
    bare_configured: Series,
    bare_first_exec: Series,
    pub(crate) api: Series,
    api_first_exec: Series,
    pub(crate) cli: Series,
}

/// One made by hand, each from the start of its process.
pub(crate) struct ByHand {
    /// Before that.
    pub(crate) disk: Duration,
    pub(crate) first_reply: Duration,
    pub(crate) configured: Duration,
    pub(crate) first_exec: Duration,
}

impl Makes {
    /// `bare`: what the series by hand are called.
    pub(crate) fn new(bare: [&'static str; 4]) -> Self {
        let [with_disk, first_reply, configured, first_exec] = bare.map(Series::new);
        Self {
            bare: first_reply,
            bare_with_disk: with_disk,
            bare_configured: configured,
            bare_first_exec: first_exec,
            api: Series::new("create, API"),
            api_first_exec: Series::new("create, API: first `true` done"),
            cli: Series::new("create, CLI"),
        }
    }

    pub(crate) fn by_hand(&mut self, took: &ByHand) {
        self.bare.push(took.first_reply);
        self.bare_with_disk.push(took.disk + took.first_reply);
        self.bare_configured.push(took.configured);
        self.bare_first_exec.push(took.first_exec);
    }

    /// Both from the request on.
    pub(crate) fn through_api(&mut self, created: Duration, first_exec: Duration) {
        self.api.push(created);
        self.api_first_exec.push(first_exec);
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Series> {
        let by_hand =
            [&self.bare, &self.bare_with_disk, &self.bare_configured, &self.bare_first_exec];
        by_hand.into_iter().chain([&self.api, &self.api_first_exec, &self.cli])
    }
}
