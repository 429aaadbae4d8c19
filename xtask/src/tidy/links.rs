//! Links between our documents lead somewhere.
//!
//! Only links into the repository are followed; whether a page on the internet still exists is
//! not a property of this tree.

use std::path::{Component, Path, PathBuf};

use super::Source;

/// Complaints about links whose target is not in the tree.
pub(super) fn check(sources: &[Source], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.has_extension("md")) {
        for (line, target) in targets(&source.text) {
            let here = source.path.parent().unwrap_or(Path::new(""));
            match resolve(here, &target) {
                Some(path) if exists(&path) => {}
                Some(_) => complaints.push(source.at(line, format_args!("{target} is not there"))),
                None => {
                    complaints
                        .push(source.at(line, format_args!("{target} leads out of the tree")));
                }
            }
        }
    }
    complaints
}

/// The targets of links into the tree, without their anchors, with the lines they are on.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") || line.trim_start().starts_with("~~~") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        let prose = without_code(line);
        let inline = prose.match_indices("](").filter_map(|(at, mark)| {
            let rest = &prose[at + mark.len()..];
            rest.split([')', ' ']).next()
        });
        let definition = prose
            .trim_start()
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("]: "))
            .and_then(|(_, rest)| rest.split_whitespace().next());
        for target in inline.chain(definition) {
            let target = target.trim_matches(['<', '>']);
            let path = target.split('#').next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !path.is_empty() {
                found.push((number, path.to_owned()));
            }
        }
    }
    found
}

/// A line with its inline code blanked.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    let last = parts.len() - 1;
    // Behind the last of an odd number of back-ticks there is prose again.
    let prose = |(at, part): (usize, &&str)| {
        if at % 2 == 0 || at == last { (*part).to_owned() } else { String::new() }
    };
    parts.iter().enumerate().map(prose).collect::<Vec<_>>().join("`")
}

/// The path from the root, or nothing if it climbs above it.
fn resolve(here: &Path, target: &str) -> Option<PathBuf> {
    let path = match target.strip_prefix('/') {
        Some(from_root) => PathBuf::from(from_root),
        None => here.join(target),
    };
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => out.pop().then_some(())?,
            Component::CurDir => {}
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let tree = ["README.md", "docs/adr/0001.md", "docs"];
        check(&[source(path, text)], |path| tree.iter().any(|known| Path::new(known) == path))
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let text = "[a](../README.md#top) [b](adr/0001.md \"title\") ![c](/README.md)\n\
                    [d](https://example.com/x) [e](#here) [f](mailto:a@b.example) [g](./)\n\
                    `[h](gone.md)` [i]\n```\n[j](gone.md)\n```\n\n[i]: adr/0001.md\n";
        assert_eq!(complaints("docs/x.md", text), Vec::<String>::new());
    }

    #[test]
    fn links_that_do_not_are_named_with_their_line() {
        let cases = [
            ("x\n[a](gone.md)", ":2: gone.md"),
            ("[a](../../README.md)", "leads out"),
            ("`code` [a](gone.md#x)", "gone.md is not there"),
            ("[a]: gone.md", "gone.md is not there"),
            ("one ` tick [a](gone.md)", "gone.md is not there"),
        ];
        for (text, expected) in cases {
            let found = complaints("docs/x.md", text);
            assert!(found.len() == 1 && found[0].contains(expected), "{text:?}: {found:?}");
        }
        assert!(complaints("docs/x.rs", "[a](gone.md)").is_empty());
    }
}
