//! What must not be left in code that is called done.
//!
//! The words are put together from halves, or this file would be its own first find.

use super::Source;

struct Ban {
    text: &'static str,
    why: &'static str,
    /// Only below this path.
    within: &'static str,
}

const BANS: &[Ban] = &[
    Ban { text: concat!("#[ign", "ore"), why: "a test runs or is deleted", within: "" },
    Ban { text: concat!("to", "do!("), why: "unfinished", within: "" },
    Ban { text: concat!("unimple", "mented!("), why: "unfinished", within: "" },
    Ban {
        text: concat!("should", "_panic"),
        why: "assert what happens instead of any panic at all",
        within: "",
    },
    Ban {
        text: concat!("tokio::", "process"),
        why: "PID 1 has one waiter; a second one steals its children",
        within: "crates/lohar",
    },
];

/// The reasons not to run a test: it needs what no distribution brings, or takes what is the whole
/// host's. The test bed runs these, and where they do not run they are counted as what they are.
const SKIPPED_ALOUD: [&str; 2] = [
    concat!("#[ign", "ore = \"needs a real Firecracker\"]"),
    concat!("#[ign", "ore = \"takes memory from the whole host: run in the test bed\"]"),
];

/// Complaints about each line that holds such a word.
pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.has_extension("rs")) {
        for (number, line) in source.text.lines().enumerate() {
            // Comments may speak of what is banned.
            let code = line.split("//").next().unwrap_or_default();
            for ban in BANS {
                if code.contains(ban.text)
                    && !SKIPPED_ALOUD.contains(&code.trim())
                    && source.path.starts_with(ban.within)
                {
                    complaints.push(source.at(number, format_args!("{}: {}", ban.text, ban.why)));
                }
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
    fn every_ban_is_found() {
        for ban in BANS {
            let text = format!("//! x\nfn f() {{\n    {}\n}}\n", ban.text);
            let path = format!("{}/src/x.rs", ban.within).trim_start_matches('/').to_owned();
            let found = check(&[source(&path, &text)]);
            assert!(found.len() == 1 && found[0].contains(":3:"), "{found:?}");
        }
    }

    #[test]
    fn comments_other_files_and_other_crates_are_free() {
        let process = concat!("tokio::", "process");
        let text = format!("//! no {process} here\n// nor {process}\n");
        assert!(check(&[source("crates/lohar/src/a.rs", &text)]).is_empty());
        assert!(check(&[source("crates/bhatti-net/src/a.rs", process)]).is_empty());
        assert!(check(&[source("docs/a.md", concat!("to", "do!("))]).is_empty());
        for aloud in SKIPPED_ALOUD {
            assert!(check(&[source("crates/a/tests/a.rs", aloud)]).is_empty());
        }
        let other = SKIPPED_ALOUD[0].replace("needs", "dislikes");
        assert_eq!(check(&[source("crates/a/tests/a.rs", &other)]).len(), 1);
    }
}
