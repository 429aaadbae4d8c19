//! What a snapshot says about itself: `manifest.json` and `state` in its directory.
//!
//! The manifest is written last, so a directory without one is a save that did not end. It names
//! what the machine was; whether this host can bring it back is decided by [`Manifest::admits`],
//! a pure function. The pages of memory lie beside it and are checked by [`crate::memory`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use bhatti_engine::EngineError;
use bhatti_types::Mib;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::fingerprint::Host;

const MANIFEST: &str = "manifest.json";
/// The devices of the machine, as its VMM wrote them.
const STATE: &str = "state";
/// A manifest has some 400 bytes.
const MOST_MANIFEST: u64 = 64 << 10;
/// The devices' state of a machine has 16 KiB.
pub const MOST_STATE: u64 = 16 << 20;
/// Of this text; another one is another format.
const VERSION: u32 = 1;

/// The facts of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    host: Host,
    pub vcpus: u32,
    pub memory: Mib,
    /// Of the root device.
    pub disk_bytes: u64,
    /// The snapshot whose memory this one presupposes.
    pub base: Option<Utf8PathBuf>,
    state: Checked,
}

/// A file's content, to be recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checked {
    bytes: u64,
    /// XXH3, 128 bits, in hexadecimal.
    hash: String,
}

impl Checked {
    fn of(content: &[u8]) -> Self {
        Self { bytes: content.len() as u64, hash: format!("{:032x}", xxh3_128(content)) }
    }
}

/// What a manifest is made of, beside what a file holds.
pub struct Facts {
    pub host: Host,
    pub vcpus: u32,
    pub memory: Mib,
    pub disk_bytes: u64,
    pub base: Option<Utf8PathBuf>,
}

/// Writes the state of the devices and, as the last file of a snapshot, its manifest. Returns how
/// many bytes that were.
pub fn write(dir: &Utf8Path, facts: Facts, state: &[u8]) -> Result<u64, EngineError> {
    let Facts { host, vcpus, memory, disk_bytes, base } = facts;
    let checked = Checked::of(state);
    let manifest =
        Manifest { version: VERSION, host, vcpus, memory, disk_bytes, base, state: checked };
    create(dir, STATE, state)?;
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| EngineError::File {
        action: "write",
        path: dir.join(MANIFEST),
        source: io::Error::other(error),
    })?;
    create(dir, MANIFEST, &text)?;
    Ok((state.len() + text.len()) as u64)
}

fn create(dir: &Utf8Path, name: &str, content: &[u8]) -> Result<(), EngineError> {
    let path = dir.join(name);
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let written = options.open(&path).and_then(|mut file| file.write_all(content));
    written.map_err(|source| EngineError::File { action: "write", path, source })
}

/// At most `most` bytes of a file; one that is longer is as bad as one that is cut.
fn read(dir: &Utf8Path, name: &str, most: u64) -> Result<Vec<u8>, EngineError> {
    let path = dir.join(name);
    let file = match File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(unusable(format!("there is no {path}")));
        }
        Err(source) => return Err(EngineError::File { action: "open", path, source }),
    };
    let mut content = Vec::new();
    match file.take(most + 1).read_to_end(&mut content) {
        Ok(_) if content.len() as u64 <= most => Ok(content),
        Ok(_) => Err(unusable(format!("{path} is longer than it can be"))),
        Err(source) => Err(EngineError::File { action: "read", path, source }),
    }
}

/// What is asked of a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub vcpus: u32,
    pub memory: Mib,
    pub disk_bytes: u64,
    /// The base that is named, if it is another than the snapshot itself.
    pub base: Option<&'a Utf8Path>,
}

