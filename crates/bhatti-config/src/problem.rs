//! What can be wrong with a file, and how it is said.

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};

/// One thing wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: Utf8PathBuf,
    /// Counted from 1; 0 when no line is to blame.
    pub line: u64,
    /// A sentence without the place.
    pub text: String,
}

impl Problem {
    pub(crate) fn new(path: &Utf8Path, line: u64, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.text),
            line => write!(f, "{}:{line}: {}", self.path, self.text),
        }
    }
}

/// Everything wrong with a file, one per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there (or was named) and cannot be read.
    #[error("read config {path}")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("parse config {0}")]
    Syntax(Problem),
    /// The file is YAML and says things that make no sense.
    #[error("{0}")]
    Invalid(Problems),
}
