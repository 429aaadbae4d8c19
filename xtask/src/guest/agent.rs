//! Builds `lohar` as one static file small enough to sit in every guest's memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::arch::Arch;
use super::{Progress, stamp};
use crate::{process, workspace};

/// A larger agent is a mistake: it is in the memory of every guest.
const MAX_BYTES: u64 = 2 << 20;

/// The built agent.
pub(crate) struct Agent {
    pub(crate) path: PathBuf,
    /// The target it was built for.
    pub(crate) target: String,
    pub sha256: String,
    pub(crate) bytes: u64,
}

/// Lets cargo bring the agent up to date and checks what came out.
pub(crate) fn build(arch: Arch, target_dir: &Path, progress: &mut Progress) -> Result<Agent> {
    let target = target(arch)?;
    progress.say(&format!("agent: building for {target}"));
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.replace('-', "_").to_uppercase());
    process::run(
        workspace::cargo()
            .args(["build", "--quiet", "--package", "lohar", "--profile", "agent"])
            .args(["--target", &target])
            .env(flags, flags_for(arch))
            // It would take precedence over ours.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    let path = target_dir.join(&target).join("agent/lohar");
    let elf = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let bytes = elf.len() as u64;
    ensure!(is_static(&elf)?, "{} wants a dynamic loader, the guest has none", path.display());
    ensure!(bytes < MAX_BYTES, "{} has {bytes} bytes, {MAX_BYTES} are too many", path.display());
    Ok(Agent { sha256: stamp::file_hash(&path)?, path, target, bytes })
}

/// musl where its target is installed: smaller, and free of glibc's loader tricks. For another
/// architecture it is the only one, because it needs nothing of a distribution.
fn target(arch: Arch) -> Result<String> {
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let musl = arch.musl();
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib").join(&musl).join("lib");
    match (libraries.is_dir(), arch == Arch::HOST) {
        (true, _) => Ok(musl),
        (false, true) => Ok(arch.gnu()),
        (false, false) => bail!("Rust has no {musl} here; run: rustup target add {musl}"),
    }
}

/// Static in any case; for another architecture with the linker that comes with the compiler.
fn flags_for(arch: Arch) -> &'static str {
    if arch == Arch::HOST {
        "-C target-feature=+crt-static"
    } else {
        "-C target-feature=+crt-static -C linker=rust-lld"
    }
}

/// Whether a 64-bit little-endian ELF file starts without an interpreter.
fn is_static(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "the agent is no 64-bit ELF file");
    let field = |at: usize, size: usize| -> Result<usize> {
        let bytes = elf.get(at..at + size).context("the agent's ELF header is cut short")?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    };
    let (table, entry_size, entries) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    for entry in 0..entries {
        let kind = table
            .checked_add(entry * entry_size)
            .and_then(|at| elf.get(at..at.checked_add(4)?))
            .context("the agent's program headers are cut short")?;
        if kind == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kinds: &[u8]) -> Vec<u8> {
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = u8::try_from(kinds.len()).expect("few");
        for &kind in kinds {
            let mut header = [0u8; 56];
            header[0] = kind;
            elf.extend_from_slice(&header);
        }
        elf
    }

    #[test]
    fn an_interpreter_means_dynamic() {
        assert!(is_static(&elf(&[1, 1, 7])).expect("sound"));
        assert!(!is_static(&elf(&[6, 3, 1])).expect("sound"));
    }

    #[test]
    fn damaged_files_are_refused() {
        assert!(is_static(b"#!/bin/sh").is_err());
        assert!(is_static(&elf(&[1])[..40]).is_err());
        assert!(is_static(&elf(&[1])[..64]).is_err());
        let mut far = elf(&[1]);
        far[32..40].copy_from_slice(&[0xff; 8]);
        assert!(is_static(&far).is_err());
    }

    #[test]
    fn this_very_test_is_dynamic() {
        let own = std::env::current_exe().and_then(fs::read).expect("our own binary is readable");
        assert!(!is_static(&own).expect("it is ELF"));
    }
}
