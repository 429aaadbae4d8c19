//! All sessions of this machine, and the way to each of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bhatti_wire::message::{
    ErrorKind, Failure, MAX_COMMAND_TEXT, MAX_SESSIONS, OpenSession, SessionInfo, SessionKind,
    SessionOutputEvent as Event, StartSession,
};
use nix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};

use super::client::{Client, Io};
use super::detached::{DetachedCommands, Running};
use super::keeper::{Attach, Manners, Seen};
use super::start::{Started, invalid, start};
use crate::guest::Guest;

/// The sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    table: Mutex<Table>,
    detached: DetachedCommands,
}

#[derive(Debug, Default)]
struct Table {
    /// By age.
    entries: BTreeMap<u64, Entry>,
    /// The number of the newest.
    last: u64,
    /// The number in the newest name that we chose.
    named: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    info: SessionInfo,
    orders: mpsc::Sender<Attach>,
    seen: watch::Receiver<Seen>,
}

impl Table {
    /// Forgets the oldest end that nobody has seen: a program that runs has more use for the place.
    /// False if there is none.
    fn forget_an_end(&mut self) -> bool {
        let ended = |entry: &Entry| entry.seen.borrow().exit.is_some();
        let oldest = self.entries.iter().find(|(_, entry)| ended(entry)).map(|(number, _)| *number);
        // Its keeper ends with the last who could give it an order.
        oldest.is_some_and(|number| self.entries.remove(&number).is_some())
    }
}

impl Entry {
    fn info(&self) -> SessionInfo {
        let Seen { attached, exit } = self.seen.borrow().clone();
        SessionInfo { attached, exit, ..self.info.clone() }
    }

    /// Hands `io` to the keeper, or back.
    async fn attach(&self, io: Io, manners: Manners) -> Result<(), Io> {
        let (refused, answer) = oneshot::channel();
        let order = Attach { io, manners, refused };
        if let Err(mpsc::error::SendError(order)) = self.orders.send(order).await {
            return Err(order.io);
        }
        // Without an answer it was taken; or dropped with the keeper, which its owner will see.
        answer.await.map_or(Ok(()), Err)
    }
}

impl Sessions {
    /// Attaches `io` to a session, or starts one. Whatever comes of it is said on `io`.
    pub async fn open<S>(&self, guest: &Arc<Guest>, request: OpenSession, io: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut io: Io = Box::new(io);
        if !request.id.is_empty() {
            return match self.named(&request.id) {
                Some(entry) => match entry.attach(io, Manners::Take).await {
                    Ok(()) => {}
                    Err(io) => {
                        Client::new(io).farewell(Event::Failed(not_found(self, &request.id)))
                    }
                },
                None => Client::new(io).farewell(Event::Failed(not_found(self, &request.id))),
            };
        }
        if request.reuse {
            for entry in self.free_terminals() {
                match entry.attach(io, Manners::Ask).await {
                    Ok(()) => return,
                    Err(back) => io = back,
                }
            }
        }
        let started = match &request.start {
            Some(start) => self.start(guest, start).await,
            None => Err(invalid("there is neither a session to attach to nor one to start")),
        };
        let detached = request.start.is_some_and(|start| start.detached);
        match started {
            Err(failure) => Client::new(io).farewell(Event::Failed(failure)),
            Ok(entry) if detached => Client::new(io).farewell(Event::Opened(entry.info())),
            // It may have ended already, but it is remembered.
            Ok(entry) => drop(entry.attach(io, Manners::Take).await),
        }
    }

    /// Notes that a detached command runs.
    pub fn detached(&self, pid: u32, argv: &[String], output_file: &str) -> Running {
        self.detached.add(pid, argv, output_file)
    }

    /// Everything that runs by itself, oldest first, and what ended a moment ago.
    pub fn list(&self) -> Vec<SessionInfo> {
        let mut list: Vec<_> = self.table().entries.values().map(Entry::info).collect();
        list.extend(self.detached.list());
        list.sort_by_key(|info| info.created_at);
        list
    }

    async fn start(&self, guest: &Arc<Guest>, request: &StartSession) -> Result<Entry, Failure> {
        let _nothing_is_held = guest.hold.wait_until_let_go().await;
        let mut table = self.table();
        if table.entries.len() >= MAX_SESSIONS && !table.forget_an_end() {
            let message = "session limit exceeded".to_owned();
            return Err(Failure { kind: ErrorKind::Other.into(), message });
        }
        let id = match request.name.as_str() {
            "" => format!("s{}", table.named + 1),
            name if table.entries.values().any(|entry| entry.info.id == name) => {
                return Err(invalid(&format!("there is a session {name} already")));
            }
            name => name.to_owned(),
        };
        let Started { keeper, orders, seen } = start(guest, id, request)?;
        table.named += u64::from(request.name.is_empty());
        table.last += 1;
        let number = table.last;
        let entry = Entry { info: keeper.info.clone(), orders, seen };
        table.entries.insert(number, entry.clone());
        drop(table);
        let guest = Arc::clone(guest);
        // Ends with the session.
        drop(tokio::spawn(async move {
            keeper.run().await;
            guest.sessions.table().entries.remove(&number);
        }));
        Ok(entry)
    }

    fn named(&self, id: &str) -> Option<Entry> {
        self.table().entries.values().find(|entry| entry.info.id == id).cloned()
    }

    /// Running terminals that nobody is attached to, newest first.
    fn free_terminals(&self) -> Vec<Entry> {
        let table = self.table();
        let is_free = |entry: &&Entry| {
            let info = entry.info();
            info.kind() == SessionKind::Terminal && info.exit.is_none() && !info.attached
        };
        table.entries.values().rev().filter(is_free).cloned().collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while holding it, and PID 1 must not die of a poisoned lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(sessions: &Sessions, id: &str) -> Failure {
    let detached = sessions.detached.list().into_iter().find(|info| info.id == id);
    let (kind, message) = match detached {
        Some(SessionInfo { output_file, .. }) => (
            ErrorKind::Invalid,
            format!(
                "{id} is a detached command, which has no terminal; it prints to {output_file}"
            ),
        ),
        None => (ErrorKind::NotFound, "session not found".to_owned()),
    };
    Failure { kind: kind.into(), message }
}

/// A command line for people, of bounded length.
pub(super) fn command_text(argv: &[String]) -> String {
    let mut text = String::new();
    for word in argv {
        if !text.is_empty() {
            text.push(' ');
        }
        // Enough of it, and not a megabyte; on one line.
        let shown = word.chars().take(MAX_COMMAND_TEXT);
        text.extend(shown.map(|c| if c.is_control() { ' ' } else { c }));
        if text.len() > MAX_COMMAND_TEXT {
            break;
        }
    }
    let end = text.floor_char_boundary(MAX_COMMAND_TEXT);
    text.truncate(end);
    text
}

pub(super) fn unix_seconds() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |now| now.tv_sec());
    u64::try_from(now).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_cut_between_characters() {
        let text = |words: &[&str]| {
            command_text(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(text(&["sh", "-c", "echo a  b"]), "sh -c echo a  b");
        assert_eq!(text(&["sh", "-c", "a\nb\u{1b}[2J"]), "sh -c a b [2J");
        let long = text(&["x", &"é".repeat(100_000), "y"]);
        assert_eq!(long.len(), MAX_COMMAND_TEXT);
        assert_eq!(text(&["é".repeat(600).as_str()]).len(), MAX_COMMAND_TEXT);
    }
}
