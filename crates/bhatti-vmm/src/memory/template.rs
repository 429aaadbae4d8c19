//! Templates: a snapshot's memory, loaded once, seen by every clone of it.
//!
//! A template is a sealed memfd. Nobody can write it any more, not even the daemon, so a VMM that
//! maps it privately gets its own copy of exactly the pages it writes.
//!
//! Loading one costs about as much as reading the snapshot, so some are kept that no machine uses
//! ([`Templates`]), up to a number and a size: this memory is the daemon's own, and nobody else
//! counts it. A template that is in use is never loaded twice, and one whose files have been
//! replaced is not taken for the new one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::MemoryError;
use super::chain::{self, Chain};
use super::mapping::{TEMPLATE_NAME, ZERO_NAME};
use super::pages::{PAGE, pages_in};

/// The memory of one snapshot, immutable.
#[derive(Debug)]
pub struct Template {
    file: File,
    /// Of the newest layer.
    id: u128,
    pages: u32,
}

/// The templates that machines use, and some that none uses just now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Templates(Arc<Cache>);

/// A machine's use of a template. Held while the machine lives; dropped early, it costs nothing but
/// the chance that the next clone finds it loaded.
#[derive(Debug)]
pub struct InUse {
    /// Always there until it is dropped.
    template: Option<Arc<Template>>,
    cache: Arc<Cache>,
}

#[derive(Debug)]
struct Cache {
    /// How many may be loaded that nobody uses.
    idle: usize,
    /// How much memory these may take, all together.
    idle_bytes: u64,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_dir: HashMap<Utf8PathBuf, Slot>,
    /// Counts uses, to tell the older from the newer.
    clock: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Locked while it is being loaded.
    loaded: Arc<Mutex<Option<Arc<Template>>>>,
    last_used: u64,
}

impl Template {
    /// Loads the memory of a snapshot. `dirs` is the snapshot, and before it what it stands on,
    /// the lowest first.
    fn load(dirs: &[Utf8PathBuf], bytes: u64) -> Result<Self, MemoryError> {
        let Some(pages) = pages_in(bytes) else {
            return Err(MemoryError::damaged(format!("no machine has {bytes} bytes of memory")));
        };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(TEMPLATE_NAME, flags).map_err(failed("create"))?;
        let mut template = Self { file: file.into(), id: 0, pages };
        template.file.set_len(bytes).map_err(failed("make room in"))?;
        for dir in dirs {
            let chain = Chain::open(dir)?;
            chain.check(pages, template.id)?;
            chain.each_piece(|first, count, content| template.put(first, count, content))?;
            template.id = chain.id();
        }
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SEAL;
        fcntl(&template.file, FcntlArg::F_ADD_SEALS(seals)).map_err(failed("seal"))?;
        Ok(template)
    }

    /// Sets pages; what is zero takes no memory.
    fn put(&self, first: u32, count: u32, content: Option<&[u8]>) -> Result<(), MemoryError> {
        let at = u64::from(first) * PAGE as u64;
        if let Some(content) = content {
            return self.file.write_all_at(content, at).map_err(failed("write"));
        }
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let bytes = i64::from(count) * PAGE as i64;
        fallocate(&self.file, hole, at as i64, bytes).map_err(failed("clear"))
    }

    /// To be inherited by a VMM: `mem-path=/fd/N,share=off`.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How much memory it takes: what is zero takes none.
    fn resident(&self) -> u64 {
        // Of a file in memory this cannot fail; if ever, it is as if nothing could be kept.
        self.file.metadata().map_or(u64::MAX, |metadata| metadata.blocks() * 512)
    }

    /// What identifies the snapshot's memory.
    pub(crate) fn id(&self) -> u128 {
        self.id
    }

    /// Reads a page of it.
    pub(crate) fn read(&self, page: u32, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let at = u64::from(page) * PAGE as u64;
        self.file.read_exact_at(buffer, at).map_err(failed("read"))
    }
}

/// Memory that starts as zero, for a VMM that takes it only from a file.
///
/// What is read or written through a private mapping of it leaves an empty page behind in the file
/// itself, beside the VMM's own; [`Self::forget`] gives these back.
#[derive(Debug)]
pub struct Zero(File);

