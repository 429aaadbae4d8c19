//! Asks the host's apt what it offers, and takes packages from it.
//!
//! We name no mirror: whatever Debian sources this host is set up with are used, with the host's
//! proxy. Sources of others (their `Origin` is not Debian) are left out of the guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::arch::Arch;
use crate::process;

/// The key every Debian archive is signed with, from the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package as apt would install it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// The Debian sources of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    /// The release they all belong to, such as `bookworm`.
    pub(crate) codename: String,
    /// One-line source entries, sorted.
    pub(crate) lines: Vec<String>,
}

impl Sources {
    /// The same and, from the same place, what Debian has backported to the release.
    pub(crate) fn with_backports(&self) -> Result<Self> {
        let release = format!(" {} ", self.codename);
        let main = self.lines.iter().find(|line| line.contains(&release));
        let main = main.with_context(|| format!("no source is of {} itself", self.codename))?;
        let backports = main.replace(&release, &format!(" {} ", self.backports()));
        let lines = self.lines.iter().cloned().chain([backports]).collect();
        Ok(Self { codename: self.codename.clone(), lines })
    }

    /// What the suite of the backports is called.
    pub(crate) fn backports(&self) -> String {
        format!("{}-backports", self.codename)
    }
}

/// An apt: the host's own, or one for another architecture with lists of its own.
pub(crate) struct Apt {
    /// What every one of its commands is told.
    options: Vec<String>,
}

impl Apt {
    /// The host's.
    pub(crate) fn host() -> Self {
        Self { options: Vec::new() }
    }

    /// The one for `arch`. If that is not the host's, it knows the same Debian sources, and keeps
    /// everything in `dir`: the host need not be told of another architecture.
    pub(crate) fn of(arch: Arch, dir: &Path) -> Result<Self> {
        if arch == Arch::HOST {
            return Ok(Self::host());
        }
        let state = dir.join("apt");
        for name in ["lists/partial", "archives/partial"] {
            let path = state.join(name);
            std::fs::create_dir_all(&path)
                .with_context(|| format!("failed to create {}", path.display()))?;
        }
        let (list, status) = (state.join("sources.list"), state.join("status"));
        let lines = Self::host().fresh_enough(sources)?.lines.join("\n") + "\n";
        for (path, content) in [(&list, lines.as_str()), (&status, "")] {
            std::fs::write(path, content)
                .with_context(|| format!("failed to write {}", path.display()))?;
        }
        let options = [
            format!("APT::Architecture={}", arch.debian()),
            format!("APT::Architectures={}", arch.debian()),
            format!("Dir::State={}", state.display()),
            format!("Dir::State::status={}", status.display()),
            format!("Dir::Cache={}", state.display()),
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=-".to_owned(),
        ];
        Ok(Self { options: options.into() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // `_apt` may not write to our directories; as root there is nothing it would protect.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }

    /// Runs a query; if apt has nothing to say yet, lets it fetch its lists once and asks again.
    pub(crate) fn fresh_enough<T>(&self, query: impl Fn() -> Result<T>) -> Result<T> {
        match query() {
            Ok(answer) => Ok(answer),
            Err(first) => {
                eprintln!("guest: {first:#}; fetching the package lists");
                process::run_quiet(self.command("apt-get").args(["update", "-q"]))?;
                query()
            }
        }
    }

    /// The package a meta package stands for: its first dependency with the given prefix.
    pub(crate) fn resolve(&self, meta: &str, prefix: &str) -> Result<Package> {
        let show = |package: &str| {
            let mut command = self.command("apt-cache");
            process::output(command.args(["show", "--no-all-versions", package]))
        };
        let shown = show(meta)?;
        let name = dependency(&shown, prefix)
            .with_context(|| format!("apt offers no {meta} with a dependency {prefix}*"))?;
        let shown = show(name)?;
        let version =
            field(&shown, "Version").with_context(|| format!("apt knows no version of {name}"))?;
        Ok(Package { name: name.to_owned(), version: version.to_owned() })
    }

    /// Downloads exactly this version and returns where it lies.
    pub(crate) fn download(&self, package: &Package, into: &Path) -> Result<PathBuf> {
        let wanted = format!("{}={}", package.name, package.version);
        let mut command = self.command("apt-get");
        process::run_quiet(command.args(["download", "-q", &wanted]).current_dir(into))?;
        let mut found = std::fs::read_dir(into)
            .with_context(|| format!("failed to list {}", into.display()))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "deb"));
        found.next().with_context(|| format!("apt-get downloaded {wanted} to nowhere"))
    }
}

/// The Debian sources among those this host has.
pub(crate) fn sources() -> Result<Sources> {
    ensure!(
        Path::new(KEYRING).is_file(),
        "{KEYRING} is missing; install the package debian-archive-keyring"
    );
    let listing = process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(CODENAME)|$(ARCHITECTURE)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    choose(&listing, Arch::HOST, &host_codename()?)
}

/// `Acquire` settings of the host that decide how packages are reached, for another apt.
pub(crate) fn transport_options() -> Result<Vec<String>> {
    let dump = process::output(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let wanted = ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::https::CAInfo"];
    Ok(dump
        .lines()
        .filter(|line| {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            wanted.iter().any(|w| w.eq_ignore_ascii_case(name)) && value != "\"\";"
        })
        .map(str::to_owned)
        .collect())
}

/// What Debian release this host is, or why that cannot be said.
fn host_codename() -> Result<String> {
    let text =
        std::fs::read_to_string("/etc/os-release").context("failed to read /etc/os-release")?;
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    if value("ID").as_deref() != Some("debian") {
        bail!(
            "the guest is built from the host's Debian sources, and this host is {}; build on a \
             Debian machine and copy target/guest here",
            value("ID").unwrap_or_else(|| "unknown".to_owned())
        );
    }
    value("VERSION_CODENAME").context("/etc/os-release names no VERSION_CODENAME")
}

/// Keeps Debian's own entries of one release, security and point updates included.
fn choose(listing: &str, host: Arch, codename: &str) -> Result<Sources> {
    let suites =
        [codename.to_owned(), format!("{codename}-updates"), format!("{codename}-security")];
    let mut lines: Vec<String> = Vec::new();
    for line in listing.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let [origin, label, suite, architecture, uri, release, component] = fields[..] else {
            continue;
        };
        let ours = origin == "Debian"
            && matches!(label, "Debian" | "Debian-Security")
            && architecture == host.debian()
            && suites.iter().any(|s| s == suite);
        if ours {
            lines.push(format!("deb [signed-by={KEYRING}] {uri} {release} {component}"));
        }
    }
    lines.sort();
    lines.dedup();
    ensure!(!lines.is_empty(), "apt has no Debian {codename} source with lists");
    Ok(Sources { codename: codename.to_owned(), lines })
}

/// The first dependency that starts with a prefix, without its version or alternatives.
fn dependency<'a>(shown: &'a str, prefix: &str) -> Option<&'a str> {
    field(shown, "Depends")?
        .split([',', '|'])
        .filter_map(|word| word.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
}

