//! Nothing we commit names a package mirror or a registry: whoever builds uses their own.
//!
//! The names are put together from halves, or this file would be its own first find.

use super::Source;

const NAMES: &[&str] = &[
    concat!("deb.", "debian.org"),
    concat!("ftp.", "debian.org"),
    concat!("security.", "debian.org"),
    concat!("snapshot.", "debian.org"),
    concat!("archive.", "ubuntu.com"),
    concat!("security.", "ubuntu.com"),
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("crates.io", "-index"),
    concat!("sparse", "+http"),
    concat!("registry.", "npmjs.org"),
    concat!("registry.", "yarnpkg.com"),
    concat!("pypi.", "org/simple"),
    concat!("files.", "pythonhosted.org"),
    concat!("proxy.", "golang.org"),
];

/// The only source Cargo writes into its lock file on a machine without a mirror.
const STANDARD_SOURCE: &str =
    concat!("source = \"registry+https://github.com/rust-lang/crates.io", "-index\"");

/// Complaints about every line that names one.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let lock_file = source.path.file_name().is_some_and(|name| name == "Cargo.lock");
        for (number, line) in source.text.lines().enumerate() {
            if lock_file {
                if line.starts_with("source = ") && line != STANDARD_SOURCE {
                    complaints.push(source.at(number, "a package comes from somewhere else"));
                }
            } else if let Some(name) = NAMES.iter().find(|name| line.contains(**name)) {
                complaints.push(source.at(number, format_args!("names the address {name}")));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn addresses_are_found_in_any_file() {
        for name in NAMES {
            let text = format!("first\nRUN fetch https://{name}/x\n");
            let found = check(&[source("docs/build.md", &text)]);
            assert!(found.len() == 1 && found[0].contains(":2:"), "{name}: {found:?}");
        }
        assert!(check(&[source("README.md", "see https://example.com/\n")]).is_empty());
    }

    #[test]
    fn the_lock_file_may_name_the_standard_source_only() {
        let sound = format!("[[package]]\nname = \"a\"\n{STANDARD_SOURCE}\n");
        assert!(check(&[source("Cargo.lock", &sound)]).is_empty());
        for other in ["registry+https://mirror.example/index", "git+https://example.com/a#b"] {
            let text = format!("[[package]]\nsource = \"{other}\"\n");
            assert_eq!(check(&[source("fuzz/Cargo.lock", &text)]).len(), 1, "{other}");
        }
    }
}
