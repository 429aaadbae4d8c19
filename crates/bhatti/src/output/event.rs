//! Events.

use std::fmt::Write as _;

use bhatti_store::EventRow;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Map, Value};

use super::on_one_line;

/// One event with `--json`.
#[derive(Serialize)]
pub(crate) struct EventListRow<'a> {
    id: i64,
    ts: Timestamp,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    meta: &'a Map<String, Value>,
}

impl<'a> From<&'a EventRow> for EventListRow<'a> {
    fn from(event: &'a EventRow) -> Self {
        Self {
            id: event.id,
            ts: event.at,
            kind: &event.kind,
            user_id: event.user.as_deref(),
            sandbox_id: event.sandbox.as_deref(),
            meta: &event.meta,
        }
    }
}

/// The columns of the contract, with times of `zone`.
pub(crate) fn events(events: &[EventRow], zone: &TimeZone) -> String {
    if events.is_empty() {
        return "No events found.\n".to_owned();
    }
    let mut out = line("TS", "TYPE", "USER", "SANDBOX", "DETAILS");
    for event in events {
        let time = event.at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
        let user = event.user.as_deref().unwrap_or("-");
        let sandbox = on_one_line(sandbox(event));
        // Names and answers of strangers: one line, and nothing that moves the cursor.
        let details = on_one_line(&details(&event.kind, &event.meta));
        out.push_str(&line(&time, &event.kind, user, &sandbox, &details));
    }
    out
}

/// What its sandbox was called when it happened, or its id where that was not noted.
fn sandbox(event: &EventRow) -> &str {
    // In some kinds `name` is that of something else.
    let key = match event.kind.as_str() {
        "sandbox.updated" if event.meta.contains_key("new_name") => "new_name",
        "snapshot.resumed" => "new_sandbox",
        kind if kind.starts_with("sandbox.") || kind == "egress.denied" => "name",
        _ => "sandbox",
    };
    let name = event.meta.get(key).and_then(Value::as_str).filter(|name| !name.is_empty());
    name.or(event.sandbox.as_deref()).unwrap_or("-")
}

fn line(time: &str, kind: &str, user: &str, sandbox: &str, details: &str) -> String {
    let line = format!("{time:<20} {kind:<24} {user:<12} {sandbox:<16} {details}");
    format!("{}\n", line.trim_end())
}

/// What of an event fits on its line.
fn details(kind: &str, meta: &Map<String, Value>) -> String {
    let get = |key: &str| meta.get(key).map_or_else(|| "-".to_owned(), plain);
    let length = |key: &str| meta.get(key).and_then(Value::as_f64).map_or("-".to_owned(), lasting);
    let mut text = match kind {
        "sandbox.created" => {
            format!("cpus={} mem={} image={}", get("cpus"), get("memory_mb"), get("image"))
        }
        "sandbox.destroyed" => format!("lifetime={}", length("lifetime_s")),
        "sandbox.stopped" | "sandbox.started" => format!("reason={}", get("reason")),
        "thermal.pause" | "thermal.snapshot" => format!("idle={}s", get("idle_s")),
        "thermal.wake" => format!("from={} {}ms", get("from_state"), get("wake_ms")),
        "thermal.snapshot_failed" => format!("error={} attempt={}", get("error"), get("attempt")),
        "thermal.force_pause" => format!("failures={}", get("consecutive_failures")),
        "shell.session" | "shell.web_session" => format!("duration={}", length("duration_s")),
        "publish.created" => format!("port={} alias={}", get("port"), get("alias")),
        "auth.failed" => format!("ip={}", get("ip")),
        "certificate.failed" => format!("name={} error={}", get("name"), get("error")),
        "egress.denied" => {
            let known = ["host", "to", "port", "protocol"].into_iter();
            let pairs: Vec<_> =
                known.filter_map(|key| Some(format!("{key}={}", plain(meta.get(key)?)))).collect();
            pairs.join(" ")
        }
        "proxy.error" => format!("alias={} status={}", get("alias"), get("status")),
        "daemon.started" => format!("{} recovered={}", get("version"), get("recovered_vms")),
        "daemon.shutdown" => format!("signal={}", get("signal")),
        _ => {
            let (name, rest): (Vec<_>, Vec<_>) = meta.iter().partition(|(key, _)| *key == "name");
            let shown =
                name.into_iter().chain(rest).filter(|(key, _)| *key != NOT_RECORDED).take(3);
            let pairs: Vec<_> =
                shown.map(|(key, value)| format!("{key}={}", plain(value))).collect();
            pairs.join(" ")
        }
    };
    if let Some(more) = meta.get(NOT_RECORDED) {
        write!(text, " (and {} more)", plain(more)).expect("a String takes all text");
    }
    text
}

