//! Accounts: keys, scopes, quotas.

use std::process::Stdio;

use bhatti_testkit::{TestDaemon, User, on_fresh_host};

#[test]
fn another_users_vm_looks_like_a_missing_one() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let bob = daemon.create_user("bob", 5);
        daemon.cli(&["create", "--name", "dev", "--memory", "256"]).ok();
        assert_eq!(daemon.cli_as(&bob, &["list"]).ok().lines().count(), 1, "header only");
        let id: serde_json::Value =
            serde_json::from_str(&daemon.cli(&["--json", "inspect", "dev"]).ok()).expect("JSON");
        let id = id["id"].as_str().expect("an id").to_owned();
        for target in ["dev", id.as_str(), "nothing"] {
            for command in [
                vec!["exec", target, "--", "true"],
                vec!["inspect", target],
                vec!["edit", target, "--keep-hot"],
                vec!["destroy", target, "-y"],
            ] {
                let refused = daemon.cli_as(&bob, &command).fails(1);
                assert!(refused.contains(&format!("sandbox \"{target}\" not found")), "{refused}");
            }
        }
        // The same name is free for somebody else, on a network of their own.
        daemon.cli_as(&bob, &["create", "--name", "dev", "--memory", "256"]).ok();
        assert!(daemon.cli_as(&bob, &["list"]).ok().contains("10.0.2.2"));
        let has = daemon.cli(&["user", "delete", "bob", "-y"]).fails(1);
        assert!(has.contains("user has 1 active sandbox(es)"), "{has}");
        daemon.cli_as(&bob, &["destroy", "dev", "-y"]).ok();
        daemon.cli(&["user", "delete", "bob", "-y"]).ok();
        let gone = daemon.cli_as(&bob, &["list"]).fails(1);
        assert!(gone.contains("401 Unauthorized: invalid api key"), "{gone}");
        assert_eq!(daemon.cli(&["exec", "dev", "--", "echo", "mine"]).ok(), "mine\n");
        daemon.cli(&["destroy", "dev", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

#[test]
fn keys_are_shown_once_and_rotate() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let alice = daemon.create_user("alice", 5);
        daemon.cli_as(&alice, &["list"]).ok();
        let twice = daemon.cli(&["user", "create", "--name", "alice"]).fails(1);
        assert!(twice.contains("user \"alice\" already exists"), "{twice}");
        let listing = daemon.cli(&["user", "list"]).ok();
        assert!(listing.contains("alice") && !listing.contains(&alice.key), "{listing}");
        let rotated = daemon.cli(&["user", "rotate-key", "alice"]).ok();
        let key = rotated
            .lines()
            .find(|line| line.contains("New key:"))
            .and_then(|line| line.split_whitespace().last())
            .expect("shown");
        daemon.cli_as(&alice, &["list"]).fails(1);
        daemon.cli_as(&User { key: key.to_owned(), ..alice.clone() }, &["list"]).ok();
        let nobody = User { name: "x".to_owned(), key: String::new() };
        let none = daemon.cli_as(&nobody, &["list"]).fails(1);
        assert!(none.contains("401 Unauthorized: authorization required"), "{none}");
        let state = std::fs::read(daemon.data_dir().join("state.db")).expect("the database");
        let found = state.windows(key.len()).any(|window| window == key.as_bytes());
        assert!(!found, "the key itself is stored");
    });
}

/// Twenty at once against a quota of five: five machines, fifteen refusals, nothing else.
#[test]
fn twenty_creates_at_once_make_five_vms() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let carol = daemon.create_user("carol", 5);
        let children: Vec<_> = (0..20)
            .map(|i| {
                let name = format!("c{i}");
                daemon
                    .prepare(Some(&carol), &["create", "--name", &name, "--memory", "192"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("it starts")
            })
            .collect();
        let outputs: Vec<_> =
            children.into_iter().map(|child| child.wait_with_output().expect("it ends")).collect();
        let (made, refused): (Vec<_>, Vec<_>) =
            outputs.iter().partition(|output| output.status.success());
        assert_eq!((made.len(), refused.len()), (5, 15), "{outputs:?}");
        for output in refused {
            let text = String::from_utf8_lossy(&output.stderr);
            let clear = text.contains("sandbox limit reached (5/5)")
                || text.contains("rate limit exceeded");
            assert!(clear && output.status.code() == Some(1), "{text}");
        }
        assert_eq!(daemon.machines().len(), 5);
        for line in daemon.cli_as(&carol, &["list"]).ok().lines().skip(1) {
            let name = line.split_whitespace().next().expect("a name");
            daemon.cli_as(&carol, &["destroy", name, "-y"]).ok();
        }
        daemon.assert_nothing_left();
    });
}