impl Manifest {
    /// Reads the manifest of a snapshot.
    pub fn read(dir: &Utf8Path) -> Result<Self, EngineError> {
        let text = read(dir, MANIFEST, MOST_MANIFEST)?;
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| unusable(format!("{dir}/{MANIFEST} is damaged: {error}")))?;
        if manifest.version != VERSION {
            let version = manifest.version;
            return Err(unusable(format!("{dir} is in format {version}, this is {VERSION}")));
        }
        Ok(manifest)
    }

    /// The state of the devices, exactly as it was saved.
    pub fn state(&self, dir: &Utf8Path) -> Result<Vec<u8>, EngineError> {
        let state = read(dir, STATE, MOST_STATE)?;
        if Checked::of(&state) != self.state {
            return Err(unusable(format!("{dir}/{STATE} is not what was saved")));
        }
        Ok(state)
    }

    /// Whether it was saved by this engine on such a host.
    pub fn is_of(&self, host: &Host) -> Result<(), EngineError> {
        self.host.admits(host).map_err(|why| EngineError::Foreign { why })
    }

    /// Whether a machine like this can wake from it here.
    pub fn admits(&self, host: &Host, wanted: Wanted<'_>) -> Result<(), EngineError> {
        self.is_of(host)?;
        let Wanted { vcpus, memory, disk_bytes, base } = wanted;
        let Self { vcpus: had, memory: remembered, .. } = self;
        if *had != vcpus {
            return Err(unusable(format!("it has {had} virtual CPUs, not {vcpus}")));
        }
        if *remembered != memory {
            let (Mib(had), Mib(asked)) = (remembered, memory);
            return Err(unusable(format!("it has {had} MiB of memory, not {asked}")));
        }
        if disk_bytes < self.disk_bytes {
            let had = self.disk_bytes;
            return Err(unusable(format!("its disk had {had} bytes, this one has {disk_bytes}")));
        }
        match (&self.base, base) {
            (None, None) | (Some(_), Some(_)) => Ok(()),
            (Some(base), None) => Err(unusable(format!("it presupposes the memory of {base}"))),
            (None, Some(base)) => {
                Err(unusable(format!("it was not saved over the memory of {base}")))
            }
        }
    }
}

fn unusable(why: String) -> EngineError {
    EngineError::Unusable { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let host = Host::of_test();
        Facts { host, vcpus: 1, memory: Mib(256), disk_bytes: 1 << 30, base: None }
    }

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_keep, dir) = scratch();
        let bytes = write(&dir, facts(), b"devices").unwrap();
        let manifest = Manifest::read(&dir).unwrap();
        assert_eq!(manifest.state(&dir).unwrap(), b"devices");
        let on_disk = |name| std::fs::metadata(dir.join(name)).unwrap().len();
        assert_eq!(bytes, on_disk(MANIFEST) + on_disk(STATE));
        write(&dir, facts(), b"again").unwrap_err();
    }

    #[test]
    fn what_is_damaged_is_unusable() {
        let (_keep, dir) = scratch();
        let why = |result: Result<Vec<u8>, EngineError>| match result {
            Err(EngineError::Unusable { why }) => why,
            other => panic!("{other:?}"),
        };
        let all = || Manifest::read(&dir).and_then(|manifest| manifest.state(&dir));
        assert!(why(all()).contains("there is no"));
        write(&dir, facts(), b"devices").unwrap();
        let manifest = std::fs::read(dir.join(MANIFEST)).unwrap();
        for (file, content, word) in [
            (STATE, b"devicez".to_vec(), "not what was saved"),
            (STATE, Vec::new(), "not what was saved"),
            (STATE, vec![0; MOST_STATE as usize + 1], "longer than"),
            (MANIFEST, manifest[..manifest.len() / 2].to_vec(), "damaged"),
            (MANIFEST, vec![b'['; 1 << 20], "longer than"),
            (MANIFEST, vec![b'['; 1 << 10], "damaged"),
        ] {
            let former = std::fs::read(dir.join(file)).unwrap();
            std::fs::write(dir.join(file), content).unwrap();
            let why = why(all());
            assert!(why.contains(word), "{why}");
            std::fs::write(dir.join(file), former).unwrap();
            all().unwrap();
        }
        let later =
            String::from_utf8(manifest).unwrap().replace("\"version\": 1", "\"version\": 2");
        std::fs::write(dir.join(MANIFEST), later).unwrap();
        assert!(why(all()).contains("format 2"));
    }

    #[test]
    fn another_shape_is_refused_with_its_reason() {
        let (_keep, dir) = scratch();
        write(&dir, facts(), b"devices").unwrap();
        let manifest = Manifest::read(&dir).unwrap();
        let base = Some(Utf8Path::new("/base"));
        let fits = Wanted { vcpus: 1, memory: Mib(256), disk_bytes: 1 << 30, base: None };
        manifest.admits(&Host::of_test(), fits).unwrap();
        manifest.admits(&Host::of_test(), Wanted { disk_bytes: 1 << 31, ..fits }).unwrap();
        for (wanted, word) in [
            (Wanted { vcpus: 2, ..fits }, "virtual CPUs"),
            (Wanted { memory: Mib(512), ..fits }, "MiB of memory"),
            (Wanted { disk_bytes: 1 << 29, ..fits }, "its disk"),
            (Wanted { base, ..fits }, "not saved over"),
        ] {
            let error = manifest.admits(&Host::of_test(), wanted).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
