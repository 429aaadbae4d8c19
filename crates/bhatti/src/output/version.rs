//! The warning about a client older than its server wants.

/// Lines for stderr, if `own` is older than `minimum`. What is no version warns about nothing.
pub(crate) fn outdated(own: &str, minimum: &str) -> Option<String> {
    let older = parse(own)? < parse(minimum)?;
    older.then(|| {
        format!(
            "⚠ CLI version {own} is below server minimum {minimum} — please update:\n  bhatti update\n\n"
        )
    })
}

/// `v1.2.3`, the `v` optional.
fn parse(text: &str) -> Option<[u64; 3]> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| part.parse().ok());
    let version = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::outdated;

    #[test]
    fn only_a_newer_minimum_warns() {
        assert!(outdated("0.1.0", "v0.1.1").is_some());
        assert!(outdated("1.9.0", "1.10.0").is_some());
        for minimum in ["0.1.0", "0.0.9", "", "x", "9", "9.9.9.9"] {
            assert_eq!(outdated("0.1.0", minimum), None, "{minimum}");
        }
    }
}
