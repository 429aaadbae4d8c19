//! Events: what happened, for an operator who asks later.
//!
//! Promises: an event outlives what it is about; what an event says of itself has a bounded length,
//! whoever had a part in its words; the table does not grow for ever.

use bhatti_types::{EventKind, SandboxId, UserId};
use jiff::Timestamp;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, Row};
use serde_json::{Map, Value};

use crate::row::{Reader, json, readable};
use crate::{Store, StoreError};

/// The longest text in an event: names, addresses, and sentences of ours are shorter.
const MAX_TEXT: usize = 512;

/// The most that is noted with an event, as JSON.
const MAX_META: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub at: Timestamp,
    pub kind: EventKind,
    pub user: Option<UserId>,
    pub sandbox: Option<SandboxId>,
    /// What belongs to the kind. Never a secret.
    pub meta: Map<String, Value>,
}

impl NewEvent {
    /// Something that happens now. `meta` is an object.
    pub fn now(
        kind: EventKind,
        user: Option<&UserId>,
        sandbox: Option<&SandboxId>,
        meta: Value,
    ) -> Self {
        let meta = match meta {
            Value::Object(meta) => bounded(meta),
            _ => Map::new(),
        };
        Self { at: Timestamp::now(), kind, user: user.cloned(), sandbox: sandbox.cloned(), meta }
    }
}

/// Cut to what an event may hold.
fn bounded(mut meta: Map<String, Value>) -> Map<String, Value> {
    for value in meta.values_mut() {
        if let Value::String(text) = value
            && text.len() > MAX_TEXT
        {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('…');
        }
    }
    if json(&meta).len() > MAX_META {
        meta = Map::from_iter([("too_long".to_owned(), Value::Bool(true))]);
    }
    meta
}

/// An event as it is recorded. The kind is text: a newer program may have written it.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    pub id: i64,
    pub at: Timestamp,
    pub kind: String,
    pub user: Option<String>,
    pub sandbox: Option<String>,
    pub meta: Map<String, Value>,
}

/// Which events are wanted; what is `None` asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// A kind, or what stands before its dot.
    pub kind: Option<String>,
    /// Name or id.
    pub user: Option<String>,
    /// Id, or the name the sandbox has, or was made with.
    pub sandbox: Option<String>,
    pub since: Option<Timestamp>,
}

impl EventFilter {
    fn to_sql(&self) -> (String, Vec<Sql>) {
        let mut wanted = vec!["1".to_owned()];
        let mut values: Vec<Sql> = Vec::new();
        let mut add = |sql: &str, value: String| {
            values.push(value.into());
            wanted.push(sql.replace('?', &format!("?{}", values.len())));
        };
        if let Some(kind) = &self.kind {
            if kind.contains('.') {
                add("type = ?", kind.clone());
            } else {
                // From `kind.` to what follows the dot in ASCII, so that the index is of use.
                add("(type = ? OR type >= ? || '.' AND type < ? || '/')", kind.clone());
            }
        }
        if let Some(user) = &self.user {
            add("user_id = coalesce((SELECT id FROM users WHERE name = ?), ?)", user.clone());
        }
        if let Some(sandbox) = &self.sandbox {
            add(
                "sandbox_id IN (
                     SELECT ? UNION SELECT id FROM sandboxes WHERE name = ? UNION
                     SELECT sandbox_id FROM events WHERE
                         type = 'sandbox.created' AND json_extract(meta, '$.name') = ? OR
                         type = 'snapshot.resumed' AND json_extract(meta, '$.new_sandbox') = ?)",
                sandbox.clone(),
            );
        }
        if let Some(since) = self.since {
            add("ts >= ?", stamp(since));
        }
        (wanted.join(" AND "), values)
    }
}

/// As the table has it.
fn stamp(at: Timestamp) -> String {
    format!("{at:.3}")
}

fn read(row: &Row<'_>) -> Result<EventRow, StoreError> {
    let id: i64 = row.get("id")?;
    let r = Reader { row, table: "events", key: id.to_string() };
    Ok(EventRow {
        id,
        at: r.parse("ts")?,
        kind: r.get("type")?,
        user: r.get("user_id")?,
        sandbox: r.get("sandbox_id")?,
        meta: r.json("meta")?,
    })
}

/// Records one event as part of the change it tells of.
pub(crate) fn insert(connection: &Connection, event: &NewEvent) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO events (ts, type, user_id, sandbox_id, meta) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(sql)?.execute(rusqlite::params![
        stamp(event.at),
        event.kind.as_str(),
        event.user.as_ref().map(UserId::as_str),
        event.sandbox.as_ref().map(SandboxId::as_str),
        json(&event.meta),
    ])?;
    Ok(())
}

impl Store {
    /// Records all of them, or none.
    pub fn record(&mut self, events: &[NewEvent]) -> Result<(), StoreError> {
        let tx = self.connection.transaction()?;
        for event in events {
            insert(&tx, event)?;
        }
        Ok(tx.commit()?)
    }

    /// The newest events that are wanted, the newest first, and no more than `limit`.
    pub fn events(&self, filter: &EventFilter, limit: u32) -> Result<Vec<EventRow>, StoreError> {
        let (wanted, values) = filter.to_sql();
        let sql = format!("SELECT * FROM events WHERE {wanted} ORDER BY id DESC LIMIT {limit}");
        let mut statement = self.connection.prepare(&sql)?;
        readable(statement.query(rusqlite::params_from_iter(values))?, read)
    }

    /// How many are wanted.
    pub fn count_events(&self, filter: &EventFilter) -> Result<u64, StoreError> {
        let (wanted, values) = filter.to_sql();
        let sql = format!("SELECT count(*) FROM events WHERE {wanted}");
        let count: i64 =
            self.connection
                .query_row(&sql, rusqlite::params_from_iter(values), |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// Forgets `at_once` at most, so that nobody waits long for the writer: those from before
    /// `oldest`, and when there are none, those of more than `most`. Of these whoever has most loses
    /// his oldest, so that nobody's flood is the end of the others'. So many went; 0: it is done.
    pub fn forget_events(
        &mut self,
        oldest: Timestamp,
        most: u32,
        at_once: u32,
    ) -> Result<usize, StoreError> {
        let sql = "DELETE FROM events WHERE id IN (
                       SELECT id FROM (SELECT id, ts FROM events ORDER BY id LIMIT ?2) WHERE ts < ?1)";
        let gone = self.connection.execute(sql, rusqlite::params![stamp(oldest), at_once])?;
        if gone > 0 {
            return Ok(gone);
        }
        let count: u32 =
            self.connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0))?;
        let excess = count.saturating_sub(most);
        if excess == 0 {
            return Ok(0);
        }
        let sql =
            "SELECT user_id, count(*) AS n FROM events GROUP BY user_id ORDER BY n DESC LIMIT 2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let of_user = |row: &Row<'_>| Ok::<(Option<String>, u32), _>((row.get(0)?, row.get(1)?));
        let most_of = statement.query_map([], of_user)?.collect::<Result<Vec<_>, _>>()?;
        let Some((user, first)) = most_of.first() else { return Ok(0) };
        let second = most_of.get(1).map_or(0, |(_, second)| *second);
        // Among those who have as many it goes round, in steps that are worth the look.
        let beyond = (first - second).max(at_once / 16).max(1);
        let sql = "DELETE FROM events WHERE id IN (
                       SELECT id FROM events WHERE user_id IS ?1 ORDER BY id LIMIT ?2)";
        let values = rusqlite::params![user, beyond.min(excess).min(at_once)];
        Ok(self.connection.execute(sql, values)?)
    }
}
