//! Sandboxes made from a snapshot of a freshly booted machine, and how they differ.

use std::process::Stdio;

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

use crate::workload;

fn create(daemon: &TestDaemon, name: &str) {
    daemon.cli(&["create", "--name", name, "--memory", "256"]).ok();
}

/// The first use of an image and size boots; everything after that is a copy.
#[test]
fn a_second_create_boots_no_vm() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        create(&daemon, "first");
        let booted = daemon.boots();
        assert_eq!(booted, 1, "the first of its kind boots");
        create(&daemon, "second");
        assert_eq!(daemon.boots(), booted, "the second is a copy");
        daemon.sh("second", "echo mine > ~/mine");

        a_copy_has_what_was_asked_for(&daemon);
        copies_at_once_differ(&daemon);
        assert_eq!(daemon.boots(), booted, "all of them are copies");

        assert_eq!(daemon.terminate(), 0);
        daemon.run();
        create(&daemon, "later");
        assert_eq!(daemon.boots(), 0, "the snapshot outlives the daemon");
        assert_eq!(daemon.sh("later", "ls ~"), "", "nothing of anybody else is in a copy");
        for name in ["first", "second", "later", "rich", "c1", "c2", "c3", "c4"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.assert_nothing_left();
    });
}

fn a_copy_has_what_was_asked_for(daemon: &TestDaemon) {
    let local = daemon.scratch_path().join("config.json");
    std::fs::write(&local, "{}\n").expect("a file");
    let file = format!("{local}:/etc/worker/config.json");
    let init = "cat /etc/worker/config.json > /workspace/seen; echo $A >> /workspace/seen";
    let more = ["--env", "A=b c", "--file", &file, "--init", init, "--disk-size", "3072"];
    let args = ["create", "--name", "rich", "--memory", "256"];
    daemon.cli(&[&args[..], &more].concat()).ok();
    wait_for("init ran, after the files were there", || {
        let seen = daemon.cli(&["exec", "rich", "--", "cat", "/workspace/seen"]);
        (seen.stdout == "{}\nb c\n").then_some(())
    });
    assert_eq!(
        daemon.sh("rich", "echo $A; stat -c '%a %U' /etc/worker/config.json"),
        "b c\n644 lohar\n"
    );
    let size = daemon.sh("rich", "df -BM --output=size / | tail -1");
    let size: u32 = size.trim().trim_end_matches('M').parse().expect("a size");
    assert!((2800..=3072).contains(&size), "the file system grew to its disk: {size}");
}

fn copies_at_once_differ(daemon: &TestDaemon) {
    let names = ["c1", "c2", "c3", "c4"];
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            let args = ["create", "--name", name, "--memory", "256"];
            let mut command = daemon.prepare(Some(daemon.admin()), &args);
            command.stdout(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    }
    workload::all_differ(daemon, &["first", "second", "c1", "c2", "c3", "c4"]);
    for name in names {
        workload::clock_is_right(daemon, name);
    }
    let siblings =
        daemon.cli(&["exec", "c1", "--", "sudo", "ping", "-c1", "-W3", &ip(daemon, "c2")]);
    assert_eq!(siblings.code, 0, "the network of a copy works: {siblings:?}");
}

fn ip(daemon: &TestDaemon, name: &str) -> String {
    daemon.json(&["inspect", name])["ip"].as_str().expect("an address").to_owned()
}
