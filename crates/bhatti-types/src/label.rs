//! Labels: small key-value facts a client attaches to a sandbox.

use std::collections::BTreeMap;

/// Labels of one sandbox, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// Why a label was refused. The texts are part of the HTTP contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLabel {
    #[error("invalid label key {0:?}: must match [a-zA-Z0-9._-/]+ (≤63 chars per segment)")]
    Key(String),
    #[error("label key {0:?} uses reserved prefix \"bhatti.sh/\"")]
    Reserved(String),
    #[error("label {key:?} value too long: {len} > 256")]
    TooLong { key: String, len: usize },
    #[error("invalid label value {value:?} for key {key:?}: must match [a-zA-Z0-9._-]+")]
    Value { key: String, value: String },
    #[error("too many labels: {0} > 16")]
    TooMany(usize),
    #[error("too many label keys to remove: {0} > 16")]
    TooManyRemoved(usize),
}

/// The most labels in one request.
const MAX_LABELS: usize = 16;
const MAX_VALUE: usize = 256;

fn segment_ok(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let alnum = |b: &u8| b.is_ascii_alphanumeric();
    (1..=63).contains(&bytes.len())
        && bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum)
        && bytes.iter().all(|b| alnum(b) || matches!(b, b'.' | b'_' | b'-'))
}

/// Checks one key: `[prefix/]name`, each segment of letters, digits and `._-`.
pub fn check_label_key(key: &str) -> Result<(), BadLabel> {
    if key.starts_with("bhatti.sh/") {
        return Err(BadLabel::Reserved(key.to_owned()));
    }
    let ok = match key.split_once('/') {
        Some((prefix, name)) => segment_ok(prefix) && segment_ok(name),
        None => segment_ok(key),
    };
    if ok { Ok(()) } else { Err(BadLabel::Key(key.to_owned())) }
}

impl BadLabel {
    /// Checks the labels of one request: keys, values, count.
    pub fn check(labels: &Labels) -> Result<(), Self> {
        if labels.len() > MAX_LABELS {
            return Err(Self::TooMany(labels.len()));
        }
        for (key, value) in labels {
            check_label_key(key)?;
            if value.len() > MAX_VALUE {
                return Err(Self::TooLong { key: key.clone(), len: value.len() });
            }
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            if !value.bytes().all(ok) {
                return Err(Self::Value { key: key.clone(), value: value.clone() });
            }
        }
        Ok(())
    }

    /// Checks the keys a request wants removed.
    pub fn check_removed(keys: &[String]) -> Result<(), Self> {
        if keys.len() > MAX_LABELS {
            return Err(Self::TooManyRemoved(keys.len()));
        }
        keys.iter().try_for_each(|key| match check_label_key(key) {
            Err(Self::Key(key)) => Err(Self::Key(key)),
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_follow_the_rules() {
        for good in ["a", "team", "acme.io/team", "a.b-c_d"] {
            assert_eq!(check_label_key(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "a/b/c", "/a", "a/", "ü"] {
            assert!(matches!(check_label_key(bad), Err(BadLabel::Key(_))), "{bad}");
        }
        assert!(matches!(check_label_key("bhatti.sh/x"), Err(BadLabel::Reserved(_))));
        let labels = |value: &str| Labels::from([("k".to_owned(), value.to_owned())]);
        assert_eq!(BadLabel::check(&labels("")), Ok(()));
        assert!(matches!(BadLabel::check(&labels("a b")), Err(BadLabel::Value { .. })));
        assert!(matches!(
            BadLabel::check(&labels(&"a".repeat(257))),
            Err(BadLabel::TooLong { .. })
        ));
        let many = (0..17).map(|i| (format!("k{i}"), String::new())).collect();
        assert_eq!(BadLabel::check(&many), Err(BadLabel::TooMany(17)));
    }
}
