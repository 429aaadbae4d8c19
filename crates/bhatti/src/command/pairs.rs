//! Lists in one flag: `a=1,b=2`, repeated or comma-separated, with CSV quoting.

use bhatti_types::Labels;

use crate::failure::Failure;

/// Splits each value at its commas; `"a,b"` keeps its comma and `""` inside quotes is a quote.
pub(super) fn split(values: &[String]) -> Vec<String> {
    values.iter().flat_map(|value| split_one(value)).collect()
}

fn split_one(value: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut quoted = false;
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        let item = items.last_mut().expect("never empty");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                item.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if item.is_empty() => quoted = true,
            ',' if !quoted => items.push(String::new()),
            c => item.push(c),
        }
    }
    items
}

/// `--label`: each item is `key=value`.
pub(super) fn labels(values: &[String]) -> Result<Labels, Failure> {
    split(values)
        .into_iter()
        .map(|item| match item.split_once('=') {
            None => Err(Failure::text(format!("invalid --label {item:?}: expected key=value"))),
            Some(("", _)) => Err(Failure::text(format!("invalid --label {item:?}: empty key"))),
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_split_like_csv() {
        let split = |value: &str| split(&[value.to_owned()]);
        assert_eq!(split("a=1,b=2"), ["a=1", "b=2"]);
        assert_eq!(split("\"a=1,2\",b"), ["a=1,2", "b"]);
        assert_eq!(split("\"say \"\"x\"\"\""), ["say \"x\""]);
        assert_eq!(split("a=\"b\""), ["a=\"b\""]);
        assert_eq!(split("a,"), ["a", ""]);
    }

    #[test]
    fn labels_need_a_key_and_a_sign() {
        let read = |value: &str| match labels(&[value.to_owned()]) {
            Ok(labels) => format!("{labels:?}"),
            Err(Failure::Error { text, .. }) => text,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(read("a=b=c,d="), r#"{"a": "b=c", "d": ""}"#);
        assert_eq!(read("a"), "invalid --label \"a\": expected key=value");
        assert_eq!(read("=v"), "invalid --label \"=v\": empty key");
    }
}
