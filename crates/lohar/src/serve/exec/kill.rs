//! Killing a command from another stream than its own, where no stdin is in the way.
//!
//! Bounded by the commands that run: who is not registered any more cannot be killed, so a number
//! that the host uses again never reaches another command.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bhatti_wire::message::{ErrorKind, Failure};
use tokio::sync::Notify;

/// The running commands that the host gave a number.
#[derive(Debug, Default)]
pub struct Killable(Mutex<HashMap<u64, Arc<Notify>>>);

/// Keeps a command in the table.
pub(super) struct Registered<'a> {
    table: &'a Killable,
    id: u64,
}

impl Killable {
    /// `None`: it has no number. A number that is taken is refused.
    pub(super) fn register(
        &self,
        id: u64,
        kill: &Arc<Notify>,
    ) -> Result<Option<Registered<'_>>, Failure> {
        if id == 0 {
            return Ok(None);
        }
        let mut table = self.lock();
        if table.contains_key(&id) {
            let message = format!("a command with the id {id} runs already");
            return Err(Failure { kind: ErrorKind::Invalid.into(), message });
        }
        table.insert(id, Arc::clone(kill));
        Ok(Some(Registered { table: self, id }))
    }

    /// Has the command's own task kill it.
    pub fn kill(&self, id: u64) -> Result<(), Failure> {
        match self.lock().get(&id) {
            Some(kill) => {
                kill.notify_one();
                Ok(())
            }
            None => Err(Failure {
                kind: ErrorKind::NotFound.into(),
                message: format!("no command with the id {id} runs"),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Notify>>> {
        // Nothing panics while holding it, and PID 1 must not die of a poisoned lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_number_means_one_command_while_it_runs() {
        let table = Killable::default();
        let kill = Arc::new(Notify::new());
        assert!(table.register(0, &kill).is_ok_and(|none| none.is_none()));
        assert!(table.kill(0).is_err());
        let registered = table.register(7, &kill).unwrap();
        assert!(table.register(7, &kill).is_err(), "taken");
        table.kill(7).unwrap();
        kill.notified().await;
        drop(registered);
        assert_eq!(table.kill(7).unwrap_err().kind, i32::from(ErrorKind::NotFound));
    }
}
