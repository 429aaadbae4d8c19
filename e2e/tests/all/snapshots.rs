//! Named snapshots: made of any sandbox that has memory, resumed as often as wanted.

use std::collections::BTreeSet;
use std::process::Stdio;

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};

use crate::workload;

/// Resumes a snapshot as each of `names`, all at once.
fn resume_all(daemon: &TestDaemon, snapshot: &str, names: &[&str]) {
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            let args = ["snapshot", "resume", snapshot, "--name", name];
            let mut command = daemon.prepare(Some(daemon.admin()), &args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    for (child, name) in children.into_iter().zip(names) {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = line.trim_end().split('\t').collect();
        assert!(words.len() == 3 && words[1] == *name, "id, name, address: {line:?}");
    }
}

#[test]
fn a_running_vm_is_copied_as_it_is_and_goes_on() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "s", "--memory", "256", "--env", "A=1"]).ok();
        workload::start(&daemon, "s");
        let before = workload::counted(&daemon, "s");
        let made = daemon.cli(&["snapshot", "create", "s", "--name", "base"]).ok();
        assert!(
            made.starts_with("checkpoint \"base\" created (") && made.ends_with("MB)\n"),
            "{made}"
        );
        assert_eq!(daemon.state("s").as_deref(), Some("hot"), "only a short pause");
        workload::goes_on(&daemon, "s", before);
        daemon.sh("s", "echo changed > /tmp/kept");

        let clones = ["c1", "c2", "c3", "c4"];
        resume_all(&daemon, "base", &clones);
        for name in clones {
            workload::goes_on(&daemon, name, before);
            workload::clock_is_right(&daemon, name);
            assert_eq!(daemon.sh(name, "echo $A"), "1\n", "its environment");
        }
        workload::all_differ(&daemon, &["s", "c1", "c2", "c3", "c4"]);
        let record = daemon.json(&["inspect", "c1"]);
        assert_eq!((&record["memory_mb"], &record["image"]), (&256.into(), &"minimal".into()));

        // Without its source, after a restart, and with copies that sleep.
        daemon.cli(&["destroy", "s", "-y"]).ok();
        daemon.cli(&["stop", "c2"]).ok();
        daemon.kill_9();
        daemon.run();
        resume_all(&daemon, "base", &["later"]);
        workload::goes_on(&daemon, "later", before);

        // Deleted, its copies have all they need.
        let refused = daemon.cli(&["snapshot", "delete", "base"]).fails(1);
        assert!(refused.contains("--yes"), "{refused}");
        assert_eq!(daemon.cli(&["snapshot", "delete", "base", "-y"]).ok(), "deleted\n");
        workload::goes_on(&daemon, "c2", before);
        daemon.cli(&["stop", "c1"]).ok();
        workload::goes_on(&daemon, "c1", before);
        let gone = daemon.cli(&["snapshot", "resume", "base"]).fails(1);
        assert!(gone.contains("404 Not Found: snapshot \"base\" not found"), "{gone}");
        for name in ["c1", "c2", "c3", "c4", "later"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.assert_nothing_left();
    });
}

