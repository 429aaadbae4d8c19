//! JSON as the contract reads and writes it.
//!
//! Reading: only the first value counts, field names match whatever their case, `null` leaves a
//! field at its default, unknown fields are ignored. Writing: compact, one trailing newline,
//! and `<`, `>`, `&`, U+2028, U+2029 escaped so that a body is safe inside HTML.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A body that is not JSON, or not of the wanted shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadJson(pub String);

/// How deep names are folded: the body and the records in its arrays, but never the keys of
/// maps such as `env` and `labels`, which are the user's.
const MAP_FIELDS: [&str; 3] = ["env", "labels", "labels_add"];

/// Reads the first JSON value of `body`.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadJson> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let value = match values.next() {
        None => return Err(BadJson("EOF".to_owned())),
        Some(Err(error)) => return Err(BadJson(error.to_string())),
        Some(Ok(value)) => value,
    };
    if !value.is_object() {
        return Err(BadJson("expected an object".to_owned()));
    }
    serde_json::from_value(fold_names(value)).map_err(|error| BadJson(error.to_string()))
}

fn fold_names(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| {
                    let name = name.to_ascii_lowercase();
                    let value =
                        if MAP_FIELDS.contains(&name.as_str()) { value } else { fold_names(value) };
                    (name, value)
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(fold_names).collect()),
        other => other,
    }
}

fn escape(json: String) -> String {
    // Outside strings JSON has none of these characters, so replacing them everywhere is exact.
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// Writes a body: compact, escaped, one trailing newline.
pub fn to_json<T: Serialize>(value: &T) -> String {
    let mut text = escape(serde_json::to_string(value).expect("our bodies always serialise"));
    text.push('\n');
    text
}

/// The same for `--json` output: two-space indented.
pub fn to_json_pretty<T: Serialize>(value: &T) -> String {
    let mut text =
        escape(serde_json::to_string_pretty(value).expect("our bodies always serialise"));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateSandbox, ExecRequest};

    #[test]
    fn reading_is_as_lenient_as_the_contract() {
        let read: ExecRequest =
            from_json(br#"{"CMD":["a"],"timeout_sec":null,"extra":1} trailing"#).expect("reads");
        assert_eq!(read.cmd, ["a"]);
        assert_eq!(read.timeout_sec, 0);
        let create: CreateSandbox =
            from_json(br#"{"Env":{"Path":"x"},"FILES":[{"Guest_Path":"/a"}]}"#).expect("reads");
        assert_eq!(create.env["Path"], "x");
        assert_eq!(create.files[0].guest_path, "/a");
    }

    #[test]
    fn bad_bodies_say_why() {
        let error = |body: &[u8]| from_json::<ExecRequest>(body).map_err(|e| e.0);
        assert_eq!(error(b""), Err("EOF".to_owned()));
        for bad in ["{", "[1]", "nope", r#"{"cmd":"text"}"#, "\u{feff}{}"] {
            assert!(error(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = "[".repeat(10_000);
        assert!(error(deep.as_bytes()).is_err());
    }

    #[test]
    fn writing_is_safe_inside_html() {
        assert_eq!(to_json(&"<a>&\u{2028}"), "\"\\u003ca\\u003e\\u0026\\u2028\"\n");
    }
}
