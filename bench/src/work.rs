//! What a user's day is made of: commands at once, bytes in and out, keys in a terminal, each over
//! the API and over the bare link of **one and the same machine** (as in [`crate::same`]).
//!
//! ```text
//!   round 1..n:  daemon stopped ── this program ── link ──▶ resident: every measure once
//!                daemon started ── this program ── API ───▶ resident: every measure once
//! ```
//!
//! What a link cannot do faster is not the daemon's to answer for: the same agent does the same
//! work both times. Commands at once are held against the guest too, which runs as many of them
//! from one shell, by its own clock.

mod crowd;
mod keys;
mod moves;
mod sessions;
mod way;

use anyhow::Result;

use crate::report::Part;
use crate::subject::Subject;
use crowd::Crowds;
use keys::Keys;
use moves::Moves;
use sessions::Sessions;
use way::Way;

/// Measures it all in so many rounds; what has been found is in `parts` even if it ends early.
pub(crate) async fn measure(
    subject: &mut Subject,
    rounds: usize,
    parts: &mut Vec<Part>,
) -> Result<()> {
    let (mut moves, mut crowds, mut keys) = (Moves::new(), Crowds::new(), Keys::new());
    for round in 0..rounds {
        subject.stop_daemon()?;
        let (way, hang_up) = Way::link(subject).await?;
        moves.measure(&way).await?;
        crowds.measure(&way).await?;
        keys.over_link(&way).await?;
        // Hangs up, so that the daemon's link is the next one served.
        drop(way);
        hang_up.abort();

        subject.start_daemon();
        let way = Way::api(subject).await?;
        moves.measure(&way).await?;
        crowds.measure(&way).await?;
        keys.over_api(&way).await?;
        keys.through_shell(subject).await?;
        eprintln!("work: round {} of {rounds}", round + 1);
    }
    parts.push(moves.part()?);
    parts.push(crowds.part()?);
    parts.push(keys.part());
    parts.push(Sessions::measure(subject).await?.part());
    Ok(())
}
