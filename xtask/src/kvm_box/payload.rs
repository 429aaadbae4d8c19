//! The disk with what is to be tested: the program, test binaries, and the guest's files, in
//! the places where they would find each other in `target/`. The box copies it to an empty disk of
//! its own, made here too, whose file system no tool of the host need know.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::report::Left;
use super::{Build, Options, Program, Run, SKIPPED, Suite, root};
use crate::guest::cpio::{self, Entry, Tree};
use crate::guest::kernel;
use crate::{process, workspace};

/// The disks' files, beside [`INITRAMFS`] in the run's own directory: what is tested, and where.
pub(super) const PAYLOAD: &str = "payload.ext4";
pub(super) const BOX: &str = "box.raw";
/// What the box starts from.
pub(super) const INITRAMFS: &str = "initramfs.cpio";
/// Of the payload; an image in it is a gigabyte or two, most of it holes.
const SIZE: &str = "4G";
/// Snapshots and disks of the tests go there too; the file is sparse.
const BOX_BYTES: u64 = 16 << 30;
/// What machines boot from.
const GUEST_FILES: [&str; 3] = ["vmlinux", "initramfs.cpio", "rootfs-minimal-amd64.ext4"];

/// Builds the binaries, and the two files the box is booted with.
pub(super) fn build(run: &Run, suites: &[Left], options: &Options) -> Result<()> {
    let tree = run.scratch.path().join("box");
    for dir in ["target/release/deps", "target/guest", "suites", "tmp"] {
        let dir = tree.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    }
    for name in GUEST_FILES {
        place(&run.guest.join(name), &tree.join("target/guest").join(name))?;
    }
    let builder = Builder::new(options.build)?;
    let program = builder.executable("bhatti", "bin", "bhatti")?;
    place(&program, &tree.join("target/release/bhatti"))?;
    for (number, left) in suites.iter().enumerate() {
        let suite = left.suite;
        let binary = match suite.program {
            Program::Tests => builder.executable(suite.package, "test", "all")?,
            Program::Bench(name) => builder.executable(suite.package, "bin", name)?,
        };
        let place_in_box = format!("target/release/deps/{}", suite.name);
        place(&binary, &tree.join(&place_in_box))?;
        let brought = bring(suite, &tree)?;
        let words = command(left, &brought, &format!("/box/{place_in_box}"), &options.filter);
        write(&tree.join(format!("suites/{number:02}-{}", suite.name)), &words)?;
    }
    write(&tree.join("init"), include_str!("init.sh"))?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))
        .context("failed to make the box's init executable")?;
    if options.shell {
        write(&tree.join("shell"), "")?;
    }
    process::run_quiet(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", "payload"])
            .args(["-E", "root_owner=0:0,nodiscard", "-d"])
            .arg(&tree)
            .arg(run.scratch.path().join(PAYLOAD))
            .arg(SIZE),
    )?;
    let empty = run.scratch.path().join(BOX);
    let made = fs::File::create(&empty).and_then(|file| file.set_len(BOX_BYTES));
    made.with_context(|| format!("failed to make {}", empty.display()))?;
    initramfs(run)
}

/// Takes along what a suite needs of this host; the variables that say where it is in the box. It keeps
/// its name: that of a program is also the name of its process.
fn bring(suite: &Suite, tree: &Path) -> Result<Vec<String>> {
    let mut variables = Vec::new();
    for variable in suite.brings {
        let Some(from) = std::env::var_os(variable).map(PathBuf::from) else { continue };
        let name = from.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{variable} names no file"))?;
        let to = tree.join("brought").join(variable);
        fs::create_dir_all(&to).with_context(|| format!("failed to make room for {variable}"))?;
        fs::copy(&from, to.join(name))
            .with_context(|| format!("failed to bring {}", from.display()))?;
        variables.push(format!("{variable}=/box/brought/{variable}/{name}"));
    }
    Ok(variables)
}

/// The words of a suite's command, for `env`, one a line.
fn command(left: &Left, brought: &[String], binary: &str, filter: &[String]) -> String {
    let suite = left.suite;
    let environment =
        ["BHATTI_BIN=/box/target/release/bhatti", "BHATTI_GUEST_DIR=/box/target/guest"]
            .into_iter()
            .chain(["BHATTI_TEST_ACCEL=kvm", "RUST_BACKTRACE=1"])
            .chain(suite.environment.iter().copied())
            .chain(brought.iter().map(String::as_str));
    let skipped = match suite.program {
        Program::Tests => &SKIPPED[..],
        Program::Bench(_) => &[],
    };
    let arguments = skipped.iter().chain(suite.arguments).copied();
    let passed = left.passed.iter().flat_map(|name| ["--skip", name.as_str()]);
    let words = environment.chain([binary]).chain(arguments).chain(passed);
    let exact = suite.tests.first().map(|_| "--exact");
    let words = words.chain(exact).chain(suite.tests.iter().copied());
    let words = words.chain(filter.iter().map(String::as_str));
    words.map(|word| format!("{word}\n")).collect()
}

/// Says where executables are, and builds those that are missing.
struct Builder {
    /// What cargo knows of our packages.
    metadata: serde_json::Value,
    /// What it said of all tests, where those are taken as they are.
    tests: Option<String>,
}

