//! Layers upon each other: the memory of a machine as one snapshot holds it.
//!
//! ```text
//!  snapshot 1   mem-top ─────────────────┐ the same file
//!  snapshot 2   mem-000 (a link to it) ◀─┘   mem-top ──────────────┐
//!  snapshot 3   mem-000                      mem-001 (a link) ◀────┘   mem-top
//! ```
//!
//! The newest layer of a snapshot is `mem-top`, those below it are `mem-000`, `mem-001` and so on,
//! the lowest first. Each names the one below it, so a layer that is missing, foreign or in the
//! wrong place is noticed, the newest included. A page that no layer mentions holds what the
//! mapping started with: zero, or what the base has.
//!
//! A chain has at most [`MOST_LAYERS`] layers. When it is full, or holds too much that newer
//! layers hide, a save does not link the upper layers but writes what they say anew, into its own
//! ([`worth_keeping`]): a page is rewritten a few times in the life of a machine, not each time.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use bhatti_engine::Saved;
use camino::{Utf8Path, Utf8PathBuf};

use super::MemoryError;
use super::layer::{Content, Entry, Layer, Place, Writer};
use super::mapping::{Ground, Mapping};
use super::pages::{PAGE, PageSet, Run};
use super::template::Template;

/// More layers make a load seek and a save compare more.
pub const MOST_LAYERS: usize = 8;
/// Pages that newer layers hide are let be as long as they are no more than those that count, and
/// these (16 MiB).
const FREE_DEAD_PAGES: u64 = 4096;
/// Pages that are read, hashed and written at once: 1 MiB.
const BATCH: usize = 256;

/// What is not worth a thread: 4 MiB.
const FEW_PAGES: usize = 1024;

const TOP: &str = "mem-top";
static ZEROS: [u8; BATCH * PAGE] = [0; BATCH * PAGE];

/// The memory of one snapshot. Its index is in memory, its pages are not.
#[derive(Debug)]
pub(crate) struct Chain {
    dir: Utf8PathBuf,
    /// The lowest first; never empty once opened, maybe empty once cut.
    layers: Vec<Layer>,
}

/// What a chain says about one page, and which of its layers says so.
#[derive(Clone, Copy, Debug)]
struct Located<'a> {
    layer: &'a Layer,
    entry: &'a Entry,
}

/// Writes the memory of a paused machine into the directory `into`, where no memory is yet.
///
/// Memory that is equal in `since` (a former snapshot of this machine, or of what it was restored
/// from, over the same base) is linked instead of written. A `since` that cannot be used is not an
/// error: everything is written then. `base` is the snapshot whose template the machine stands on.
pub fn save(
    mapping: &Mapping,
    into: &Utf8Path,
    since: Option<&Utf8Path>,
    base: Option<&Utf8Path>,
) -> Result<Saved, MemoryError> {
    check_ground(mapping, base.is_some())?;
    let changed = mapping.changed()?;
    let base = base.map_or(Ok(0), identity)?;
    let kept = Chain::kept(since, mapping, base, into);
    let place = Place {
        pages: mapping.pages(),
        ordinal: kept.layers.len() as u32,
        id: random_id()?,
        below: kept.layers.last().map_or(0, |layer| layer.place.id),
        base,
    };
    let mut writer = Writer::create(&into.join(TOP), place)?;
    write_differences(mapping, changed, &kept, &mut writer)?;
    let linked = kept.layers.iter().map(Layer::bytes).sum::<u64>();
    if writer.is_empty()
        && let Some(newest) = kept.layers.len().checked_sub(1)
    {
        // Nothing is new, so the newest of the linked ones is the newest of all.
        let path = into.join(TOP);
        std::fs::rename(into.join(name(newest)), &path)
            .map_err(MemoryError::file("rename", &path))?;
        return Ok(Saved { written: 0, total: linked });
    }
    let written = writer.finish()?;
    Ok(Saved { written, total: linked + written })
}

