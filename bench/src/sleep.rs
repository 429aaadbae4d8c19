//! What sleep costs: create from a golden snapshot, waking from warm and from cold, freezing,
//! memory, and twenty wakes at once, each beside the same done by hand.
//!
//! ```text
//!   bhatti serve ── up to 40 sandboxes of 5 users ◀── API, CLI
//!   QEMU by hand ── continued from memory it maps ◀── QMP, link
//! ```
//!
//! By hand nothing is checked, recorded or confined, and memory is mapped rather than read: what
//! a daemon adds is all that.

mod cold;
mod create;
mod crowd;
mod density;
mod fleet;
mod freeze;
mod warm;

use std::time::Instant;

use anyhow::Result;

use crate::Size;
use crate::bare::{Bare, Bench, Medium};
use crate::report::{Budget, Part};
use cold::Cold;
use create::Creates;
use crowd::Crowd;
use density::Density;
use fleet::{Fleet, Origins, USERS};
use freeze::Freezes;
use warm::Warm;

/// Measures it all; what has been found is in `parts` even if it ends early. `runs` is how many
/// creates there are.
pub(crate) async fn measure(
    bench: &Bench,
    Size { runs, short }: Size,
    parts: &mut Vec<Part>,
) -> Result<()> {
    let (bare, _) = bench.boot().await?;
    bare.exec_true().await?;
    let saved = bare.save(Medium::Memory).await?;
    eprintln!("sleep: a machine was saved by hand, {} MiB", saved.bytes >> 20);

    let mut fleet = Fleet::start()?;
    let counts: &[usize] = if short { &[1, USERS] } else { &[1, 10, 40] };
    let (density, sandboxes) = Density::measure(&mut fleet, counts).await?;
    parts.push(density.part());
    if !short {
        let crowd = Crowd::measure(&mut fleet, bench, &saved, &sandboxes).await?;
        parts.push(crowd.part()?);
    }
    parts.push(Creates::measure(&mut fleet, bench, &saved, runs).await?.part()?);
    parts.push(Warm::measure(&mut fleet, bench, &saved, runs).await?.part()?);
    let size = Size { runs: runs.div_ceil(2), short };
    parts.push(Cold::measure(&mut fleet, bench, size).await?.part()?);
    let freezes = Freezes::measure(&mut fleet, bench, &saved, &density.freezes, size).await?;
    parts.push(freezes.part());
    parts.push(clones(&fleet.origins()));
    parts.push(fleet.end()?);
    Ok(())
}

/// Whether it was clones that were measured: a daemon that cannot make them boots instead.
fn clones(origins: &Origins) -> Part {
    let Origins { sandboxes, clones, other } = origins;
    let note = other.as_ref().map(|reason| format!("Not all sandboxes were clones: {reason}"));
    let (clones, all) = (*clones as f64, *sandboxes as f64);
    Part {
        notes: note.into_iter().collect(),
        budgets: vec![Budget::at_least("sandboxes made that are clones", clones, all, "")],
        ..Part::default()
    }
}

/// What is done in guests, by either way.
struct Guests;

impl Guests {
    /// A shell line that fills so much memory with random bytes, and holds it. The same line
    /// again writes the same pages anew.
    fn fill(mib: u32) -> String {
        // A file system in memory holds half of it at most; there are two.
        let (first, second) = (mib.min(128), mib.saturating_sub(128));
        let write = |file: &str, mib: u32| {
            format!("dd if=/dev/urandom of={file} bs=1M count={mib} conv=notrunc status=none")
        };
        let mut line = write("/dev/shm/filled", first);
        if second > 0 {
            line = format!("{line} && {}", write("/tmp/filled", second));
        }
        line
    }

    /// Runs a shell line to its end, by hand.
    async fn shell(bare: &Bare, line: &str) -> Result<()> {
        let line = format!("{line} && echo done");
        bare.first_byte(Instant::now(), &["sh", "-c", &line]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_memory_is_filled_in_two_places() {
        assert!(Guests::fill(16).contains("of=/dev/shm/filled bs=1M count=16 "));
        let much = Guests::fill(256);
        assert!(much.contains("/dev/shm/filled bs=1M count=128 "), "{much}");
        assert!(much.contains("/tmp/filled bs=1M count=128 "), "{much}");
    }
}
