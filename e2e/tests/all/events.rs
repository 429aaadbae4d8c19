//! Events: the life of a real sandbox, as an operator reads it afterwards.

use bhatti_testkit::{TestDaemon, User, on_fresh_host, wait_for};
use serde_json::Value;

/// The events that are asked for, the oldest first, once there are as many as `kinds`.
fn events(daemon: &TestDaemon, args: &[&str], kinds: &[&str]) -> Vec<Value> {
    let mut found = wait_for(&format!("{} events of {args:?}", kinds.len()), || {
        let all = daemon.json(&[&["admin", "events", "--limit", "1000"], args].concat());
        all.as_array().filter(|all| all.len() >= kinds.len()).cloned()
    });
    found.reverse();
    let seen: Vec<_> = found.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(seen, kinds);
    found
}

#[test]
fn a_sandboxs_life_can_be_read_afterwards() {
    on_fresh_host(|| {
        let mut daemon =
            TestDaemon::start_with("thermal:\n  warm_after: 3s\n  cold_after: never\n");
        daemon.cli(&["create", "--name", "dev", "--memory", "256", "--env", "S=hidden"]).ok();
        let id = daemon.json(&["inspect", "dev"])["id"].as_str().expect("an id").to_owned();
        daemon.wait_for_state("dev", "warm");
        assert_eq!(daemon.sh("dev", "echo up"), "up\n");
        daemon.cli(&["edit", "dev", "--keep-hot"]).ok();
        daemon.cli(&["stop", "dev"]).ok();
        daemon.cli(&["stop", "dev"]).ok();
        daemon.sh("dev", "true");
        daemon.cli(&["stop", "dev"]).ok();
        daemon.cli(&["start", "dev"]).ok();
        daemon.cli(&["publish", "dev", "--port", "80", "--alias", "web"]).ok();
        daemon.cli(&["unpublish", "dev", "--port", "80"]).ok();
        daemon.cli(&["edit", "dev", "--name", "new"]).ok();
        daemon.cli(&["snapshot", "create", "new", "--name", "base"]).ok();
        daemon.cli(&["snapshot", "delete", "base", "-y"]).ok();
        daemon.cli(&["destroy", "new", "-y"]).ok();
        let life = events(
            &daemon,
            &["--sandbox", "dev"],
            &[
                "sandbox.created",
                "thermal.pause",
                "thermal.wake",
                "sandbox.updated",
                "sandbox.stopped",
                "thermal.wake",
                "sandbox.stopped",
                "sandbox.started",
                "publish.created",
                "publish.deleted",
                "sandbox.updated",
                "snapshot.created",
                "sandbox.destroyed",
            ],
        );
        assert!(life.iter().all(|event| event["sandbox_id"] == id.as_str()), "{life:?}");
        let meta = |at: usize, key: &str| life[at]["meta"][key].clone();
        assert_eq!([meta(0, "name"), meta(0, "image")], ["dev", "minimal"]);
        assert_eq!(meta(0, "memory_mb"), 256);
        assert_eq!([meta(2, "from_state"), meta(5, "from_state")], ["warm", "cold"]);
        assert_eq!([meta(4, "reason"), meta(7, "reason")], ["api", "api"]);
        assert_eq!([meta(10, "old_name"), meta(10, "new_name")], ["dev", "new"]);
        let by_id = daemon.json(&["admin", "events", "--sandbox", &id]);
        assert_eq!(by_id.as_array().map(Vec::len), Some(life.len()));

        // What an operator asks, and how it looks.
        let count = |args: &[&str]| {
            daemon.cli(&[&["admin", "events", "--count"], args].concat()).ok().trim().to_owned()
        };
        assert_eq!(count(&["--type", "thermal", "--limit", "1"]), "3");
        assert_eq!(count(&["--type", "thermal.wake", "--user", "admin"]), "2");
        assert_eq!(count(&["--sandbox", "nothing"]), "0");
        let text = daemon.cli(&["admin", "events", "--type", "sandbox.created"]).ok();
        assert!(text.contains(" dev              cpus=1 mem=256 image=minimal"), "{text}");
        let none = daemon.cli(&["admin", "events", "--since", "2999-01-01"]).ok();
        assert_eq!(none, "No events found.\n");
        assert_eq!(daemon.json(&["admin", "events", "--type", "x"]), Value::Null);
        let wrong = daemon.cli(&["admin", "events", "--since", "tomorrow"]).fails(1);
        assert!(wrong.contains("\"tomorrow\" is no time: say how long ago"), "{wrong}");

        // A stranger at the door, many times: a few rows that account for all.
        let stranger = User { name: "x".to_owned(), key: "bht_wrong".to_owned() };
        for _ in 0..50 {
            daemon.cli_as(&stranger, &["list"]).fails(1);
        }
        assert_eq!(daemon.terminate(), 0);
        let failed = daemon.json(&["admin", "events", "--type", "auth.failed"]);
        let failed = failed.as_array().expect("some").clone();
        let untold = failed.iter().filter_map(|event| event["meta"]["not_recorded"].as_u64());
        assert_eq!(failed.len() as u64 + untold.sum::<u64>(), 50);
        assert!(failed.len() < 30, "{}", failed.len());
        assert_eq!(failed[0]["meta"]["ip"], "127.0.0.1");
        events(&daemon, &["--type", "daemon"], &["daemon.started", "daemon.shutdown"]);

        // Nothing secret has got there.
        let all = daemon.cli(&["--json", "admin", "events", "--limit", "10000"]).ok();
        for secret in [daemon.admin().key.as_str(), "bht_wrong", "hidden"] {
            assert!(!all.contains(secret), "{secret}");
        }
        daemon.run();
        daemon.assert_nothing_left();
    });
}
