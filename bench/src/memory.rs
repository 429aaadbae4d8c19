//! What processes hold in memory, as the kernel counts it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

/// Of one process, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Footprint {
    /// Every resident page, shared ones in full.
    pub(crate) rss: f64,
    /// Shared pages divided among those who share them.
    pub(crate) pss: f64,
}

impl Footprint {
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mib = |name| -> Result<f64> {
            let value = field(text, name).with_context(|| format!("no {name} in smaps_rollup"))?;
            let kib = value.strip_suffix(" kB").context("not in kB")?;
            Ok(kib.trim().parse::<f64>()? / 1024.0)
        };
        Ok(Self { rss: mib("Rss")?, pss: mib("Pss")? })
    }
}

/// The child of this process whose first argument is `word`.
pub(crate) fn child_told_to(word: &str) -> Result<i32> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = pid_of(&path) else { continue };
        // It may have ended meanwhile.
        let read = |name| fs::read(path.join(name)).unwrap_or_default();
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        let argument = read("cmdline").split(|byte| *byte == 0).nth(1).map(<[u8]>::to_vec);
        if field(&status, "PPid") == Some(&own) && argument.as_deref() == Some(word.as_bytes()) {
            found.push(pid);
        }
    }
    ensure!(found.len() < 2, "more than one child was told to {word}: {found:?}");
    match found.first() {
        Some(pid) => Ok(*pid),
        None => bail!("no child was told to {word}"),
    }
}

fn pid_of(path: &Path) -> Option<i32> {
    path.file_name()?.to_str()?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_read() {
        let text = "55 - 7f [rollup]\nRss:     2048 kB\nPss:     1536 kB\nPss_Dirty:  1 kB\n";
        assert_eq!(Footprint::parse(text).unwrap(), Footprint { rss: 2.0, pss: 1.5 });
        assert!(Footprint::parse("Rss: 1 kB\n").is_err(), "half of it");
    }

    #[test]
    fn this_process_has_a_footprint() {
        let own = Footprint::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.rss > 0.0 && own.pss > 0.0 && own.pss <= own.rss, "{own:?}");
    }

    #[test]
    fn a_child_is_found_by_its_argument() {
        let mut child = std::process::Command::new("sleep").arg("61.25").spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            // Until it has executed its program it has our arguments.
            match child_told_to("61.25") {
                Err(_) if std::time::Instant::now() < deadline => std::thread::yield_now(),
                other => break other,
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.unwrap(), i32::try_from(child.id()).unwrap());
        assert!(child_told_to("do nothing of the kind").is_err());
    }
}
