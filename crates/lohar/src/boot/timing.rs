//! When each phase of the boot was reached.

use std::fmt::Write as _;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The phases so far, in order, each with the time since the kernel started.
#[derive(Debug, Default)]
pub struct Timeline {
    reached: Vec<(Duration, &'static str)>,
}

impl Timeline {
    /// Records that `phase` is over, now.
    pub fn mark(&mut self, phase: &'static str) {
        // CLOCK_BOOTTIME always exists on Linux; a zero in a log is better than a dead PID 1.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        self.reached.push((now, phase));
    }

    /// One line a phase: `+<ms>ms <phase>`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (at, phase) in &self.reached {
            writeln!(text, "+{}ms {phase}", at.as_millis()).ok();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_is_one_line() {
        let timeline = Timeline {
            reached: vec![
                (Duration::from_micros(1_234_900), "modules"),
                (Duration::from_secs(2), "root disk"),
            ],
        };
        assert_eq!(timeline.render(), "+1234ms modules\n+2000ms root disk\n");
    }

    #[test]
    fn marks_never_go_back() {
        let mut timeline = Timeline::default();
        timeline.mark("a");
        timeline.mark("b");
        assert!(timeline.reached[0].0 > Duration::ZERO);
        assert!(timeline.reached[0].0 <= timeline.reached[1].0);
    }
}