impl Zero {
    /// As large as a machine's memory; takes none of it.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let file = memfd_create(ZERO_NAME, MFdFlags::MFD_CLOEXEC).map_err(failed("create"))?;
        let zero = Self(file.into());
        zero.0.set_len(bytes).map_err(failed("make room in"))?;
        Ok(zero)
    }

    /// To be inherited by a VMM.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Gives back the memory that empty pages have taken; nobody sees a difference.
    pub fn forget(&self) -> Result<(), MemoryError> {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let bytes = self.0.metadata().map_err(failed("look at"))?.len();
        fallocate(&self.0, hole, 0, bytes as i64).map_err(failed("clear"))
    }
}

impl Templates {
    /// Keeps up to `idle` templates that no machine uses, and of these no more than take up
    /// `idle_bytes`.
    pub fn new(idle: usize, idle_bytes: u64) -> Self {
        Self(Arc::new(Cache { idle, idle_bytes, slots: Mutex::default() }))
    }

    /// The template of a snapshot, loaded now if need be; whoever asks for one that is being
    /// loaded waits for it. `dirs` is the snapshot, and before it what it stands on, the lowest
    /// first. `bytes` is how much memory it must have.
    pub fn get(&self, dirs: &[Utf8PathBuf], bytes: u64) -> Result<InUse, MemoryError> {
        let Some(dir) = dirs.last() else {
            return Err(MemoryError::damaged("no snapshot was named"));
        };
        match self.0.get_or_load(dir, dirs, bytes) {
            Ok(template) => Ok(InUse { template: Some(template), cache: Arc::clone(&self.0) }),
            Err(error) => {
                self.0.trim();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
impl Templates {
    /// How many are in memory.
    pub(crate) fn loaded(&self) -> usize {
        lock(&self.0.slots).by_dir.values().filter(|slot| lock(&slot.loaded).is_some()).count()
    }
}

impl Cache {
    fn get_or_load(
        &self,
        dir: &Utf8Path,
        dirs: &[Utf8PathBuf],
        bytes: u64,
    ) -> Result<Arc<Template>, MemoryError> {
        let loaded = {
            let mut slots = lock(&self.slots);
            slots.clock += 1;
            let now = slots.clock;
            let slot = slots.by_dir.entry(dir.to_owned()).or_default();
            slot.last_used = now;
            Arc::clone(&slot.loaded)
        };
        let mut loaded = lock(&loaded);
        // The directory may have been made anew under the same name.
        let id = chain::identity(dir)?;
        if let Some(template) = loaded.as_ref()
            && template.id == id
            && pages_in(bytes) == Some(template.pages)
        {
            return Ok(Arc::clone(template));
        }
        let template = Arc::new(Template::load(dirs, bytes)?);
        *loaded = Some(Arc::clone(&template));
        Ok(template)
    }

    /// Forgets templates nobody uses, down to how many may be kept and how much they may take. Those
    /// stay that were used last.
    fn trim(&self) {
        let mut slots = lock(&self.slots);
        // Whoever is about to load or take one holds its slot, so that it cannot vanish between
        // the two locks.
        let unused = |slot: &Slot| Arc::strong_count(&slot.loaded) == 1;
        slots.by_dir.retain(|_, slot| !unused(slot) || lock(&slot.loaded).is_some());
        let mut idle: Vec<(u64, u64, Utf8PathBuf)> = slots
            .by_dir
            .iter()
            .filter(|(_, slot)| unused(slot))
            .filter_map(|(dir, slot)| {
                let loaded = lock(&slot.loaded);
                let template = loaded.as_ref().filter(|it| Arc::strong_count(it) == 1)?;
                Some((slot.last_used, template.resident(), dir.clone()))
            })
            .collect();
        // The one used last comes first. One that is too large makes no other one go.
        idle.sort_unstable_by(|a, b| b.cmp(a));
        let (mut kept, mut bytes) = (0, 0u64);
        for (_, resident, dir) in idle {
            let sum = bytes.saturating_add(resident);
            if kept < self.idle && sum <= self.idle_bytes {
                (kept, bytes) = (kept + 1, sum);
            } else {
                slots.by_dir.remove(&dir);
            }
        }
    }
}

impl std::ops::Deref for InUse {
    type Target = Template;

    fn deref(&self) -> &Template {
        self.template.as_ref().expect("taken only when it is dropped")
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // First, or it would count as used.
        drop(self.template.take());
        self.cache.trim();
    }
}

/// What a panic elsewhere left behind is whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> MemoryError {
    let path = format!("memfd:{TEMPLATE_NAME}").into();
    move |error| MemoryError::File { action, path, source: error.into() }
}