/// How many of its kind came too fast to be recorded each.
const NOT_RECORDED: &str = "not_recorded";

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // `1` rather than `1.0`.
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or_else(String::new, |number| number.to_string())
        }
        other => other.to_string(),
    }
}

/// `45s`, `3m12s`, `2h5m`.
fn lasting(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(kind: &str, meta: Value) -> EventRow {
        let Value::Object(meta) = meta else { panic!("an object") };
        EventRow {
            id: 7,
            at: "2026-01-31T12:00:00.123Z".parse().expect("a time"),
            kind: kind.to_owned(),
            user: Some("usr_1a2b3c4d".to_owned()),
            sandbox: Some("0123456789abcdef".to_owned()),
            meta,
        }
    }

    #[test]
    fn events_stand_in_columns() {
        let created =
            event("sandbox.created", json!({ "cpus": 0.5, "memory_mb": 512, "image": "minimal" }));
        let failed = EventRow {
            user: None,
            sandbox: None,
            ..event("auth.failed", json!({ "ip": "192.0.2.1", "not_recorded": 9 }))
        };
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(
            events(&[created, failed], &zone),
            "TS                   TYPE                     USER         SANDBOX          DETAILS\n\
             2026-01-31 13:00:00  sandbox.created          usr_1a2b3c4d 0123456789abcdef cpus=0.5 mem=512 image=minimal\n\
             2026-01-31 13:00:00  auth.failed              -            -                ip=192.0.2.1 (and 9 more)\n"
        );
        assert_eq!(events(&[], &zone), "No events found.\n");
    }

    #[test]
    fn sandboxes_have_the_names_they_had() {
        for (kind, meta, wanted) in [
            ("sandbox.created", json!({ "name": "dev" }), "dev"),
            ("thermal.wake", json!({ "sandbox": "dev" }), "dev"),
            ("snapshot.created", json!({ "name": "base", "sandbox": "dev" }), "dev"),
            ("snapshot.resumed", json!({ "name": "base", "new_sandbox": "copy" }), "copy"),
            ("sandbox.updated", json!({ "old_name": "dev", "new_name": "work" }), "work"),
            ("sandbox.updated", json!({ "name": "dev", "keep_hot": true }), "dev"),
            ("sandbox.updated", json!({ "keep_hot": true }), "0123456789abcdef"),
            ("user.created", json!({ "name": "alice" }), "0123456789abcdef"),
            ("proxy.error", json!({ "alias": "web" }), "0123456789abcdef"),
        ] {
            assert_eq!(sandbox(&event(kind, meta)), wanted, "{kind}");
        }
        let nobodys = EventRow { sandbox: None, ..event("auth.failed", json!({ "name": "x" })) };
        assert_eq!(sandbox(&nobodys), "-");
    }

    #[test]
    fn details_are_the_contracts() {
        for (kind, meta, wanted) in [
            ("sandbox.destroyed", json!({ "name": "a", "lifetime_s": 45 }), "lifetime=45s"),
            ("sandbox.destroyed", json!({ "lifetime_s": 192 }), "lifetime=3m12s"),
            ("shell.session", json!({ "duration_s": 7500.9 }), "duration=2h5m"),
            ("thermal.wake", json!({ "from_state": "cold", "wake_ms": 12 }), "from=cold 12ms"),
            ("thermal.pause", json!({ "idle_s": 31 }), "idle=31s"),
            ("sandbox.created", json!({ "cpus": 1.0 }), "cpus=1 mem=- image=-"),
            ("sandbox.stopped", json!({}), "reason=-"),
            ("daemon.started", json!({ "version": "v1", "recovered_vms": 2 }), "v1 recovered=2"),
            (
                "egress.denied",
                json!({ "name": "a", "port": 80, "protocol": "tcp", "to": "10.0.0.9" }),
                "to=10.0.0.9 port=80 protocol=tcp",
            ),
            (
                "egress.denied",
                json!({ "name": "a", "host": "a.example", "to": "10.0.0.9" }),
                "host=a.example to=10.0.0.9",
            ),
            ("user.created", json!({ "name": "a", "n": 1, "o": 2, "p": 3 }), "name=a n=1 o=2"),
        ] {
            let Value::Object(meta) = meta else { panic!("an object") };
            assert_eq!(details(kind, &meta), wanted);
        }
    }

    #[test]
    fn what_an_event_quotes_moves_no_cursor() {
        let text = events(
            &[event("proxy.error", json!({ "alias": "a\n\u{1b}[2J", "status": 502 }))],
            &TimeZone::UTC,
        );
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn json_has_what_there_is() {
        let row = EventRow { user: None, meta: Map::new(), ..event("x.y", json!({})) };
        let json = serde_json::to_string(&EventListRow::from(&row)).expect("JSON");
        assert_eq!(
            json,
            r#"{"id":7,"ts":"2026-01-31T12:00:00.123Z","type":"x.y","sandbox_id":"0123456789abcdef"}"#
        );
    }
}
