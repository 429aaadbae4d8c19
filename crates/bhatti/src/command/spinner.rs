//! A sign of life on stderr for requests that take long.

use std::future::Future;
use std::time::Duration;

use crate::context::Context;

/// Shorter waits need no sign.
const QUIET: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(100);
const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// Waits for `work`. On a terminal, `what` and the seconds appear after two of them, and are
/// wiped at the end.
pub(super) async fn while_waiting<T>(
    context: &Context,
    what: &str,
    work: impl Future<Output = T>,
) -> T {
    if !context.stderr_is_terminal() || context.globals.json {
        return work.await;
    }
    let started = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval_at(started + QUIET, TICK);
    let mut shown = false;
    let mut work = std::pin::pin!(work);
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result,
            _ = ticks.tick() => {
                let elapsed = started.elapsed();
                let frame = usize::try_from(elapsed.as_millis() / TICK.as_millis()).unwrap_or(0);
                let frame = FRAMES[frame % FRAMES.len()];
                context.say(&format!("\r{frame} {what} {} s\u{1b}[K", elapsed.as_secs()));
                shown = true;
            }
        }
    };
    if shown {
        context.say("\r\u{1b}[K");
    }
    result
}
