//! `--timing`.

use std::fmt::Write as _;
use std::time::Duration;

use bhatti_client::Timing;

/// The phases of the last request; only the rule if there was none.
pub(crate) fn timing(last: Option<Timing>) -> String {
    let mut out = "---\n".to_owned();
    let Some(timing) = last else { return out };
    for (label, phase) in [
        ("dns:", timing.dns),
        ("connect:", timing.connect),
        ("tls:", timing.tls),
        ("server:", timing.server),
        ("transfer:", timing.transfer),
        ("total:", Some(timing.total)),
    ] {
        if let Some(phase) = phase {
            writeln!(out, "{label:<11}{}", duration(phase)).expect("a String takes all text");
        }
    }
    out
}

fn duration(phase: Duration) -> String {
    let seconds = phase.as_secs_f64();
    if seconds < 0.001 {
        format!("{}µs", phase.as_micros())
    } else if seconds < 0.01 {
        format!("{:.2}ms", seconds * 1e3)
    } else if seconds < 1.0 {
        format!("{:.1}ms", seconds * 1e3)
    } else {
        format!("{seconds:.2}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_have_their_units() {
        let micros = |n| Some(Duration::from_micros(n));
        let last = Timing {
            dns: micros(1_230),
            connect: micros(12_300),
            tls: None,
            server: micros(342),
            transfer: micros(0),
            total: Duration::from_millis(2_380),
        };
        assert_eq!(
            timing(Some(last)),
            "---\ndns:       1.23ms\nconnect:   12.3ms\nserver:    342µs\ntransfer:  0µs\ntotal:     2.38s\n"
        );
        assert_eq!(timing(None), "---\n");
    }
}