/// A process that never stops looking finds, in each clone, nothing of the source's after its last
/// moment there: neither name nor id, no random number of its sibling, and no old time.
#[test]
fn nothing_goes_on_in_a_clone_before_it_is_one() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "s", "--memory", "256"]).ok();
        workload::witness(&daemon, "s");
        daemon.cli(&["snapshot", "create", "s", "--name", "base"]).ok();
        let source = workload::witnessed(&daemon, "s");
        let begun = workload::now().as_secs_f64();
        resume_all(&daemon, "base", &["c1", "c2"]);

        let own = ["c1", "c2"].map(|name| {
            wait_for(&format!("{name} goes on"), || {
                let looks = workload::witnessed(&daemon, name);
                let same = looks.iter().zip(&source).take_while(|(clone, source)| clone == source);
                let common = same.count();
                assert!(common > 0 && common < source.len(), "{name} has its source's past");
                let own = looks[common..].to_vec();
                (own.len() > 20).then_some(own)
            })
        });
        for (looks, name) in own.iter().zip(["c1", "c2"]) {
            let machine_id = daemon.sh(name, "cat /etc/machine-id");
            // The first look may have begun before the snapshot.
            for look in &looks[1..] {
                assert_eq!(look.hostname, name, "{look:?}, after {:?}", looks[0]);
                assert_eq!(look.machine_id, machine_id.trim(), "{look:?} of {name}");
                assert!(look.time >= begun, "{look:?} is {} s behind", begun - look.time);
            }
        }
        let [one, two] = own
            .map(|looks| looks[1..].iter().map(|look| look.uuid.clone()).collect::<BTreeSet<_>>());
        assert_eq!(one.intersection(&two).next(), None, "the same random number");

        for name in ["s", "c1", "c2"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        daemon.cli(&["snapshot", "delete", "base", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

#[test]
fn snapshots_of_sleeping_vms_names_and_quotas() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "s", "--memory", "192"]).ok();
        workload::start(&daemon, "s");
        let before = workload::counted(&daemon, "s");
        daemon.cli(&["stop", "s"]).ok();
        let snapshot = |name: &str| daemon.cli(&["snapshot", "create", "s", "--name", name]);
        for number in 0..5 {
            snapshot(&format!("n{number}")).ok();
            assert_eq!(daemon.state("s").as_deref(), Some("stopped"), "it was not woken");
        }
        let full = snapshot("n5").fails(1);
        assert!(full.contains("429 Too Many Requests: snapshot limit reached (5/5)"), "{full}");
        let list = daemon.cli(&["snapshot", "list"]).ok();
        assert_eq!(list.lines().count(), 6, "{list}");
        assert!(list.starts_with("ID                   NAME                 SOURCE"), "{list}");
        daemon.cli(&["snapshot", "delete", "n4", "-y"]).ok();
        let taken = snapshot("n0").fails(1);
        assert!(taken.contains("409 Conflict: snapshot \"n0\" already exists"), "{taken}");
        assert!(snapshot("no/name").fails(1).contains("400 Bad Request: valid name required"));
        let missing = daemon.cli(&["snapshot", "create", "nobody", "--name", "x"]).fails(1);
        assert!(missing.contains("sandbox \"nobody\" not found"), "{missing}");

        let resume = |args: &[&str]| daemon.cli(&[&["snapshot", "resume"], args].concat());
        let taken = resume(&["n0", "--name", "s"]).fails(1);
        assert!(taken.contains("409 Conflict: name \"s\" is already in use"), "{taken}");
        assert!(resume(&["n0", "--name", "no/name"]).fails(1).contains("400 Bad Request"));
        let named = resume(&["n0"]).ok();
        let name = named.split('\t').nth(1).expect("a name").to_owned();
        assert!(name.starts_with("n0-") && name.len() == 9, "{name}");
        workload::goes_on(&daemon, &name, before);
        workload::goes_on(&daemon, "s", before);

        others_have_their_own(&daemon);
        for name in [name.as_str(), "s"] {
            daemon.cli(&["destroy", name, "-y"]).ok();
        }
        for number in 0..4 {
            daemon.cli(&["snapshot", "delete", &format!("n{number}"), "-y"]).ok();
        }
        daemon.assert_nothing_left();
    });
}

fn others_have_their_own(daemon: &TestDaemon) {
    let bob = daemon.create_user("bob", 1);
    let foreign = daemon.cli_as(&bob, &["snapshot", "resume", "n0"]).fails(1);
    assert!(foreign.contains("404 Not Found: snapshot \"n0\" not found"), "{foreign}");
    assert!(daemon.cli_as(&bob, &["snapshot", "delete", "n0", "-y"]).fails(1).contains("404"));
    assert_eq!(daemon.cli_as(&bob, &["snapshot", "list"]).ok().lines().count(), 1, "header only");
    daemon.cli_as(&bob, &["create", "--name", "one", "--memory", "192"]).ok();
    daemon.cli_as(&bob, &["snapshot", "create", "one", "--name", "n0"]).ok();
    let full = daemon.cli_as(&bob, &["snapshot", "resume", "n0"]).fails(1);
    assert!(full.contains("429 Too Many Requests: sandbox limit reached (1/1)"), "{full}");
    daemon.cli_as(&bob, &["destroy", "one", "-y"]).ok();
    daemon.cli_as(&bob, &["snapshot", "delete", "n0", "-y"]).ok();
}
