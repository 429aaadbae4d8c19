//! `cargo xtask tidy`: rules of this repository that neither compiler nor clippy knows.
//!
//! A checker takes text and returns complaints, so each is tested with bad text. All complaints of
//! all checkers are printed before the command fails.

mod addresses;
mod arrows;
mod headers;
mod leftovers;
mod licences;
mod links;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// A text file of the repository, by its path from the root.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn has_extension(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|e| e == extension)
    }

    /// A complaint about one line of this file.
    fn at(&self, line: usize, complaint: impl std::fmt::Display) -> String {
        format!("{}:{}: {complaint}", self.path.display(), line + 1)
    }
}

/// Larger files are data, not text somebody wrote.
const MAX_TEXT: u64 = 4 << 20;

/// Runs every checker over the work tree.
pub(crate) fn run() -> Result<()> {
    let sources = sources()?;
    let mut complaints = Vec::new();
    complaints.extend(arrows::check(&arrows::packages()?));
    complaints.extend(licences::check(&licences::dependency_listing()?));
    complaints.extend(headers::check(&sources));
    complaints.extend(leftovers::check(&sources));
    complaints.extend(addresses::check(&sources));
    let root = workspace::root();
    complaints.extend(links::check(&sources, |path| root.join(path).exists()));
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    match complaints.len() {
        0 => {
            eprintln!("tidy: {} files are fine", sources.len());
            Ok(())
        }
        1 => bail!("tidy: 1 complaint"),
        n => bail!("tidy: {n} complaints"),
    }
}

/// Every text file git knows of or would take.
fn sources() -> Result<Vec<Source>> {
    let root = workspace::root();
    let mut sources = Vec::new();
    for path in workspace::tracked_files()? {
        let full = root.join(&path);
        let size = fs::metadata(&full)
            .with_context(|| format!("failed to look at {}", path.display()))?
            .len();
        if size > MAX_TEXT {
            continue;
        }
        let bytes =
            fs::read(&full).with_context(|| format!("failed to read {}", path.display()))?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path, text });
        }
    }
    Ok(sources)
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source { path: PathBuf::from(path), text: text.to_owned() }
}