impl Builder {
    fn new(build: Build) -> Result<Self> {
        let tests = match build {
            Build::Release => None,
            // The very words of `make test`: a part of the workspace would be built with other features.
            Build::Tests => {
                eprintln!("kvm-box: looking for what the tests have built");
                Some(messages(&["test", "--workspace", "--no-run"])?)
            }
        };
        Ok(Self { metadata: workspace::metadata()?, tests })
    }

    /// The executable of one target of a package.
    fn executable(&self, package: &str, kind: &str, target: &str) -> Result<PathBuf> {
        let missing = || format!("cargo names no executable for {package}'s {kind} {target}");
        let packages = self.metadata["packages"].as_array();
        let id = packages.and_then(|all| all.iter().find(|one| one["name"] == package));
        let id = id.and_then(|one| one["id"].as_str()).with_context(missing)?;
        if let Some(tests) = &self.tests {
            return executable(tests, id, kind, target).with_context(missing);
        }
        eprintln!("kvm-box: building {package}");
        let verb: &[&str] = if kind == "test" { &["test", "--no-run"] } else { &["build"] };
        let which = format!("--{kind}");
        let of = ["--release", "--package", package, &which, target];
        executable(&messages(&[verb, &of].concat())?, id, kind, target).with_context(missing)
    }
}

/// Lets cargo build, and returns what it says of it.
fn messages(words: &[&str]) -> Result<String> {
    let mut command = workspace::cargo();
    command.args(words).args(["--locked", "--quiet"]);
    process::output(command.args(["--message-format", "json-render-diagnostics"]))
}

fn executable(messages: &str, package: &str, kind: &str, target: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(
        |message: serde_json::Value| {
            let of = &message["target"];
            // The unit tests of a program bear its name too.
            let wanted = message["package_id"] == package
                && of["name"] == target
                && of["kind"][0] == kind
                && message["profile"]["test"] == (kind == "test");
            let path = message["executable"].as_str().filter(|_| wanted)?;
            Some(PathBuf::from(path))
        },
    )
}

/// A small system that finds the box's disks and goes on in there.
fn initramfs(run: &Run) -> Result<()> {
    let busybox = root::read(&run.root, "/usr/bin/busybox", run.scratch.path())?;
    let mut tree: Tree = ["bin", "dev", "newroot", "proc", "sys"]
        .into_iter()
        .map(|name| (name.to_owned(), Entry::Directory))
        .collect();
    tree.insert("dev/console".into(), Entry::CharDevice { mode: 0o600, major: 5, minor: 1 });
    tree.insert("bin/busybox".into(), Entry::File { mode: 0o755, content: busybox });
    let start = include_bytes!("start.sh").to_vec();
    tree.insert("init".into(), Entry::File { mode: 0o755, content: start });

    let modules = run.guest.join(kernel::MODULES);
    let modules =
        fs::read(&modules).with_context(|| format!("failed to read {}", modules.display()))?;
    let mut archive = cpio::archive(&tree);
    archive.extend_from_slice(&modules);
    let path = run.scratch.path().join(INITRAMFS);
    fs::write(&path, archive).with_context(|| format!("failed to write {}", path.display()))
}

/// A link where one is possible: nobody writes what lies there.
fn place(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    // Unlike `fs::copy`, it leaves holes.
    process::run_quiet(Command::new("cp").arg("--sparse=always").arg(from).arg(to))
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_found_among_what_cargo_says() {
        let artefact = |package: &str, kind: &str, name: &str, test: bool, path: Option<&str>| {
            let target = serde_json::json!({ "name": name, "kind": [kind] });
            let profile = serde_json::json!({ "test": test });
            let message = serde_json::json!({
                "package_id": package, "target": target, "profile": profile, "executable": path,
            });
            format!("{message}\n")
        };
        let messages = [
            artefact("p", "lib", "all", false, None),
            "not JSON\n".to_owned(),
            artefact("q", "test", "all", true, Some("/t/all-0")),
            artefact("p", "test", "all", true, Some("/t/all-1")),
            artefact("p", "bin", "b", true, Some("/t/deps/b-1")),
            artefact("p", "bin", "b", false, Some("/t/b")),
        ]
        .concat();
        assert_eq!(executable(&messages, "p", "test", "all"), Some("/t/all-1".into()));
        assert_eq!(executable(&messages, "p", "bin", "b"), Some("/t/b".into()));
        assert_eq!(executable(&messages, "p", "bin", "all"), None);
        assert_eq!(executable(&messages, "p", "test", "other"), None);
    }

    #[test]
    fn a_suites_words_are_one_a_line_and_the_filter_comes_last() {
        let mut left = Left::new(&super::super::WHOLE[0]);
        left.passed.insert("a::test".to_owned());
        let words = command(&left, &["A=/b".to_owned()], "/box/x", &["boots and".to_owned()]);
        let words: Vec<_> = words.lines().collect();
        assert!(words.contains(&"BHATTI_TEST_ACCEL=kvm") && words.contains(&"/box/x"));
        assert!(words.contains(&"A=/b"));
        assert_eq!(words[words.len() - 3..], ["--skip", "a::test", "boots and"]);
        let words = command(&Left::new(&super::super::SMOKE[0]), &[], "/box/x", &[]);
        let tests = words.split_once("--exact\n").expect("it names its tests").1;
        assert!(tests.starts_with("conformance::boots_and_answers\n"), "{tests}");
    }
}