fn field<'a>(shown: &'a str, name: &str) -> Option<&'a str> {
    shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
Debian|Debian|bookworm|amd64|http://mirror.example/debian/|bookworm|main
Debian|Debian|bookworm-updates|amd64|http://mirror.example/debian/|bookworm-updates|main
Debian|Debian-Security|bookworm-security|amd64|http://mirror.example/security/|bookworm-security|main
Debian|Debian-Security|bookworm-security|amd64|http://mirror.example/security/|bookworm-security|main
Debian|Debian Backports|bookworm-backports|amd64|http://mirror.example/debian/|bookworm-backports|main
Debian|Debian|bookworm|arm64|http://mirror.example/debian/|bookworm|main
Debian|Debian|sid|amd64|http://mirror.example/debian/|unstable|main
. nodistro|. nodistro|nodistro|amd64|https://third.example/|nodistro|main
$(ORIGIN)|$(LABEL)|$(CODENAME)|amd64|http://never.example/|bookworm|main
nonsense";

    #[test]
    fn only_debian_of_this_release_gets_into_the_guest() {
        let sources = choose(LISTING, Arch::Amd64, "bookworm").expect("three are right");
        assert_eq!(sources.lines.len(), 3, "{:?}", sources.lines);
        assert!(sources.lines.iter().all(|line| line.contains("mirror.example")));
        assert!(!sources.lines.iter().any(|line| line.contains("backports")));
        let more = sources.with_backports().expect("the release itself is there");
        let last = more.lines.last().expect("four");
        assert!(last.ends_with("http://mirror.example/debian/ bookworm-backports main"), "{last}");
        assert_eq!(more.lines[..3], sources.lines);
    }

    #[test]
    fn no_debian_source_is_an_error() {
        assert!(choose(LISTING, Arch::Amd64, "trixie").is_err());
        assert!(choose("", Arch::Amd64, "bookworm").is_err());
    }

    #[test]
    fn a_meta_package_leads_to_its_kernel() {
        let shown = "Package: linux-image-cloud-amd64\nVersion: 6.1.1-1\n\
                     Depends: linux-base (>= 4), linux-image-6.1.0-9-cloud-amd64 (= 6.1.1-1) | x\n";
        let found = dependency(shown, "linux-image-");
        assert_eq!(found, Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(dependency(shown, "linux-headers-"), None);
        assert_eq!(field(shown, "Version"), Some("6.1.1-1"));
        assert_eq!(field(shown, "Homepage"), None);
    }
}
