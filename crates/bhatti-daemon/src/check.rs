//! `bhatti serve --check`: is this host fit, before anything runs on it.
//!
//! ```text
//!  facts (reads the host, changes nothing) ──▶ needed, isolation, speed (pure) ──▶ Report
//! ```
//!
//! What is asked is what bhatti itself needs, and what Firecracker's documentation asks of a
//! production host, whichever engine is used. What that documentation asks of a VMM's process, such
//! as a user, a root and bounds of its own, bhatti does for every machine, and nobody need check it.
//!
//! Promises:
//! - Nothing is started, made or changed that stays, and a daemon that runs is not disturbed.
//! - [`Verdict::Failed`] means that no sandbox would run; anything less is a warning.
//! - Whatever is not well says what it is about and what to do.

mod facts;
mod isolation;
mod needed;
mod speed;

use bhatti_config::ServerConfig;
use serde::Serialize;

use facts::Facts;
pub(crate) use facts::files_share_blocks;

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing that is needed is missing.
    pub fit: bool,
    /// In the order people are to read them.
    pub items: Vec<Item>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// A word that stays the same.
    pub id: &'static str,
    pub group: Group,
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// What it is about, and what follows if it is not well: a sentence or two.
    pub about: &'static str,
    /// What to do; empty if it is well.
    pub advice: String,
}

/// What an item is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Without it the daemon does not start, or no sandbox does.
    Needed,
    /// What keeps tenants apart, beyond what bhatti does itself.
    Isolation,
    Speed,
}

/// How an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Sandboxes run; something is slower, or less safe, than it could be.
    Warning,
    Failed,
}

impl Report {
    /// Looks at this host as a daemon with that configuration would find it.
    pub fn of_host(config: &ServerConfig) -> Self {
        Self::of(&Facts::observe(config))
    }

    fn of(facts: &Facts) -> Self {
        let items = [needed::items(facts), isolation::items(facts), speed::items(facts)].concat();
        let fit = items.iter().all(|item| item.verdict != Verdict::Failed);
        Self { fit, items }
    }

    /// How many items are so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.items.iter().filter(|item| item.verdict == verdict).count()
    }
}

/// What an item is before it has been judged.
#[derive(Clone, Copy, Debug)]
struct Question {
    id: &'static str,
    group: Group,
    about: &'static str,
}

impl Question {
    fn ok(self, found: impl Into<String>) -> Item {
        self.answer(Verdict::Ok, found.into(), String::new())
    }

    fn warning(self, found: impl Into<String>, advice: impl Into<String>) -> Item {
        self.answer(Verdict::Warning, found.into(), advice.into())
    }

    fn failed(self, found: impl Into<String>, advice: impl Into<String>) -> Item {
        self.answer(Verdict::Failed, found.into(), advice.into())
    }

    fn answer(self, verdict: Verdict, found: String, advice: String) -> Item {
        let Self { id, group, about } = self;
        Item { id, group, verdict, found, about, advice }
    }
}

#[cfg(test)]
mod tests;