/// Writes what the snapshot in `dir` holds into the memory of a machine that has never run.
///
/// `base` is the template the machine stands on. If that is the snapshot itself, as for a clone,
/// there is nothing left to load.
pub fn load(dir: &Utf8Path, base: Option<&Template>, mapping: &Mapping) -> Result<(), MemoryError> {
    check_ground(mapping, base.is_some())?;
    let identity = identity(dir)?;
    // What a VMM has written by itself before it was given its memory: nothing, as far as is
    // known, but whatever it is, it was not saved.
    let mut strays = mapping.changed()?;
    if base.is_none_or(|base| base.id() != identity) {
        let chain = Chain::open(dir)?;
        chain.check(mapping.pages(), base.map_or(0, Template::id))?;
        chain.each_piece(|first, count, content| {
            match (content, base) {
                (Some(content), _) => mapping.write(first, content),
                (None, Some(base)) => zero(mapping, base, Run { first, count }, &strays),
                // Zero over zero.
                (None, None) => Ok(()),
            }
        })?;
        let written = chain.located();
        let written =
            written.iter().filter(|located| base.is_some() || located.entry.slot().is_some());
        written.for_each(|located| strays.remove(located.entry.page));
    }
    let mut page = vec![0; PAGE];
    for stray in strays.iter() {
        if let Some(base) = base {
            base.read(stray, &mut page)?;
        }
        mapping.write(stray, &page)?;
    }
    Ok(())
}

/// Makes pages over a template zero that are not. A page that is zero there already stays shared: what
/// was written once and freed is mostly of no program the template has.
fn zero(mapping: &Mapping, base: &Template, run: Run, strays: &PageSet) -> Result<(), MemoryError> {
    let mut there = vec![0; run.count as usize * PAGE];
    base.read(run.first, &mut there)?;
    let (pages, _) = there.as_chunks::<PAGE>();
    let bare: Vec<u32> = (run.first..)
        .zip(pages)
        .filter(|(page, there)| there[..] != ZEROS[..PAGE] || strays.contains(*page))
        .map(|(page, _)| page)
        .collect();
    for part in bare.chunk_by(|a, b| a + 1 == *b) {
        mapping.write(part[0], &ZEROS[..part.len() * PAGE])?;
    }
    Ok(())
}

/// What identifies the memory of a snapshot.
pub(crate) fn identity(dir: &Utf8Path) -> Result<u128, MemoryError> {
    Ok(Place::read(&dir.join(TOP))?.id)
}

/// A machine stands on a template exactly if there is a base.
fn check_ground(mapping: &Mapping, has_base: bool) -> Result<(), MemoryError> {
    if (mapping.ground() == Ground::Template) == has_base {
        return Ok(());
    }
    let why = format!("it is over {:?}, base: {has_base}", mapping.ground());
    Err(MemoryError::NoMapping { why })
}

/// Appends what differs from what is kept.
fn write_differences(
    mapping: &Mapping,
    changed: PageSet,
    kept: &Chain,
    writer: &mut Writer,
) -> Result<(), MemoryError> {
    let former = kept.located();
    let mut candidates = changed;
    former.iter().for_each(|located| candidates.insert(located.entry.page));
    let mut former = former.iter().map(|located| located.entry).peekable();

    let mut candidates = candidates.iter();
    let mut buffer = vec![0; BATCH * PAGE];
    let mut new = Vec::with_capacity(BATCH);
    loop {
        let batch: Vec<u32> = candidates.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return Ok(());
        }
        read_pages(mapping, &batch, &mut buffer)?;
        new.clear();
        let mut end = 0;
        for (index, &page) in batch.iter().enumerate() {
            let at = index * PAGE;
            let content = Content::of(&buffer[at..at + PAGE]);
            let was = former.next_if(|entry| entry.page == page).map(|entry| entry.content);
            // Where nothing is said, a page is what the mapping started with.
            let silent = (mapping.ground() != Ground::Template).then_some(Content::ZERO);
            if was.or(silent) == Some(content) {
                continue;
            }
            new.push((page, content));
            if content != Content::ZERO {
                if end != at {
                    buffer.copy_within(at..at + PAGE, end);
                }
                end += PAGE;
            }
        }
        writer.append(&new, &buffer[..end])?;
    }
}

/// Reads pages, which ascend, one behind the other into `buffer`.
fn read_pages(mapping: &Mapping, pages: &[u32], buffer: &mut [u8]) -> Result<(), MemoryError> {
    let mut rest = buffer;
    for run in pages.chunk_by(|a, b| a + 1 == *b) {
        let (now, later) = rest.split_at_mut(run.len() * PAGE);
        mapping.read(Run { first: run[0], count: run.len() as u32 }, now)?;
        rest = later;
    }
    Ok(())
}

