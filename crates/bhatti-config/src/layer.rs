//! Which files are read, and which wins.

use camino::{Utf8Path, Utf8PathBuf};

use crate::file::{self, FileSettings, Reading};
use crate::problem::ConfigError;
use crate::server::ServerConfig;

/// Where to look. The caller fills it from the environment; tests from a scratch directory.
#[derive(Clone, Debug)]
pub struct Places {
    /// `$BHATTI_CONFIG`: this file and nothing else.
    pub only: Option<Utf8PathBuf>,
    /// All keys.
    pub system: Utf8PathBuf,
    /// All keys, if there is no `system`; with a warning.
    pub deprecated: Utf8PathBuf,
    /// The home directory of whoever typed the command, also under sudo.
    pub home: Utf8PathBuf,
}

impl Places {
    /// The places of a real system.
    pub fn new(only: Option<Utf8PathBuf>, home: Utf8PathBuf) -> Self {
        Self {
            only,
            system: "/etc/bhatti/config.yaml".into(),
            deprecated: "/var/lib/bhatti/config.yaml".into(),
            home,
        }
    }

    /// Where `bhatti setup` writes.
    pub fn user(&self) -> Utf8PathBuf {
        self.home.join(".bhatti/config.yaml")
    }
}

/// How to reach the API, as far as files say.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Without trailing slashes.
    pub api_url: Option<String>,
    /// A secret; `Debug` leaves it out.
    pub auth_token: Option<String>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("api_url", &self.api_url).finish_non_exhaustive()
    }
}

/// All layers, read and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// How to reach the API.
    pub endpoint: Endpoint,
    /// Lines for stderr: deprecated places, keys without effect.
    pub warnings: Vec<String>,
    settings: FileSettings,
    home: Utf8PathBuf,
    source: Option<Utf8PathBuf>,
}

impl Config {
    /// What the daemon runs on. `data_dir` is the command line's and wins over the file.
    pub fn server(&self, data_dir: Option<&Utf8Path>) -> ServerConfig {
        ServerConfig::complete(&self.settings, data_dir, &self.home, self.source.clone())
    }
}

/// Reads every layer. For `serve` and the commands that open the database: a wrong file is fatal.
pub fn load(places: &Places) -> Result<Config, ConfigError> {
    let mut warnings = Vec::new();
    let source = main_file(places, &mut warnings);
    let mut settings = match &source {
        None => FileSettings::default(),
        Some(path) => {
            let Reading { settings, problems, unused } =
                file::parse(path, &file::read_text(path)?, &places.home)?;
            if !problems.0.is_empty() {
                return Err(ConfigError::Invalid(problems));
            }
            warnings.extend(unused.iter().map(ToString::to_string));
            settings
        }
    };
    let mut endpoint =
        Endpoint { api_url: settings.api_url.take(), auth_token: settings.auth_token.take() };
    if places.only.is_none() {
        add_user_file(places, &mut endpoint, &mut warnings);
    }
    Ok(Config { endpoint, warnings, settings, home: places.home.clone(), source })
}

/// Reads every layer for a command that only talks to the API: what is wrong becomes a warning,
/// and a wrong file counts as absent.
pub fn load_endpoint(places: &Places) -> (Endpoint, Vec<String>) {
    let failure = match load(places) {
        Ok(Config { endpoint, warnings, .. }) => {
            // Keys of the server are the server's business.
            let deprecated = warnings.into_iter().filter(|line| !line.ends_with("this version"));
            return (endpoint, deprecated.collect());
        }
        Err(failure) => failure,
    };
    let mut warnings = match failure {
        // A server's file that is none of this user's business.
        ConfigError::Read { ref source, .. }
            if places.only.is_none() && source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Vec::new()
        }
        ConfigError::Read { path, source } => {
            vec![format!("config ignored: read config {path}: {source}")]
        }
        other => vec![format!("config ignored: {other}")],
    };
    let mut endpoint = Endpoint::default();
    if places.only.is_none() {
        add_user_file(places, &mut endpoint, &mut warnings);
    }
    (endpoint, warnings)
}

fn main_file(places: &Places, warnings: &mut Vec<String>) -> Option<Utf8PathBuf> {
    if let Some(only) = &places.only {
        return Some(only.clone());
    }
    // Only "there is no such file" moves on: a file that cannot be looked at must not be skipped.
    let there = |path: &Utf8Path| !matches!(path.try_exists(), Ok(false));
    if there(&places.system) {
        return Some(places.system.clone());
    }
    if places.deprecated.try_exists().unwrap_or(false) {
        let (old, new) = (&places.deprecated, &places.system);
        warnings.push(format!("⚠ config loaded from deprecated location {old}\n  move to {new}\n"));
        return Some(old.clone());
    }
    None
}

/// The user's file: address and key, where still empty. It never stops a command.
fn add_user_file(places: &Places, endpoint: &mut Endpoint, warnings: &mut Vec<String>) {
    let path = places.user();
    let text = match file::read_text(&path) {
        Ok(text) => text,
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return;
        }
        Err(_) => {
            warnings.push(format!("{path} ignored: it cannot be read"));
            return;
        }
    };
    match file::parse(&path, &text, &places.home) {
        Ok(Reading { settings, problems, .. }) => {
            warnings.extend(problems.0.iter().map(ToString::to_string));
            fill(&mut endpoint.api_url, settings.api_url);
            fill(&mut endpoint.auth_token, settings.auth_token);
        }
        Err(error) => warnings.push(format!("ignored: {error}")),
    }
}

fn fill(slot: &mut Option<String>, value: Option<String>) {
    if slot.as_ref().is_none_or(String::is_empty) {
        *slot = value;
    }
}
