//! `--since`: how long ago, or when.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::failure::Failure;

/// `<number>[s|m|h|d]` before `now`, a date or a time in `zone`, or RFC 3339.
pub(super) fn since(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, Failure> {
    let understood = ago(text)
        .and_then(|ago| now.checked_sub(ago).ok())
        .or_else(|| text.parse::<Timestamp>().ok())
        .or_else(|| zone.to_timestamp(text.parse::<DateTime>().ok()?).ok());
    understood.ok_or_else(|| {
        Failure::text(format!(
            "--since {text:?} is no time: say how long ago (90s, 15m, 24h, 7d), a date \
             (2026-01-31) or a time (2026-01-31T12:00:00)"
        ))
    })
}

fn ago(text: &str) -> Option<SignedDuration> {
    let (at, unit) = text.char_indices().next_back()?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        'd' => 86_400.0,
        _ => return None,
    };
    let number: f64 = text[..at].parse().ok().filter(|number| *number >= 0.0)?;
    SignedDuration::try_from_secs_f64(number * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().expect("a time");
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        for (text, wanted) in [
            ("90s", "2026-03-02T11:58:30Z"),
            ("15m", "2026-03-02T11:45:00Z"),
            ("1.5h", "2026-03-02T10:30:00Z"),
            ("7d", "2026-02-23T12:00:00Z"),
            ("2026-03-01", "2026-02-28T22:00:00Z"),
            ("2026-03-01T10:00:00", "2026-03-01T08:00:00Z"),
            ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z"),
            ("2026-03-01T10:00:00+01:00", "2026-03-01T09:00:00Z"),
        ] {
            let found = since(text, now, &zone).map(|time| time.to_string());
            assert_eq!(found.ok().as_deref(), Some(wanted), "{text}");
        }
        for bad in ["", "yesterday", "-5m", "5", "h", "NaNh", "infd", "1e300d", "2026-13-01"] {
            assert!(since(bad, now, &zone).is_err(), "{bad:?}");
        }
    }
}
