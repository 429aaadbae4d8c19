//! How far a copy is, on a terminal.

use std::future::Future;
use std::time::Duration;

use bhatti_tree::Tally;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::context::Context;

/// Between two looks.
const TICK: Duration = Duration::from_millis(200);

/// Waits for `work`; meanwhile, on a terminal, shows on stderr what `tally` says.
pub(super) async fn shown<T>(context: &Context, tally: &Tally, work: impl Future<Output = T>) -> T {
    if !context.stderr_is_terminal() || context.globals.json {
        return work.await;
    }
    let started = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut work = std::pin::pin!(work);
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result,
            _ = ticks.tick() => context.say(&line(tally, started.elapsed())),
        }
    };
    context.say("\r\u{1b}[K");
    result
}

fn line(tally: &Tally, elapsed: Duration) -> String {
    let bytes = tally.bytes();
    let rate = bytes as f64 / elapsed.as_secs_f64().max(0.1);
    let files = tally.files();
    format!("\r{}  {}/s  {files} files\u{1b}[K", size(bytes), size(rate as u64))
}

/// `999 B`, `1.2 kB`, `34.5 MB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    // What would be shown as 1000.0 is one of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = [0, 999, 1000, 34_560_000, 999_949, 999_950, 5_000_000_000_000_000].map(size);
        let wanted = ["0 B", "999 B", "1.0 kB", "34.6 MB", "999.9 kB", "1.0 MB", "5000.0 TB"];
        assert_eq!(shown, wanted);
    }
}
