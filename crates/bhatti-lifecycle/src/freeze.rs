//! Freezing a machine into a generation, and what a cold sandbox may wake from.

use std::time::Duration;

use bhatti_engine::{EngineError, Save, Vm};
use bhatti_store::{Generation, SandboxRow};
use jiff::Timestamp;

use crate::disk::{self, base_dir, blocking, sealed_as};
use crate::machine::{World, to_json, vm_record};
use crate::{WakeError, chain};

/// How long a guest may take to bring its files to the disk before it is frozen without.
pub(crate) const QUIESCE: Duration = Duration::from_secs(10);

/// How many generations are kept: the newest, and the one before until the newest is proven.
const KEPT: usize = 2;

/// Writes the memory of the paused machine of `row` into a new generation and brings it to the
/// medium. Its disk is still to be sealed. On failure nothing is left.
pub(crate) async fn write(
    world: &World,
    row: &SandboxRow,
    vm: &dyn Vm,
) -> Result<Generation, WakeError> {
    let id = row.id.clone();
    let number = world.db.call(move |store| store.next_serial(&id)).await?;
    let (layout, engine_id) = (world.layout.clone(), row.engine_id.clone());
    let into = blocking(move || layout.make_frozen(&engine_id, number)).await?;
    let written = async {
        let save = Save { into: into.clone(), ..what(world, row) };
        let saved = vm.save(save).await.map_err(WakeError::Engine)?;
        let top = disk::current(row)?;
        // The disk too: memory that knows of files which a power cut took back is worse than none.
        let (memory, files, names) = tokio::join!(
            blocking(move || bhatti_storage::sync_tree(&into)),
            disk::sync_top(&top),
            disk::sync_names(&top)
        );
        memory.and(files).and(names)?;
        let disk = sealed_as(world, row, &top, number);
        Ok(Generation {
            number,
            made_at: Timestamp::now(),
            golden: row.golden.clone(),
            disk: to_json("root disk", &disk)?,
            bytes: saved.total,
            written: saved.written,
        })
    };
    match written.await {
        Ok(generation) => Ok(generation),
        Err(error) => {
            discard(world, row, number).await;
            Err(error)
        }
    }
}

/// Ends what is left of the machine of a cold sandbox and seals its disk. Idempotent: each freeze
/// does it, and whoever finds one that came no further. Returns the row as it is then.
pub(crate) async fn finish(
    world: &World,
    row: SandboxRow,
    newest: &Generation,
) -> Result<SandboxRow, WakeError> {
    if let Some(record) = vm_record(&row)? {
        world.engine.end(&record).await.map_err(WakeError::Engine)?;
    }
    disk::seal(world, row, newest).await
}

/// What a save of the machine of `row` need not write: what is in the generation it came from,
/// and in the golden snapshot both stand on. The directory is the caller's to fill in.
pub(crate) fn what(world: &World, row: &SandboxRow) -> Save {
    let since = row.generations.first().filter(|newest| newest.golden == row.golden);
    Save {
        into: camino::Utf8PathBuf::new(),
        since: since.map(|newest| world.layout.frozen(&row.engine_id, newest.number)),
        base: base_dir(world, row.golden.as_ref()),
    }
}

/// Removes a generation that came to nothing. What stays is removed at the next start.
pub(crate) async fn discard(world: &World, row: &SandboxRow, number: u32) {
    let (layout, id) = (world.layout.clone(), row.engine_id.clone());
    if let Err(error) = blocking(move || layout.remove_frozen(&id, number)).await {
        tracing::warn!(error = chain(&error), "failed to remove an unfinished generation");
    }
}

/// The generations after `newest` has been added.
pub(crate) fn with(newest: Generation, former: &[Generation]) -> Vec<Generation> {
    std::iter::once(newest).chain(former.iter().cloned()).take(KEPT).collect()
}

/// One way to wake a cold sandbox. The numbers count generations, 0 is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Memory and disk as they were.
    Resume(usize),
    /// The disk as it was; memory is lost.
    Boot(usize),
}

/// The ways to wake, the one that loses least first. An older generation loses files that were
/// written since, so that is done only if somebody insists.
pub(crate) fn attempts(generations: usize, force: bool) -> Vec<Attempt> {
    let usable = if force { generations } else { generations.min(1) };
    (0..usable).flat_map(|at| [Attempt::Resume(at), Attempt::Boot(at)]).collect()
}

