//! Puts the agent and the modules together into what the kernel starts from.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Progress;
use super::agent::Agent;
use super::cpio::{self, Entry, Tree};
use super::kernel::{self, Kernel};
use super::stamp::{self, Stamp};

/// The finished archive.
pub(crate) const INITRAMFS: &str = "initramfs.cpio";
/// Raise this when the layout changes.
const RECIPE: &str = "1";

/// Builds the initramfs if the agent or the modules changed.
pub(crate) fn build(
    dir: &Path,
    kernel: &Kernel,
    agent: &Agent,
    progress: &mut Progress,
) -> Result<Stamp> {
    let key = stamp::key([RECIPE, &kernel.modules.sha256, &agent.sha256]);
    if let Some(stamp) = stamp::finished(dir, INITRAMFS, &key) {
        progress.say("initramfs is there");
        return Ok(stamp);
    }
    progress.say("initramfs: writing");
    let modules = dir.join(kernel::MODULES);
    let modules =
        fs::read(&modules).with_context(|| format!("failed to read {}", modules.display()))?;
    let init = fs::read(&agent.path)
        .with_context(|| format!("failed to read {}", agent.path.display()))?;

    // The kernel unpacks archives that follow each other as one.
    let mut archive = cpio::archive(&skeleton(init));
    archive.extend_from_slice(&modules);

    let scratch = stamp::scratch(dir)?;
    let built = scratch.path().join(INITRAMFS);
    fs::write(&built, archive).with_context(|| format!("failed to write {}", built.display()))?;
    stamp::finish(dir, INITRAMFS, &built, &key, kernel.modules.packages.clone())
}

/// All but the modules.
fn skeleton(init: Vec<u8>) -> Tree {
    let mut tree: Tree = ["dev", "newroot", "proc", "run", "sys"]
        .into_iter()
        .map(|name| (name.to_owned(), Entry::Directory))
        .collect();
    // Without a console PID 1 starts with no stdin, stdout or stderr.
    let console = Entry::CharDevice { mode: 0o600, major: 5, minor: 1 };
    tree.insert("dev/console".to_owned(), console);
    tree.insert("init".to_owned(), Entry::File { mode: 0o755, content: init });
    tree
}
