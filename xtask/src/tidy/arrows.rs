//! Which crate may see which: the layers of ARCHITECTURE.md, kept by a table.
//!
//! The compiler stops cycles, not shortcuts. Here a crate that is not in the table is a complaint,
//! and so is a dependency the table does not list.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::workspace;

struct Rule {
    name: &'static str,
    /// Ours it may use.
    ours: &'static [&'static str],
    /// Of others it must not use directly.
    never: &'static [&'static str],
}

const SQL: &str = "rusqlite";

const RULES: &[Rule] = &[
    Rule { name: "bhatti-types", ours: &[], never: &["tokio", SQL] },
    Rule { name: "bhatti-wire", ours: &["bhatti-types"], never: &["tokio"] },
    Rule { name: "bhatti-tree", ours: &[], never: &["axum", SQL] },
    Rule { name: "bhatti-link", ours: &["bhatti-wire"], never: &[SQL, "axum"] },
    Rule { name: "bhatti-api", ours: &["bhatti-types"], never: &["axum", SQL] },
    Rule { name: "bhatti-config", ours: &["bhatti-types"], never: &["tokio", SQL, "clap"] },
    Rule { name: "bhatti-client", ours: &["bhatti-api", "bhatti-types"], never: &[SQL, "axum"] },
    Rule {
        name: "lohar",
        ours: &["bhatti-link", "bhatti-tree", "bhatti-types", "bhatti-wire"],
        never: &[SQL, "axum", "clap"],
    },
    Rule {
        name: "bhatti-guest-client",
        ours: &["bhatti-link", "bhatti-types", "bhatti-wire"],
        never: &[SQL, "axum"],
    },
    Rule { name: "bhatti-engine", ours: &["bhatti-types"], never: &[SQL, "axum"] },
    Rule { name: "bhatti-engine-sim", ours: ENGINE_MAY_USE, never: &[SQL, "axum"] },
    Rule { name: "bhatti-vmm", ours: ENGINE_MAY_USE, never: &[SQL, "axum", "hyper"] },
    Rule { name: "bhatti-engine-qemu", ours: VMM_ENGINE_MAY_USE, never: &[SQL, "axum"] },
    Rule { name: "bhatti-engine-firecracker", ours: VMM_ENGINE_MAY_USE, never: &[SQL, "axum"] },
    Rule { name: "bhatti-net", ours: &["bhatti-types"], never: &[SQL, "axum"] },
    Rule { name: "bhatti-storage", ours: &["bhatti-types"], never: &[SQL, "axum"] },
    Rule { name: "bhatti-store", ours: &["bhatti-types"], never: &["axum", "hyper", "http"] },
    Rule {
        name: "bhatti-lifecycle",
        ours: &[
            "bhatti-engine",
            "bhatti-guest-client",
            "bhatti-net",
            "bhatti-storage",
            "bhatti-store",
            "bhatti-types",
        ],
        never: &["axum", "clap", "hyper", "http", SQL],
    },
    Rule {
        name: "bhatti-daemon",
        ours: &[
            "bhatti-api",
            "bhatti-config",
            "bhatti-engine",
            "bhatti-engine-firecracker",
            "bhatti-engine-qemu",
            "bhatti-guest-client",
            "bhatti-lifecycle",
            "bhatti-net",
            "bhatti-storage",
            "bhatti-store",
            "bhatti-types",
            "bhatti-vmm",
        ],
        never: &["clap"],
    },
    Rule {
        name: "bhatti",
        ours: &[
            "bhatti-api",
            "bhatti-client",
            "bhatti-config",
            "bhatti-daemon",
            "bhatti-store",
            "bhatti-tree",
            "bhatti-types",
        ],
        never: &["axum", SQL],
    },
    Rule { name: "bhatti-testkit", ours: TESTS_MAY_USE, never: &[] },
    Rule { name: "bhatti-e2e", ours: TESTS_MAY_USE, never: &[] },
    Rule {
        name: "bhatti-bench",
        // It drives a machine by hand, so it uses what the daemon would.
        ours: &[
            "bhatti-api",
            "bhatti-client",
            "bhatti-guest-client",
            "bhatti-link",
            "bhatti-net",
            "bhatti-testkit",
            "bhatti-types",
            "bhatti-wire",
        ],
        never: &["bhatti-engine-qemu"],
    },
    // From outside only: the command, and what the host shows.
    Rule {
        name: "bhatti-soak",
        ours: &["bhatti-testkit"],
        never: &["bhatti-engine-qemu", "tokio"],
    },
    Rule { name: "xtask", ours: &[], never: &["tokio"] },
];