impl Chain {
    /// Opens the memory of a snapshot and checks all of it but the pages.
    pub(crate) fn open(dir: &Utf8Path) -> Result<Self, MemoryError> {
        let top = Layer::open(&dir.join(TOP))?;
        let below = top.place.ordinal as usize;
        if below >= MOST_LAYERS {
            return Err(damaged(dir, "it has too many layers"));
        }
        let mut layers = Vec::with_capacity(below + 1);
        for ordinal in 0..below {
            layers.push(Layer::open(&dir.join(name(ordinal)))?);
        }
        layers.push(top);
        let mut expected = 0;
        for (layer, ordinal) in layers.iter().zip(0..) {
            let place = Place { ordinal, below: expected, id: layer.place.id, ..layers[0].place };
            if layer.place != place {
                return Err(damaged(dir, &format!("layer {ordinal} does not belong there")));
            }
            expected = layer.place.id;
        }
        Ok(Self { dir: dir.to_owned(), layers })
    }

    /// What identifies it; zero if it is empty.
    pub(crate) fn id(&self) -> u128 {
        self.layers.last().map_or(0, |layer| layer.place.id)
    }

    /// Refuses the memory of a machine of another size or over another base.
    pub(crate) fn check(&self, pages: u32, base: u128) -> Result<(), MemoryError> {
        let Some(Layer { place, .. }) = self.layers.last() else { return Ok(()) };
        if place.pages != pages {
            let why = format!("it has {} pages, the machine {pages}", place.pages);
            return Err(damaged(&self.dir, &why));
        }
        if place.base != base {
            return Err(damaged(&self.dir, "it stands on another base"));
        }
        Ok(())
    }

    /// The part of a former snapshot that a new one in `into` stands on, linked there; nothing if
    /// it cannot be used, which costs space and time but no memory of the guest.
    fn kept(since: Option<&Utf8Path>, mapping: &Mapping, base: u128, into: &Utf8Path) -> Self {
        let nothing = Self { dir: into.to_owned(), layers: Vec::new() };
        let Some(since) = since else { return nothing };
        let opened =
            Self::open(since).and_then(|chain| chain.check(mapping.pages(), base).map(|()| chain));
        match opened.and_then(|chain| chain.cut_and_link(into)) {
            Ok(chain) => chain,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, %since, "a former snapshot cannot be built upon");
                nothing
            }
        }
    }

    /// Leaves the layers that are worth keeping and gives them names in `into`: all or none.
    fn cut_and_link(mut self, into: &Utf8Path) -> Result<Self, MemoryError> {
        let sizes: Vec<u32> = self.layers.iter().map(|layer| layer.data_pages).collect();
        let live = self.located().iter().filter(|at| at.entry.slot().is_some()).count();
        self.layers.truncate(worth_keeping(&sizes, live as u64));
        for (ordinal, layer) in self.layers.iter().enumerate() {
            let path = into.join(name(ordinal));
            if let Err(error) = layer.link(&path) {
                for made in 0..ordinal {
                    let made = into.join(name(made));
                    std::fs::remove_file(&made).map_err(MemoryError::file("remove", &made))?;
                }
                return Err(MemoryError::file("link", &path)(error));
            }
        }
        Ok(self)
    }

    /// Calls `with` for all it says: the first page, how many, and what they hold, checked; `None`
    /// means zero. At most [`BATCH`] pages at a time, in no order, by two threads if it is much:
    /// most of the time goes into copies and page faults, which run side by side.
    pub(crate) fn each_piece(
        &self,
        with: impl Fn(u32, u32, Option<&[u8]>) -> Result<(), MemoryError> + Sync,
    ) -> Result<(), MemoryError> {
        self.layers.iter().for_each(Layer::will_be_read);
        let located = self.located();
        let runs = located.chunk_by(Located::goes_on_with);
        let pieces: Vec<_> = runs.flat_map(|run| run.chunks(BATCH)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; BATCH * PAGE];
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let content = read_piece(piece, &mut buffer);
                let done = content
                    .and_then(|content| with(piece[0].entry.page, piece.len() as u32, content));
                if done.is_err() {
                    // The other one may stop too.
                    next.store(pieces.len(), Ordering::Relaxed);
                    return done;
                }
            }
            Ok(())
        };
        if located.len() < FEW_PAGES {
            return work();
        }
        std::thread::scope(|scope| {
            // A host that has no thread left gets it done all the same.
            let helper = std::thread::Builder::new().spawn_scoped(scope, work);
            let own = work();
            let Ok(helper) = helper else { return own };
            let helped = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            own.and(helped)
        })
    }

    /// What it says about each page it mentions, ascending; the newest layer wins.
    fn located(&self) -> Vec<Located<'_>> {
        self.layers.iter().fold(Vec::new(), |older, layer| {
            let mut newer = layer.entries.iter().map(|entry| Located { layer, entry }).peekable();
            let mut merged = Vec::with_capacity(older.len().max(layer.entries.len()));
            for old in older {
                while let Some(new) = newer.next_if(|new| new.entry.page < old.entry.page) {
                    merged.push(new);
                }
                let same = newer.next_if(|new| new.entry.page == old.entry.page);
                merged.push(same.unwrap_or(old));
            }
            merged.extend(newer);
            merged
        })
    }
}

