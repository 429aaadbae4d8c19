//! What a caller asks for, as types: nothing in here can be malformed.

use std::collections::BTreeMap;

use bhatti_engine::{EngineInfo, Shape};
use bhatti_store::{NewSandbox, SandboxRow, UserRow};
use bhatti_types::{BadLabel, Cpus, Labels, Mib, Name};
use sha2::{Digest, Sha256};

use crate::ServiceError;

/// What a create wants; `None` and empty take the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateSpec {
    pub name: Option<Name>,
    pub image: Option<String>,
    pub cpus: Option<Cpus>,
    pub memory: Option<Mib>,
    pub disk_size: Option<Mib>,
    pub keep_hot: Option<bool>,
    /// Memory in pages of 2 MiB, which the host must have reserved.
    pub hugepages: Option<bool>,
    pub env: BTreeMap<String, String>,
    pub init: String,
    pub files: Vec<FileContent>,
    pub labels: Labels,
}

/// A file for the guest, put there before anything of the user's runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Absolute, without `..`.
    pub path: String,
    pub mode: u32,
    pub content: bytes::Bytes,
}

/// What a patch wants; `None` and empty stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatchSpec {
    pub name: Option<Name>,
    pub keep_hot: Option<bool>,
    pub labels_add: Labels,
    pub labels_remove: Vec<String>,
}

/// Memory when nothing is asked for.
const DEFAULT_MEMORY: Mib = Mib(1024);
/// Below this the guest kernel does not come up.
const MIN_MEMORY: Mib = Mib(128);
/// The kernel refuses one `execve` with more than about 128 KiB per string and 2 MiB in all;
/// this leaves room for the command's own.
const MAX_ENV_BYTES: usize = 256 * 1024;

impl CreateSpec {
    /// Checks everything that needs no look at the world.
    pub(crate) fn check(&self, caller: &UserRow) -> Result<(), ServiceError> {
        let invalid = |text: String| Err(ServiceError::Invalid(text));
        if self.cpus.is_some_and(|cpus| cpus.milli() > caller.max_cpus * 1000) {
            return invalid(format!("max {} CPUs per sandbox", caller.max_cpus));
        }
        if let Some(memory) = self.memory {
            if memory > caller.max_memory {
                return invalid(format!("max {} MB memory per sandbox", caller.max_memory.0));
            }
            if memory < MIN_MEMORY {
                return invalid(format!("memory_mb must be at least {}", MIN_MEMORY.0));
            }
        }
        BadLabel::check(&self.labels).map_err(|bad| ServiceError::Invalid(bad.to_string()))?;
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return invalid(format!(
                    "invalid environment variable {key:?}: no '=' or NUL in the name, no NUL in the value"
                ));
            }
        }
        let env_bytes: usize = self.env.iter().map(|(key, value)| key.len() + value.len()).sum();
        if env_bytes > MAX_ENV_BYTES {
            return invalid(format!("environment too large: {env_bytes} > {MAX_ENV_BYTES} bytes"));
        }
        if self.init.contains('\0') {
            return invalid("init must not contain NUL".to_owned());
        }
        Ok(())
    }

    /// The row to reserve.
    pub(crate) fn to_row(
        &self,
        caller: &UserRow,
        default_image: &str,
        uids: (u32, u32),
    ) -> NewSandbox {
        NewSandbox {
            owner: caller.id.clone(),
            name: self.name.clone().unwrap_or_else(generated_name),
            image: self.image.clone().unwrap_or_else(|| default_image.to_owned()),
            cpus: self.cpus.unwrap_or(Cpus::ONE),
            memory: self.memory.unwrap_or(DEFAULT_MEMORY.min(caller.max_memory)),
            disk_size: self.disk_size.unwrap_or(Mib(0)),
            hugepages: self.hugepages.unwrap_or(false),
            keep_hot: self.keep_hot.unwrap_or(false),
            labels: self.labels.clone(),
            env: self.env.clone(),
            init: self.init.clone(),
            files_digest: self.files_digest(),
            uids,
        }
    }

    /// Whether the engine makes such machines, known before anything is made.
    pub(crate) fn check_engine(
        &self,
        engine: &EngineInfo,
        caller: &UserRow,
    ) -> Result<(), ServiceError> {
        let memory = self.memory.unwrap_or(DEFAULT_MEMORY.min(caller.max_memory));
        let milli_cpus = self.cpus.unwrap_or(Cpus::ONE).milli();
        let shape = Shape { milli_cpus, memory };
        let supported = engine.supports(shape, self.hugepages.unwrap_or(false));
        supported.map_err(|error| ServiceError::Invalid(error.to_string()))
    }

    /// True if `row` is what this asks for, in everything that was said. What was left out
    /// does not count, so that a create can be run again with less.
    pub(crate) fn is_met_by(&self, row: &SandboxRow) -> bool {
        fn same<T: PartialEq>(asked: Option<T>, is: T) -> bool {
            asked.is_none_or(|asked| asked == is)
        }
        same(self.image.as_deref(), row.image.as_str())
            && same(self.cpus, row.cpus)
            && same(self.memory, row.memory)
            && same(self.disk_size, row.disk_size)
            && same(self.keep_hot, row.keep_hot)
            && same(self.hugepages, row.hugepages)
            && (self.labels.is_empty() || self.labels == row.labels)
            && (self.env.is_empty() || self.env == row.env)
            && (self.init.is_empty() || self.init == row.init)
            && (self.files.is_empty() || self.files_digest() == row.files_digest)
    }

    fn files_digest(&self) -> String {
        if self.files.is_empty() {
            return String::new();
        }
        let mut digest = Sha256::new();
        for file in &self.files {
            digest.update(file.path.as_bytes());
            digest.update([0]);
            digest.update(file.mode.to_be_bytes());
            digest.update((file.content.len() as u64).to_be_bytes());
            digest.update(&file.content);
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn generated_name() -> Name {
    let mut bytes = [0; 3];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    let [a, b, c] = bytes;
    format!("sandbox-{a:02x}{b:02x}{c:02x}").parse().expect("it follows the rule")
}

impl PatchSpec {
    pub(crate) fn check(&self) -> Result<(), ServiceError> {
        let invalid = |bad: BadLabel| ServiceError::Invalid(bad.to_string());
        BadLabel::check(&self.labels_add).map_err(invalid)?;
        BadLabel::check_removed(&self.labels_remove).map_err(invalid)
    }
}
