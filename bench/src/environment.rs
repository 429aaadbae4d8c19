//! Where and when a run was made: figures without this mean nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The stamp on every report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Environment {
    pub(crate) date: String,
    /// Of the source tree; ends in `-dirty` if it had changes.
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// What the VMM program says of itself.
    pub(crate) vmm: String,
    /// Engine and accelerator, as the daemon says.
    pub(crate) engine: String,
    /// Load over one minute before the first round and after the last. The run itself is about 1.
    pub(crate) load: [f64; 2],
    /// Whether this program was optimised; the `bhatti` it measures should be too.
    pub(crate) optimised: bool,
}

impl Environment {
    pub(crate) fn observe(engine: String, vmm: &Path) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let banner = first_line(Command::new(vmm).arg("--version"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let describe = ["describe", "--always", "--dirty", "--exclude=*"];
        let load = load()?;
        Ok(Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            commit: first_line(Command::new("git").args(describe).current_dir(root)),
            cpu: cpu_model(&cpuinfo).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            vmm: banner,
            engine,
            load: [load, load],
            optimised: !cfg!(debug_assertions),
        })
    }

    /// Notes the load at the end.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.load[1] = load()?;
        Ok(())
    }
}

fn cpu_model(cpuinfo: &str) -> &str {
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    model.and_then(|rest| rest.split_once(':')).map_or("unknown", |(_, model)| model.trim())
}

fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    first_number(&text).context("/proc/loadavg has no number")
}

fn first_number(loadavg: &str) -> Option<f64> {
    loadavg.split(' ').next()?.parse().ok()
}

/// What a command says about itself; `unknown` is an honest answer.
fn first_line(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.as_deref().and_then(|text| text.lines().next()).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A B @ 2 GHz\n"), "A B @ 2 GHz");
        assert_eq!(cpu_model(""), "unknown");
        assert_eq!(first_number("1.25 0.50 0.10 1/99 1234\n"), Some(1.25));
        assert_eq!(first_number("nonsense"), None);
        assert_eq!(first_line(&mut Command::new("/nonexistent")), "unknown");
    }
}
