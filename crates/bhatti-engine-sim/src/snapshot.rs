//! What the simulator leaves in a snapshot's directory.
//!
//! ```text
//! state.sim     lines of text: who saved what, on which base; the last one is a checksum
//! memory.sim    the machine's memory, as a test set it; linked where it did not change
//! ```
//!
//! Promises: a snapshot that was damaged in any byte or stands on another base than it is given is
//! [`EngineError::Unusable`], one saved under another fingerprint [`EngineError::Foreign`].
//! Snapshots know their base by a name of its own, so that directories may be renamed.

use std::fs::File;
use std::io::{self, Read, Write};

use bhatti_engine::{EngineError, Save, Saved, Shape};
use bhatti_types::EngineId;
use camino::Utf8Path;

use crate::fault::{Call, failure};
use crate::file_error;

const MAGIC: &str = "sim snapshot 1";
const STATE: &str = "state.sim";
const MEMORY: &str = "memory.sim";

/// The most that is read of either file.
const MAX_FILE: u64 = 64 << 20;

/// What the machine is, and what a test made of it.
pub(crate) struct Contents {
    pub(crate) fingerprint: String,
    pub(crate) shape: Shape,
    /// The name of the snapshot it stands on, or empty.
    pub(crate) base: String,
    pub(crate) memory: Vec<u8>,
}

/// What a machine wakes with.
#[derive(Default)]
pub(crate) struct Woken {
    pub(crate) memory: Vec<u8>,
    /// The name of the snapshot it stands on, or empty.
    pub(crate) base: String,
}

/// A state file that was read and is whole.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// Its own name: what others call it when it is their base.
    name: String,
    fingerprint: String,
    vcpus: u32,
    memory_mib: u32,
    /// The name of its base, or empty.
    base: String,
    /// Checksum of the memory file.
    memory: u64,
}

/// Fills an empty directory.
pub(crate) fn write(save: &Save, contents: &Contents) -> Result<Saved, EngineError> {
    let base = save.base.as_deref().map(State::read).transpose()?;
    let base = base.map(|base| base.name).unwrap_or_default();
    if base != contents.base {
        return Err(misused("the machine stands on another base than the one named"));
    }
    let former = save.since.as_deref().map(State::read).transpose()?;
    if former.as_ref().is_some_and(|former| former.base != base && former.name != base) {
        return Err(misused("the former snapshot stands on another base"));
    }
    let state = State {
        name: EngineId::random().to_string(),
        fingerprint: contents.fingerprint.clone(),
        vcpus: contents.shape.vcpus(),
        memory_mib: contents.shape.memory.0,
        base,
        memory: checksum(&contents.memory),
    };
    let text = state.render();
    create(&save.into.join(STATE), text.as_bytes())?;
    let memory = save.into.join(MEMORY);
    let unchanged = former.is_some_and(|former| former.memory == state.memory);
    let mut written = text.len() as u64;
    match &save.since {
        Some(since) if unchanged => {
            std::fs::hard_link(since.join(MEMORY), &memory).map_err(file_error("link", &memory))?;
        }
        Some(_) | None => {
            create(&memory, &contents.memory)?;
            written += contents.memory.len() as u64;
        }
    }
    Ok(Saved { written, total: (text.len() + contents.memory.len()) as u64 })
}

/// What a save that was told to fail leaves: a part that must not pass for a snapshot.
pub(crate) fn write_rubbish(save: &Save) {
    // A directory that takes nothing has no rubbish in it, which is as well.
    std::fs::write(save.into.join(STATE), MAGIC).ok();
}

/// Whether it was saved under that fingerprint.
pub(crate) fn recognise(snapshot: &Utf8Path, fingerprint: &str) -> Result<(), EngineError> {
    State::read(snapshot)?.is_of(fingerprint)
}

/// What a machine of `shape` wakes with from `snapshot`.
pub(crate) fn read(
    snapshot: &Utf8Path,
    base: Option<&Utf8Path>,
    fingerprint: &str,
    shape: Shape,
) -> Result<Woken, EngineError> {
    let state = State::read(snapshot)?;
    state.is_of(fingerprint)?;
    if (state.vcpus, state.memory_mib) != (shape.vcpus(), shape.memory.0) {
        return unusable("it is of a machine of another size");
    }
    // A clone stands on the very snapshot it wakes from.
    let (below, base) = match base {
        Some(base) if base == snapshot => (String::new(), state.name),
        Some(base) => {
            let name = State::read(base)?.name;
            (name.clone(), name)
        }
        None => (String::new(), String::new()),
    };
    if below != state.base {
        return unusable("its base is another one");
    }
    let memory = read_file(&snapshot.join(MEMORY))?;
    if checksum(&memory) != state.memory {
        return unusable("its memory is damaged");
    }
    Ok(Woken { memory, base })
}

impl State {
    fn render(&self) -> String {
        let Self { name, fingerprint, vcpus, memory_mib, base, memory } = self;
        let body = format!(
            "{MAGIC}\n{name}\n{fingerprint:?}\n{vcpus}\n{memory_mib}\n{base}\n{memory:016x}\n"
        );
        format!("{body}{:016x}\n", checksum(body.as_bytes()))
    }

    fn is_of(&self, fingerprint: &str) -> Result<(), EngineError> {
        if self.fingerprint == fingerprint {
            return Ok(());
        }
        let why =
            format!("its memory was saved by {:?}, this is {fingerprint:?}", self.fingerprint);
        Err(EngineError::Foreign { why })
    }

    fn read(snapshot: &Utf8Path) -> Result<Self, EngineError> {
        let bytes = read_file(&snapshot.join(STATE))?;
        let parsed = String::from_utf8(bytes).ok().and_then(|text| Self::parse(&text));
        parsed.map_or_else(|| unusable("its state is damaged"), Ok)
    }

    /// `None` if it is not exactly what [`Self::render`] makes.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1);
        let state = Self {
            name: lines.next()?.to_owned(),
            fingerprint: unquote(lines.next()?)?,
            vcpus: lines.next()?.parse().ok()?,
            memory_mib: lines.next()?.parse().ok()?,
            base: lines.next()?.to_owned(),
            memory: u64::from_str_radix(lines.next()?, 16).ok()?,
        };
        (state.render() == text).then_some(state)
    }
}

/// The inside of a text printed with `{:?}`; those of ours have nothing to escape.
fn unquote(text: &str) -> Option<String> {
    text.strip_prefix('"')?.strip_suffix('"').map(str::to_owned)
}

/// The caller broke the contract of [`bhatti_engine::Vm::save`].
fn misused(what: &str) -> EngineError {
    failure(Call::Save, what.to_owned())
}

fn unusable<T>(why: &str) -> Result<T, EngineError> {
    Err(EngineError::Unusable { why: why.to_owned() })
}

fn create(path: &Utf8Path, bytes: &[u8]) -> Result<(), EngineError> {
    let mut file = File::create_new(path).map_err(file_error("create", path))?;
    file.write_all(bytes).map_err(file_error("write", path))
}

/// A whole file of a snapshot; one that is missing or absurdly long is damage.
fn read_file(path: &Utf8Path) -> Result<Vec<u8>, EngineError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return unusable("a file of it is missing");
        }
        opened => opened.map_err(file_error("open", path))?,
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(file_error("read", path))?;
    if read as u64 > MAX_FILE { unusable("a file of it is too long") } else { Ok(bytes) }
}

/// FNV-1a: no protection against intent, enough to see a test's damage.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
