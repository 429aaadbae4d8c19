//! Everything that needs a reaper, in one process: a reaper collects the children of all tests,
//! so no test here may start a process in any other way.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "all/activity.rs"]
mod activity;
#[path = "all/dial.rs"]
mod dial;
#[path = "all/exec.rs"]
mod exec;
#[path = "all/hold.rs"]
mod hold;
#[path = "all/link.rs"]
mod link;
#[path = "all/operations.rs"]
mod operations;
#[path = "all/reaper.rs"]
mod reaper;
#[path = "all/session.rs"]
mod session;
#[path = "all/support.rs"]
mod support;

#[test]
fn every_file_is_a_module() {
    let source = include_str!("all.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/all")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(source.contains(&format!("\"all/{name}\"")), "{name} is not listed");
    }
}
