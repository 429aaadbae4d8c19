//! What a caller asks for, as types: nothing in here can be malformed.

use std::collections::BTreeMap;
use std::fmt::Display;

use bhatti_engine::{EngineInfo, Shape};
use bhatti_store::{NewSandbox, SandboxRow, UserRow};
use bhatti_types::{BadLabel, Cpus, Labels, Mib, Name, NetPolicy};
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
    pub net_policy: Option<NetPolicy>,
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
    pub net_policy: Option<NetPolicy>,
}

/// Memory when nothing is asked for.
const DEFAULT_MEMORY: Mib = Mib(1024);
/// Below this the guest kernel does not come up.
const MIN_MEMORY: Mib = Mib(128);
/// The kernel refuses one `execve` with more than about 128 KiB per string and 2 MiB in all;
/// this leaves room for the command's own.
const MAX_ENV_BYTES: usize = 256 * 1024;

impl ServiceError {
    /// More memory than the caller may have, in MB.
    pub fn much_memory(asked: i64, most: Mib) -> Self {
        Self::Invalid(format!("max {} MB memory per sandbox, asked for {asked}", most.0))
    }

    /// Less memory than a guest needs, in MB.
    pub fn little_memory(asked: i64) -> Self {
        Self::Invalid(format!("min {} MB memory per sandbox, asked for {asked}", MIN_MEMORY.0))
    }
}

impl CreateSpec {
    /// Checks everything that needs no look at the world.
    pub(crate) fn check(&self, caller: &UserRow) -> Result<(), ServiceError> {
        let invalid = |text: String| Err(ServiceError::Invalid(text));
        if self.cpus.is_some_and(|cpus| cpus.milli() > caller.max_cpus * 1000) {
            return invalid(format!("max {} CPUs per sandbox", caller.max_cpus));
        }
        if let Some(memory) = self.memory {
            if memory > caller.max_memory {
                return Err(ServiceError::much_memory(memory.0.into(), caller.max_memory));
            }
            if memory < MIN_MEMORY {
                return Err(ServiceError::little_memory(memory.0.into()));
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
            net_policy: self.net_policy.clone().unwrap_or_default(),
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

    /// What of `row` is not what this asks for, in a few words each. What was left out does not
    /// count, so that a create can be run again with less. Values that may be secret are not told.
    pub(crate) fn differences(&self, row: &SandboxRow) -> Vec<String> {
        fn told<T: PartialEq + Display>(what: &str, asked: Option<T>, is: T) -> Option<String> {
            let asked = asked.filter(|asked| *asked != is)?;
            Some(format!("{what} is {is}, not {asked}"))
        }
        let untold = |what: &str, differs: bool| differs.then(|| format!("{what} differs"));
        let megabytes = |size: Mib| match size.0 {
            0 => "the image's".to_owned(),
            size => format!("{size} MB"),
        };
        [
            told("its image", self.image.as_deref(), row.image.as_str()),
            told("its number of CPUs", self.cpus.map(Cpus::as_f64), row.cpus.as_f64()),
            told("its memory", self.memory.map(megabytes), megabytes(row.memory)),
            told("its disk size", self.disk_size.map(megabytes), megabytes(row.disk_size)),
            told("keep_hot", self.keep_hot, row.keep_hot),
            told("hugepages", self.hugepages, row.hugepages),
            untold(
                "its network policy",
                self.net_policy.as_ref().is_some_and(|p| *p != row.net_policy),
            ),
            untold("its set of labels", !self.labels.is_empty() && self.labels != row.labels),
            untold("its environment", !self.env.is_empty() && self.env != row.env),
            untold("its init script", !self.init.is_empty() && self.init != row.init),
            untold(
                "what files it began with",
                !self.files.is_empty() && self.files_digest() != row.files_digest,
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
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
