//! What a cycle tries: a pure function of the seed, the cycle's number and how much there is.

use crate::dice::Dice;

/// What is wished for one sandbox. What comes of it depends on what is there: on an empty place
/// everything means "make one".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Write {
        pick: usize,
        sync: bool,
    },
    Stop,
    Start,
    /// Leave it alone until it is no longer hot.
    Doze,
    /// A snapshot under that number, or, if there is one, its deletion.
    Snapshot(usize),
    Destroy,
    KillVmm,
    /// Its machine dies while it is being frozen.
    StopAndKillVmm {
        after_ms: u64,
    },
}

/// How the daemon ends in this cycle, and how long after the operations began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crash {
    pub(crate) after_ms: u64,
    /// SIGTERM, and not SIGKILL.
    pub(crate) in_order: bool,
}

/// One cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cycle {
    /// All at once, each on a sandbox of its own.
    pub(crate) wishes: Vec<(usize, Wish)>,
    pub(crate) crash: Option<Crash>,
    /// What an empty place becomes: a copy of that snapshot if there is one, else a new sandbox.
    pub(crate) resume: usize,
    /// Which sandboxes are looked into afterwards, whatever happened to them.
    pub(crate) look: Vec<usize>,
}

/// The plan of one cycle on `places` sandboxes and `snapshots` snapshots.
pub(crate) fn plan(seed: u64, cycle: u64, places: usize, snapshots: usize) -> Cycle {
    let mut dice = Dice::of_cycle(seed, cycle);
    let at_once = 1 + dice.below(4);
    let chosen = dice.distinct(at_once, places);
    let wishes = chosen.into_iter().map(|place| (place, wish(&mut dice, snapshots))).collect();
    let crash = dice
        .chance(20)
        .then(|| Crash { after_ms: dice.below(1200) as u64, in_order: dice.chance(25) });
    let look = 1 + dice.below(3);
    Cycle { wishes, crash, resume: dice.below(snapshots), look: dice.distinct(look, places) }
}

fn wish(dice: &mut Dice, snapshots: usize) -> Wish {
    // Every one draws the same numbers, so that a new kind does not move all others.
    let (pick, sync) = (dice.below(1 << 16), dice.chance(50));
    let snapshot = dice.below(snapshots);
    let after_ms = dice.below(300) as u64;
    dice.weighted(&[
        (34, Wish::Write { pick, sync }),
        (20, Wish::Stop),
        (8, Wish::Start),
        (8, Wish::Doze),
        (14, Wish::Snapshot(snapshot)),
        (6, Wish::Destroy),
        (6, Wish::KillVmm),
        (4, Wish::StopAndKillVmm { after_ms }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_plan() {
        for cycle in 0..50 {
            assert_eq!(plan(3, cycle, 12, 4), plan(3, cycle, 12, 4));
        }
        assert_ne!(plan(3, 1, 12, 4), plan(4, 1, 12, 4));
    }

    #[test]
    fn every_kind_of_thing_happens_soon() {
        let cycles: Vec<Cycle> = (0..300).map(|cycle| plan(1, cycle, 12, 4)).collect();
        let some = |test: fn(&Wish) -> bool| {
            cycles.iter().flat_map(|cycle| &cycle.wishes).any(|(_, wish)| test(wish))
        };
        assert!(some(|wish| matches!(wish, Wish::Write { sync: true, .. })));
        assert!(some(|wish| matches!(wish, Wish::Write { sync: false, .. })));
        assert!(some(|wish| matches!(wish, Wish::Snapshot(3))));
        assert!(some(|wish| matches!(wish, Wish::StopAndKillVmm { .. })));
        assert!(some(|wish| *wish == Wish::Destroy) && some(|wish| *wish == Wish::KillVmm));
        for in_order in [true, false] {
            assert!(cycles.iter().any(|c| c.crash.is_some_and(|c| c.in_order == in_order)));
        }
        for cycle in &cycles {
            let mut places: Vec<_> = cycle.wishes.iter().map(|(place, _)| *place).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), cycle.wishes.len(), "one operation a sandbox");
        }
    }
}
