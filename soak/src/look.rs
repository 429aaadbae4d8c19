//! Looking into sandboxes: does each hold what it has to?

use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::guest;
use crate::stage::{Stage, patiently, text};

/// What a guest's clock may be off after any wake.
const CLOCK_MAY_BE_OFF: Duration = Duration::from_millis(100);

impl Stage {
    /// Looks into those of `places` that have a sandbox, all at once, and judges what is found.
    pub(crate) fn look_into(&mut self, places: &[usize]) {
        let places: Vec<usize> =
            places.iter().copied().filter(|place| self.places[*place].life.is_some()).collect();
        let list = self.daemon.json(&["list"]);
        for place in &places {
            let name = self.places[*place].name.as_str();
            let listed = list.as_array().expect("a list").iter().find(|one| one["name"] == name);
            let state = listed.map_or("missing", |one| {
                let word = one["thermal"].as_str().filter(|word| !word.is_empty());
                word.or_else(|| one["status"].as_str()).unwrap_or("?")
            });
            *self.tally.looks.entry(state.to_owned()).or_default() += 1;
        }
        let script = guest::look();
        let commands: Vec<_> = places.iter().map(|place| self.script(*place, &script)).collect();
        let found: Vec<(Duration, Output, Duration)> = std::thread::scope(|scope| {
            let threads: Vec<_> = commands
                .into_iter()
                .map(|command| scope.spawn(|| (now(), patiently(command), now())))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        for (place, (before, output, after)) in places.into_iter().zip(found) {
            self.note(place, "look", &output);
            if output.status.success() {
                self.judge(place, &output, before, after);
            } else {
                self.lose(place, &[format!("it cannot be looked into: {}", text(&output))]);
            }
        }
    }

    fn judge(&mut self, place: usize, output: &Output, before: Duration, after: Duration) {
        let seen = guest::seen(&String::from_utf8_lossy(&output.stdout));
        let Some(life) = &mut self.places[place].life else { return };
        let mut wrong = life.judge(&seen);
        match seen.clock.and_then(|clock| Duration::try_from_secs_f64(clock).ok()) {
            None => wrong.push("it does not know what time it is".to_owned()),
            Some(clock) => {
                let off = before.saturating_sub(clock).max(clock.saturating_sub(after));
                self.tally.clock_off = self.tally.clock_off.max(off);
                if off > CLOCK_MAY_BE_OFF {
                    wrong.push(format!("its clock is {} ms off", off.as_millis()));
                }
            }
        }
        if !wrong.is_empty() {
            self.lose(place, &wrong);
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the host's clock is past 1970")
}
