//! The phase of a sandbox, and what it can continue from.
//!
//! Promises: a move and everything that is true because of it is one statement, so that no crash
//! shows a phase without its generation; a generation's number is on the medium before it is
//! given out, so that no two directories ever had the same.

use bhatti_types::{GoldenId, Phase, SandboxId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::row::json;
use crate::{Store, StoreError};

/// What a sandbox can continue from: a snapshot of its memory, and the disk of that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub number: u32,
    pub made_at: Timestamp,
    /// Whose memory it stands on. `None`: its own.
    pub golden: Option<GoldenId>,
    /// What the engine said of the root disk when it was sealed.
    pub disk: serde_json::Value,
    /// Size of its files, and how much of that had to be written.
    pub bytes: u64,
    pub written: u64,
}

/// What a move of phase changes besides the phase. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    pub root_disk: Option<serde_json::Value>,
    /// `Some(None)`: there is no machine any more.
    pub vm: Option<Option<serde_json::Value>>,
    /// `Some(None)`: it stands on its own memory.
    pub golden: Option<Option<GoldenId>>,
    /// Newest first, at most two.
    pub generations: Option<Vec<Generation>>,
    /// The highest number in use, where layers came with numbers from elsewhere. Takes back
    /// none that was given out.
    pub serial: Option<u32>,
    /// When it came to the phase, where that was before now.
    pub at: Option<Timestamp>,
}

impl Store {
    /// Moves to `to` from one of `from`, with the reason, and changes what goes with it.
    ///
    /// A sandbox that comes to `stopped` or `cold` has no machine, unless `change` says so, and
    /// has stopped then, unless it already had. A sandbox that stays in its phase has been in it
    /// since before, unless `change` says since when.
    pub fn set_phase(
        &mut self,
        id: &SandboxId,
        from: &[Phase],
        to: Phase,
        reason: &str,
        change: &Change,
    ) -> Result<(), StoreError> {
        let allowed: Vec<&str> = from.iter().map(|phase| phase.as_str()).collect();
        let vm = change.vm.as_ref().map(|vm| vm.as_ref().map(json));
        let golden = change.golden.as_ref().map(|golden| golden.as_ref().map(GoldenId::as_str));
        let changed = self.connection.execute(
            "UPDATE sandboxes SET phase = :to, reason = :reason,
                 changed_at = CASE WHEN phase = :to AND NOT :at_given THEN changed_at
                              ELSE :at END,
                 stopped_at = CASE WHEN :to IN ('stopped', 'cold')
                                    AND phase NOT IN ('stopped', 'cold')
                              THEN :at ELSE stopped_at END,
                 root_disk = coalesce(:root_disk, root_disk),
                 vm = CASE WHEN :vm_given THEN :vm
                           WHEN :to IN ('stopped', 'cold') THEN NULL
                           ELSE vm END,
                 golden = CASE WHEN :golden_given THEN :golden ELSE golden END,
                 generations = coalesce(:generations, generations),
                 serial = max(serial, coalesce(:serial, 0))
             WHERE id = :id AND phase IN (SELECT value FROM json_each(:from))",
            rusqlite::named_params! {
                ":id": id.as_str(),
                ":from": json(&allowed),
                ":to": to.as_str(),
                ":reason": reason,
                ":at_given": change.at.is_some(),
                ":at": change.at.unwrap_or_else(Timestamp::now).to_string(),
                ":root_disk": change.root_disk.as_ref().map(json),
                ":vm_given": vm.is_some(),
                ":vm": vm.flatten(),
                ":golden_given": golden.is_some(),
                ":golden": golden.flatten(),
                ":generations": change.generations.as_ref().map(json),
                ":serial": change.serial,
            },
        );
        match changed.map_err(|error| StoreError::no_golden(error, change.golden.as_ref()))? {
            1 => Ok(()),
            _ => Err(StoreError::NoSandbox(id.to_string())),
        }
    }

    /// The number of the next generation. None is ever given out twice.
    pub fn next_serial(&mut self, id: &SandboxId) -> Result<u32, StoreError> {
        // Not `RETURNING`: a row that is read before the commit hides a commit that fails.
        let tx = self.connection.transaction()?;
        let sql = "UPDATE sandboxes SET serial = serial + 1 WHERE id = ?1";
        if tx.execute(sql, [id.as_str()])? != 1 {
            return Err(StoreError::NoSandbox(id.to_string()));
        }
        let sql = "SELECT serial FROM sandboxes WHERE id = ?1";
        let serial = tx.query_row(sql, [id.as_str()], |row| row.get(0))?;
        tx.commit()?;
        Ok(serial)
    }
}
