//! Durations as people write them: `45s`, `10m`, `1h30m`, and `never`.

use std::time::Duration;

use crate::node::Node;

/// Longer than a year is a typo; people who mean it write `never`.
const LONGEST: u64 = 366 * 24 * 3600;

/// The units in the order in which they may follow each other, with their seconds.
const UNITS: [(char, u64); 3] = [('h', 3600), ('m', 60), ('s', 1)];

/// Reads the value of `key`. `None` is `never`.
pub(crate) fn read(key: &str, value: &Node) -> Result<Option<Duration>, String> {
    let must = format!("{key:?} must be a duration such as 45s, 10m or 1h30m, or never");
    match value {
        Node::Text(text) if text == "never" => Ok(None),
        Node::Text(text) => match parse(text) {
            Some(seconds @ 1..=LONGEST) => Ok(Some(Duration::from_secs(seconds))),
            Some(0) => Err(format!("{key:?} must be at least 1s, got {text:?}")),
            Some(_) => Err(format!("{key:?} must be at most 8784h, or never, got {text:?}")),
            None => Err(format!("{must}, got {text:?}")),
        },
        Node::Int(number) => {
            Err(format!("{must}, not a number; {number}s is {number} seconds, {number}m minutes"))
        }
        other => Err(format!("{must}, not {}", other.kind())),
    }
}

/// Seconds of `1h30m`. Each unit at most once, the largest first.
fn parse(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0u64;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        // No digits, no number: `s` alone is not a duration.
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        // Moves past every larger unit, so that what follows can only be smaller.
        let (_, seconds) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.checked_mul(*seconds)?)?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then_some(total)
}

/// The shortest text that reads back as the same.
pub(crate) fn show(duration: Option<Duration>) -> String {
    let Some(duration) = duration else { return "never".to_owned() };
    let mut left = duration.as_secs();
    let mut out = String::new();
    for (unit, seconds) in UNITS {
        let count = left / seconds;
        left %= seconds;
        if count > 0 {
            out.push_str(&format!("{count}{unit}"));
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_what_they_show() {
        for (text, seconds) in [("45s", 45), ("10m", 600), ("1h30m", 5400), ("2h0m5s", 7205)] {
            assert_eq!(parse(text), Some(seconds), "{text}");
            let shown = show(Some(Duration::from_secs(seconds)));
            assert_eq!(parse(&shown), Some(seconds), "{shown}");
        }
        assert_eq!(show(Some(Duration::from_secs(5400))), "1h30m");
        assert_eq!(show(None), "never");
    }

    #[test]
    fn what_is_not_a_duration_is_none() {
        let huge = "9".repeat(20) + "s";
        let overflow = "9999999999999999999h";
        for bad in
            ["", "s", "5", "5 s", "-5s", "1.5h", "30m1h", "5s5s", "5d", "5é", &huge, overflow]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
