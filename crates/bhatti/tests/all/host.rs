//! Commands that work on the database of this host.

use std::io::Read;

use super::world::World;

#[test]
fn users_live_from_create_to_delete() {
    let world = World::new();
    let dir = world.path("data");
    let dir = dir.to_str().unwrap();
    let run = |args: &[&str]| world.run(&[&["--data-dir", dir], args].concat());
    let header = "ID           NAME                 SANDBOXES CPUS   MEM    SUBNET  \n";
    run(&["user", "list"]).check(0, header, "");
    assert_eq!(run(&["user", "list", "--json"]).stdout, "null\n");

    let created = run(&["user", "create", "--name", "alice", "--max-sandboxes", "7"]);
    assert_eq!((created.code, created.stderr.as_str()), (Some(0), ""));
    let key_line = created.stdout.lines().find(|line| line.contains("API key:")).unwrap();
    let key = key_line.split_whitespace().next_back().unwrap();
    assert!(key.starts_with("bht_") && key.len() == 68, "{key}");
    assert!(created.stdout.contains("  export BHATTI_URL=http://localhost:8080\n"), "{created:?}");

    let listed = run(&["user", "list"]).stdout;
    assert!(listed.lines().nth(1).unwrap().contains(" alice                0/7      4      4096 "));
    run(&["user", "create", "--name", "alice"]).check(
        1,
        "",
        "Error: user \"alice\" already exists\n",
    );

    let rotated = run(&["user", "rotate-key", "alice"]).stdout;
    assert!(rotated.starts_with("API key rotated for \"alice\"\n  New key: bht_"), "{rotated}");
    assert!(!rotated.contains(key));
    run(&["user", "rotate-key", "bob"]).check(1, "", "Error: user \"bob\" not found\n");

    run(&["user", "delete", "alice"]).check(
        1,
        "",
        "Use --yes to confirm in non-interactive mode\n",
    );
    run(&["user", "delete", "alice", "-y"]).check(0, "deleted user \"alice\"\n", "");
    run(&["user", "delete", "alice", "--yes"]).check(1, "", "Error: user \"alice\" not found\n");
}

#[test]
fn a_directory_that_cannot_be_is_named() {
    let world = World::new();
    let ran = world.run(&["--data-dir", "/proc/nope", "user", "list"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.starts_with("Error: open store /proc/nope/state.db: "), "{ran:?}");
}

/// There is nothing to boot from in an empty data directory, and nobody makes one to look.
#[test]
fn a_host_is_looked_at_and_nothing_is_started() {
    let world = World::new();
    let dir = world.path("data");
    let check = |args: &[&str]| {
        world.run(&[&["--data-dir", dir.to_str().unwrap(), "serve", "--check"], args].concat())
    };
    let asked = check(&["--json"]);
    assert_eq!((asked.code, asked.stderr.as_str()), (Some(1), ""));
    let report: serde_json::Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!(report["fit"], false);
    let items = report["items"].as_array().unwrap();
    let guest = items.iter().find(|item| item["id"] == "guest").unwrap();
    assert_eq!((&guest["verdict"], &guest["group"]), (&"failed".into(), &"needed".into()));
    assert!(guest["advice"].as_str().unwrap().contains("make up"), "{guest}");

    let shown = check(&[]);
    assert_eq!((shown.code, shown.stderr.as_str()), (Some(1), ""));
    assert!(shown.stdout.starts_with("What it takes to run\n"), "{}", shown.stdout);
    assert!(shown.stdout.contains("  FAILED   guest          guest kernel "), "{}", shown.stdout);
    assert!(shown.stdout.ends_with("no sandbox can run here before what failed is mended\n"));
    assert!(!dir.exists());
}

/// With nothing to boot from, or without root, it ends before it touches anything.
#[test]
fn a_server_that_cannot_start_says_it_once_to_people_and_in_its_log_too() {
    let world = World::new();
    let dir = world.path("data");
    let args = ["--data-dir", dir.to_str().unwrap(), "serve"];
    let ran = world.run(&args);
    assert_eq!((ran.code, ran.stderr.lines().count()), (Some(1), 1), "{ran:?}");
    let logged: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&logged["level"], ran.stdout.lines().count()), (&"ERROR".into(), 1));

    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = world.command(&args);
    command.stdout(terminal.slave.try_clone().unwrap()).stderr(terminal.slave);
    let mut child = command.spawn().unwrap();
    // It holds the terminal open.
    drop(command);
    let (mut shown, mut master) = (Vec::new(), std::fs::File::from(terminal.master));
    // Nobody at the other end of a terminal is an error, and the end.
    master.read_to_end(&mut shown).unwrap_or_default();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(String::from_utf8(shown).unwrap().replace('\r', ""), ran.stderr);
}