/// Whether the next attempt may be made after this one failed so. Without insistence only if
/// trying again could never help: whoever lost patience too early would lose memory for nothing.
/// With it, too, nothing is given up for what another attempt would meet as well.
pub(crate) fn goes_on(error: &WakeError, force: bool) -> bool {
    match error {
        WakeError::Engine(EngineError::Unusable { .. }) => true,
        error if is_the_hosts(error) => false,
        _ => force,
    }
}

/// True of what is wrong with the host or the daemon, not with what was frozen.
pub(crate) fn is_the_hosts(error: &WakeError) -> bool {
    match error {
        full if full.is_full() => true,
        WakeError::Network(_)
        | WakeError::Store(_)
        | WakeError::Disk(_)
        | WakeError::Denied(_)
        | WakeError::ShuttingDown
        | WakeError::Gone => true,
        WakeError::Engine(error) => matches!(
            error,
            EngineError::NoHugepages { .. }
                | EngineError::MissingProgram { .. }
                | EngineError::Spawn { .. }
                | EngineError::Confine { .. }
                | EngineError::Taken { .. }
        ),
        _ => false,
    }
}

/// What a wake by that attempt came to, for people. `failed` says why the ways before it did not
/// work.
pub(crate) fn outcome(attempt: Attempt, generations: &[Generation], failed: &[String]) -> String {
    if failed.is_empty() {
        return "woken".to_owned();
    }
    let at = |index: usize| {
        let made = generations.get(index).map(|generation| generation.made_at);
        made.unwrap_or_default().strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    };
    let what = match attempt {
        Attempt::Resume(index) => {
            format!("woken as it was at {}: everything since, files included, is lost", at(index))
        }
        Attempt::Boot(0) => {
            "booted from its disk: memory and running processes are lost, files are kept".to_owned()
        }
        Attempt::Boot(index) => format!(
            "booted from its disk as it was at {}: memory, and files written since, are lost",
            at(index)
        ),
    };
    // A cause may quote a guest's console: its first line will do.
    let causes: Vec<_> = failed.iter().filter_map(|cause| cause.lines().next()).collect();
    format!("{what} ({})", causes.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_is_lost_first_and_files_only_on_demand() {
        use Attempt::{Boot, Resume};
        assert_eq!(attempts(2, false), [Resume(0), Boot(0)]);
        assert_eq!(attempts(2, true), [Resume(0), Boot(0), Resume(1), Boot(1)]);
        assert!(attempts(0, true).is_empty());
    }

    /// The word by which clients warn.
    #[test]
    fn what_was_lost_is_said_and_nothing_else() {
        use bhatti_types::tells_of_loss;
        let failed = ["silence; console: a\nb".to_owned()];
        for attempt in attempts(2, true).into_iter().skip(1) {
            let reason = outcome(attempt, &[], &failed);
            assert!(tells_of_loss(&reason), "{reason}");
            assert!(reason.ends_with("(silence; console: a)"), "{reason}");
        }
        assert!(!tells_of_loss(&outcome(Attempt::Resume(0), &[], &[])));
        assert!(!tells_of_loss("resumed from snapshot lost-and-found"));
    }

    #[test]
    fn a_slow_host_costs_nobody_their_memory() {
        let silent = WakeError::Silent { seconds: 15, console: String::new() };
        assert!(!goes_on(&silent, false));
        assert!(goes_on(&silent, true));
        let why = "checksum".to_owned();
        assert!(goes_on(&WakeError::Engine(EngineError::Unusable { why: why.clone() }), false));
        let foreign = WakeError::Engine(EngineError::Foreign { why });
        assert!(!goes_on(&foreign, false), "it is whole, elsewhere");
        assert!(goes_on(&foreign, true));
        assert!(!goes_on(&WakeError::ShuttingDown, true));
        let full = EngineError::NoSpace { needed_mib: 1, free_mib: 0 };
        assert!(!goes_on(&WakeError::Engine(full), true), "booting needs room too");
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = EngineError::File { action: "write", path: "/top".into(), source };
        assert!(!goes_on(&WakeError::Engine(full), true), "however it was noticed");
    }
}