/// Reads and checks what a piece holds; `None` means zero.
fn read_piece<'b>(
    piece: &[Located<'_>],
    buffer: &'b mut [u8],
) -> Result<Option<&'b [u8]>, MemoryError> {
    let Located { layer, entry } = piece[0];
    let Some(slot) = entry.slot() else { return Ok(None) };
    let buffer = &mut buffer[..piece.len() * PAGE];
    layer.read(slot, piece.iter().map(|located| located.entry), buffer)?;
    Ok(Some(buffer))
}

impl Located<'_> {
    /// Whether the next page can be read together with this one.
    fn goes_on_with(&self, next: &Self) -> bool {
        self.entry.page + 1 == next.entry.page
            && match (self.entry.slot(), next.entry.slot()) {
                (Some(slot), Some(next_slot)) => {
                    std::ptr::eq(self.layer, next.layer) && slot + 1 == next_slot
                }
                (None, None) => true,
                _ => false,
            }
    }
}

/// How many layers, from the lowest, the next snapshot should stand on, given how many pages of
/// data each has and how many of those no newer layer hides.
///
/// What is not kept is written again, so that has to be rare for what is large. A full chain gives
/// up the uppermost layers, as many as are together smaller than the one below them: after that
/// the sizes fall towards the top, and a layer is rewritten when about as much has come on top of
/// it. When more is hidden than counts, everything is written anew, and nothing is hidden.
fn worth_keeping(sizes: &[u32], live: u64) -> usize {
    let sum = |sizes: &[u32]| sizes.iter().map(|&size| u64::from(size)).sum::<u64>();
    if sum(sizes) - live.min(sum(sizes)) > live + FREE_DEAD_PAGES {
        return 0;
    }
    if sizes.len() < MOST_LAYERS {
        return sizes.len();
    }
    (1..sizes.len())
        .rev()
        .find(|&keep| u64::from(sizes[keep - 1]) > sum(&sizes[keep..]))
        .unwrap_or(0)
}

fn name(ordinal: usize) -> String {
    format!("mem-{ordinal:03}")
}

/// Never zero, which means "none".
fn random_id() -> Result<u128, MemoryError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| MemoryError::File {
        action: "read randomness for",
        path: TOP.into(),
        source: io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO)),
    })?;
    Ok(u128::from_le_bytes(bytes) | 1)
}

fn damaged(dir: &Utf8Path, why: &str) -> MemoryError {
    MemoryError::damaged(format!("the memory in {dir} is damaged: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_layer_at_the_bottom_is_kept_and_the_small_ones_are_merged() {
        for (sizes, live, expected) in [
            (&[1000, 10, 10][..], 1000, 3),
            (&[1000, 10, 10, 10, 10, 10, 10, 10], 1000, 1),
            (&[1000, 70, 10, 10, 10, 10, 10, 10], 1000, 2),
            (&[1000, 70, 30, 30, 10, 10, 5, 4], 1000, 7),
            (&[1, 1, 1, 1, 1, 1, 1, 1], 8, 0),
            (&[0, 0, 0, 0, 0, 0, 0, 0], 0, 0),
            // 16 MiB and what counts may be hidden, one page more may not.
            (&[10_000, 6_000], 5_952, 2),
            (&[10_000, 6_001], 5_952, 0),
        ] {
            assert_eq!(worth_keeping(sizes, live), expected, "{sizes:?}");
        }
    }
}
