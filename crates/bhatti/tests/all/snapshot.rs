//! `bhatti snapshot`, from flags to request to output.

use super::world::World;

const BEFORE: &str = r#"{"id":"fedcba9876543210","user_id":"usr_1a2b3c4d","name":"before",
    "source_sandbox":"0123456789abcdef","size_mb":37,"created_at":"2026-04-01T10:00:00Z"}"#;
const CLONE: &str = r#"{"id":"00112233445566ff","name":"clone","status":"running","ip":"10.0.1.3",
    "created_at":"2026-04-01T10:00:00Z"}"#;

#[test]
fn every_verb_sends_and_shows() {
    let world = World::with(&[
        ("201 Created", "", BEFORE),
        ("200 OK", "", &format!("[{BEFORE}]")),
        ("200 OK", "", "[]"),
        ("201 Created", "", CLONE),
        ("201 Created", "", CLONE),
        ("200 OK", "", "{\"status\":\"deleted\"}"),
        ("200 OK", "", "{\"status\":\"deleted\"}"),
    ]);
    let create = world.run(&["snapshot", "create", "dev", "--name", "before"]);
    create.check(0, "checkpoint \"before\" created (37MB)\n", "");
    let listed = world.run(&["snapshot", "list"]).stdout;
    assert!(listed.ends_with("before               0123456789abcdef     37MB\n"), "{listed}");
    world.run(&["snapshot", "list", "--json"]).check(0, "[]\n", "");
    let resumed = "00112233445566ff\tclone\t10.0.1.3\n";
    world.run(&["snapshot", "resume", "before"]).check(0, resumed, "");
    world.run(&["snapshot", "resume", "before", "--name", "clone", "--json"]).check(
        0,
        "{\n  \"id\": \"00112233445566ff\",\n  \"name\": \"clone\",\n  \"ip\": \"10.0.1.3\"\n}\n",
        "",
    );
    world.run(&["snapshot", "delete", "-y", "before"]).check(0, "deleted\n", "");
    let json = world.run(&["snapshot", "delete", "-y", "--json", "before"]);
    json.check(0, "{\n  \"status\": \"deleted\"\n}\n", "");
    assert_eq!(
        world.requests(),
        [
            "POST /sandboxes/dev/checkpoint {\"name\":\"before\"}",
            "GET /snapshots",
            "GET /snapshots",
            "POST /snapshots/before/resume {}",
            "POST /snapshots/before/resume {\"name\":\"clone\"}",
            "DELETE /snapshots/before",
            "DELETE /snapshots/before",
        ]
    );
    assert_eq!(world.cached(), "clone", "what was resumed completes");
}

#[test]
fn hints_are_about_snapshots() {
    let world = World::with(&[
        ("404 Not Found", "", r#"{"error":"snapshot \"x\" not found"}"#),
        ("409 Conflict", "", r#"{"error":"snapshot \"x\" already exists — delete first"}"#),
        ("404 Not Found", "", r#"{"error":"sandbox \"dev\" not found"}"#),
    ]);
    world.run(&["snapshot", "resume", "x"]).check(
        1,
        "",
        "Error: 404 Not Found: snapshot \"x\" not found\n\n  Check snapshot name:\n    bhatti snapshot list\n",
    );
    let taken = world.run(&["snapshot", "create", "dev", "--name", "x"]);
    assert!(taken.stderr.ends_with("    bhatti snapshot delete x\n"), "{taken:?}");
    let nobody = world.run(&["snapshot", "create", "dev", "--name", "x"]);
    assert!(nobody.stderr.ends_with("    bhatti ls\n"), "{nobody:?}");
}

#[test]
fn deleting_asks_first() {
    let world = World::with(&[]);
    let question = "Use --yes to confirm in non-interactive mode\n";
    world.run(&["snapshot", "delete", "x"]).check(1, "", question);
    assert!(world.requests().is_empty());
}