const ENGINE_MAY_USE: &[&str] = &["bhatti-engine", "bhatti-types"];
const VMM_ENGINE_MAY_USE: &[&str] = &["bhatti-engine", "bhatti-types", "bhatti-vmm"];
const TESTS_MAY_USE: &[&str] = &[
    "bhatti-api",
    "bhatti-client",
    "bhatti-daemon",
    "bhatti-engine-sim",
    "bhatti-testkit",
    "bhatti-types",
];
/// What any crate may use in its tests, beyond its own arrows: the simulator, the test kit, and
/// both ends of the link, to play the one that is missing.
const IN_TESTS: &[&str] = &["bhatti-engine-sim", "bhatti-link", "bhatti-testkit", "bhatti-wire"];

/// One of our crates and what it asks for.
pub(super) struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    /// It is wanted by tests only.
    dev: bool,
}

/// Our crates as cargo sees them.
pub(super) fn packages() -> Result<Vec<Package>> {
    parse(&workspace::metadata()?)
}

fn parse(metadata: &Value) -> Result<Vec<Package>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages
        .iter()
        .map(|package| {
            let name = text(&package["name"]).context("a package has no name")?;
            let dependencies = package["dependencies"].as_array().map(Vec::as_slice);
            let dependencies = dependencies
                .unwrap_or_default()
                .iter()
                .filter_map(|dependency| {
                    let dev = dependency["kind"].as_str() == Some("dev");
                    Some(Dependency { name: text(&dependency["name"])?, dev })
                })
                .collect();
            Ok(Package { name, dependencies })
        })
        .collect()
}

/// Complaints about arrows that are not in the table.
pub(super) fn check(packages: &[Package]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages {
        let name = &package.name;
        let Some(rule) = RULES.iter().find(|rule| rule.name == *name) else {
            complaints.push(format!("{name} is not in the table of xtask/src/tidy/arrows.rs"));
            continue;
        };
        for dependency in &package.dependencies {
            let wanted = dependency.name.as_str();
            let is_ours = packages.iter().any(|p| p.name == wanted);
            let allowed =
                rule.ours.contains(&wanted) || dependency.dev && IN_TESTS.contains(&wanted);
            if is_ours && !allowed {
                complaints.push(format!("{name} must not use {wanted}: no such arrow"));
            }
            if rule.never.contains(&wanted) && !dependency.dev {
                complaints.push(format!("{name} must never see {wanted}"));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn complaints(packages: &Value) -> Vec<String> {
        let mut all = packages.clone();
        for name in ["bhatti-types", "bhatti-store", "bhatti-engine-sim", "bhatti-wire"] {
            let known = all.as_array().expect("a list").iter().any(|p| p["name"] == name);
            if !known {
                let list = all.as_array_mut().expect("a list");
                list.push(json!({ "name": name, "dependencies": [] }));
            }
        }
        check(&parse(&json!({ "packages": all })).expect("well formed"))
    }

    #[test]
    fn arrows_in_the_table_are_fine() {
        let packages = json!([
            { "name": "bhatti-wire", "dependencies": [
                { "name": "bhatti-types", "kind": null }, { "name": "prost", "kind": null },
                { "name": "tokio", "kind": "dev" } ] },
            { "name": "bhatti-lifecycle", "dependencies": [
                { "name": "bhatti-store", "kind": null },
                { "name": "bhatti-engine-sim", "kind": "dev" } ] },
        ]);
        assert_eq!(complaints(&packages), Vec::<String>::new());
    }

    #[test]
    fn other_arrows_are_named() {
        let cases = [
            ("bhatti-engine", "bhatti-store", "no such arrow"),
            ("bhatti-lifecycle", "bhatti-engine-sim", "no such arrow"),
            ("lohar", "bhatti-store", "no such arrow"),
            ("bhatti-wire", "tokio", "must never see"),
            ("bhatti-daemon", "clap", "must never see"),
            ("bhatti-new", "serde", "not in the table"),
        ];
        for (from, to, expected) in cases {
            let packages = json!([
                { "name": from, "dependencies": [{ "name": to, "kind": null }] },
            ]);
            let found = complaints(&packages);
            assert!(found.len() == 1 && found[0].contains(expected), "{from} -> {to}: {found:?}");
        }
    }

    #[test]
    fn the_table_points_downwards_only() {
        // A crate may only list crates that stand above it, so the table itself has no cycle.
        for (at, rule) in RULES.iter().enumerate() {
            let above: Vec<&str> = RULES[..at].iter().map(|r| r.name).collect();
            for used in rule.ours {
                assert!(above.contains(used) || *used == rule.name, "{} -> {used}", rule.name);
            }
        }
    }
}
