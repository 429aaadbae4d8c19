//! The QEMU that emulates the box: the host's, or a newer one of Debian's unpacked beside it.
//!
//! QEMU before 8.1 may translate a piece of a kernel while another CPU patches it, and execute the
//! old bytes from then on: the box hangs, or a stack of its kernel is damaged. Where the host has
//! such a QEMU, the one Debian backports to the host's release is unpacked into `target/kvm-box`.
//! The host's packages and its apt are left as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::guest::apt::{self, Apt};
use crate::guest::{image, stamp};
use crate::process;

const PROGRAM: &str = "qemu-system-x86_64";
/// The first release that holds off who writes what is just being translated.
const SOUND: Version = (8, 1);
/// Raise this when it is unpacked in another way.
const RECIPE: &str = "1";
/// An unpacked one is called this and a part of its key.
const PREFIX: &str = "qemu-";
/// Where Debian keeps the dynamic linker and the libraries.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

type Version = (u32, u32);

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub(super) struct Emulator {
    /// The program, and what has to come before all other arguments.
    pub(super) words: Vec<PathBuf>,
    /// The firmware that comes with it.
    pub(super) firmware: PathBuf,
}

/// The host's if it is new enough, else Debian's backport. Where that cannot be had there is no box:
/// what one that breaks down now and then says of the product is worth nothing.
pub(super) fn find(dir: &Path) -> Result<Emulator> {
    let host = version(&mut Command::new(PROGRAM))?;
    if host >= SOUND {
        return Ok(host_emulator());
    }
    let root = backport(dir).with_context(|| {
        let (major, minor) = host;
        format!(
            "this host's QEMU {major}.{minor} is too old for the box, and there is no newer one"
        )
    })?;
    Ok(unpacked_emulator(&root))
}

fn host_emulator() -> Emulator {
    let firmware = "/usr/share/qemu/qboot.rom".into();
    Emulator { words: vec![PROGRAM.into()], firmware }
}

/// With the libraries it was built for: the host's may be older.
fn unpacked_emulator(root: &Path) -> Emulator {
    let usr = root.join("usr");
    let mut libraries = root.join(LIBRARIES).into_os_string();
    libraries.push(":");
    libraries.push(usr.join(LIBRARIES));
    let words = vec![
        root.join(LIBRARIES).join("ld-linux-x86-64.so.2"),
        "--library-path".into(),
        libraries.into(),
        usr.join("bin").join(PROGRAM),
        "-L".into(),
        usr.join("share/qemu"),
    ];
    Emulator { words, firmware: usr.join("share/qemu/qboot.rom") }
}

/// The directory with Debian's backported QEMU and all it is linked with.
fn backport(dir: &Path) -> Result<PathBuf> {
    let sources = Apt::host().fresh_enough(apt::sources)?;
    let lines = sources.lines.iter().map(String::as_str);
    let key = stamp::key([RECIPE, PROGRAM].into_iter().chain(lines));
    let finished = dir.join(format!("{PREFIX}{}", &key[..12]));
    if finished.is_dir() {
        return Ok(finished);
    }
    ensure!(image::is_root()?, "unpacking a newer one needs root");
    eprintln!("kvm-box: unpacking a newer QEMU than this host's (half a minute, once)");
    let scratch = stamp::scratch(dir)?;
    let root = scratch.path().join("root");
    image::unpack(&sources, "qemu-system-x86", scratch.path(), &root)?;
    let mut command = unpacked_emulator(&root).command(&[]);
    let unpacked = version(&mut command)?;
    ensure!(unpacked >= SOUND, "Debian's backport is {}.{}, no newer", unpacked.0, unpacked.1);
    for old in old_ones(dir)? {
        fs::remove_dir_all(&old).with_context(|| format!("failed to remove {}", old.display()))?;
    }
    // The name says that it is whole, so what it names is on the disk first.
    process::run_quiet(Command::new("sync").arg("--file-system").arg(&root))?;
    fs::rename(&root, &finished)
        .with_context(|| format!("failed to write {}", finished.display()))?;
    Ok(finished)
}

fn old_ones(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("failed to list {}", dir.display()))?;
    let mut old = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("failed to list {}", dir.display()))?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            old.push(entry.path());
        }
    }
    Ok(old)
}

impl Emulator {
    /// It, started by way of another command.
    pub(super) fn command(&self, wrapper: &[&str]) -> Command {
        let mut words =
            wrapper.iter().map(Path::new).chain(self.words.iter().map(PathBuf::as_path));
        let mut command = Command::new(words.next().unwrap_or(Path::new(PROGRAM)));
        command.args(words);
        command
    }
}

fn version(qemu: &mut Command) -> Result<Version> {
    let said = process::output(qemu.arg("--version"))?;
    parse(&said).with_context(|| format!("{PROGRAM} does not say its version: {said}"))
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`
fn parse(said: &str) -> Option<Version> {
    let mut numbers = said.split_once(" version ")?.1.split('.').map(|word| {
        let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
        word[..digits].parse::<u32>().ok()
    });
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart() {
        let old = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse(old), Some((7, 2)));
        let new = parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)");
        assert!(new.is_some_and(|new| new >= SOUND));
        assert!(parse("QEMU emulator version 8.1-rc1").is_some_and(|version| version >= SOUND));
        for nonsense in ["", "QEMU emulator version ten", "version 8"] {
            assert_eq!(parse(nonsense), None);
        }
    }

    #[test]
    fn an_unpacked_one_is_started_by_its_own_linker() {
        let emulator = unpacked_emulator(Path::new("/t"));
        let command = emulator.command(&["nice"]);
        assert_eq!(command.get_program(), "nice");
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert!(words[0].ends_with("/ld-linux-x86-64.so.2") && words[3].ends_with(PROGRAM));
        assert!(words.contains(&"/t/lib/x86_64-linux-gnu:/t/usr/lib/x86_64-linux-gnu".into()));
    }
}
