//! What `serve --check` prints: a table, and what to do about each thing that is not well.

use std::fmt::Write as _;

use bhatti_daemon::check::{Group, Item, Report, Verdict};

/// Text is broken to stay within so many columns.
const WIDTH: usize = 98;
/// Where what was found begins, and what is said about it.
const FOUND: usize = 26;

/// The whole report.
pub(crate) fn host_check(report: &Report) -> String {
    let mut out = String::new();
    let mut group = None;
    for item in &report.items {
        if group.replace(item.group) != Some(item.group) {
            put(&mut out, format_args!("{}\n", heading(item.group)));
        }
        describe(&mut out, item);
    }
    let [ok, warnings, failed] =
        [Verdict::Ok, Verdict::Warning, Verdict::Failed].map(|verdict| report.count(verdict));
    let end = match report.fit {
        true => "sandboxes can run here",
        false => "no sandbox can run here before what failed is mended",
    };
    put(&mut out, format_args!("\n{ok} ok, {warnings} warnings, {failed} failed: {end}\n"));
    out
}

fn heading(group: Group) -> &'static str {
    match group {
        Group::Needed => "What it takes to run",
        Group::Isolation => "\nWhat keeps tenants apart",
        Group::Speed => "\nWhat makes it quick",
    }
}

fn describe(out: &mut String, item: &Item) {
    let Item { id, verdict, found, about, advice, .. } = item;
    let verdict = match verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
    };
    let mut lines = wrapped(found);
    let first = lines.next().unwrap_or_default();
    put(out, format_args!("  {verdict:<7}  {id:<14} {first}\n"));
    let rest: Vec<String> = match advice.is_empty() {
        true => lines.collect(),
        false => lines.chain(wrapped(about)).chain(wrapped(&format!("→ {advice}"))).collect(),
    };
    for line in rest {
        put(out, format_args!("{:FOUND$}{line}\n", ""));
    }
}

/// Breaks a text between words. A word that is longer than a line has one to itself.
fn wrapped(text: &str) -> impl Iterator<Item = String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH - FOUND => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter()
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes all text");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(group: Group, verdict: Verdict, found: &str, advice: &str) -> Item {
        let (id, found, advice) = ("some-thing", found.to_owned(), advice.to_owned());
        Item { id, group, verdict, found, about: "What it is for.", advice }
    }

    #[test]
    fn what_is_not_well_says_what_to_do() {
        let items = vec![
            item(Group::Needed, Verdict::Ok, "there", ""),
            item(Group::Needed, Verdict::Failed, "gone", "Install it."),
            item(Group::Speed, Verdict::Warning, &"long ".repeat(20), "Run this."),
        ];
        let text = host_check(&Report { fit: false, items });
        let at = " ".repeat(FOUND);
        let expected = [
            "What it takes to run".to_owned(),
            "  ok       some-thing     there".to_owned(),
            "  FAILED   some-thing     gone".to_owned(),
            format!("{at}What it is for."),
            format!("{at}→ Install it."),
            String::new(),
            "What makes it quick".to_owned(),
            format!("  warning  some-thing     {}", ["long"; 14].join(" ")),
            format!("{at}{}", ["long"; 6].join(" ")),
            format!("{at}What it is for."),
            format!("{at}→ Run this."),
            String::new(),
            "1 ok, 1 warnings, 1 failed: no sandbox can run here before what failed is mended"
                .to_owned(),
            String::new(),
        ];
        assert_eq!(text, expected.join("\n"));
    }
}
