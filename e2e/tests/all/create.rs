//! What can be given to a create, and what happens when it does not work out.

use std::process::Stdio;

use bhatti_testkit::{TestDaemon, image_file, on_fresh_host, wait_for};
use camino::Utf8Path;

#[test]
fn env_files_init_and_disk_size_reach_the_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let local = daemon.scratch_path().join("config.json");
        std::fs::write(&local, "{\"a\": 1}\n").expect("a file");
        let file = format!("{local}:/etc/worker/config.json");
        let create = [
            "create",
            "--name",
            "api",
            "--cpus",
            "0.5",
            "--memory",
            "384",
            "--disk-size",
            "3072",
            "--env",
            "NODE_ENV=production,GREETING=hello world",
            "--file",
            &file,
            "--init",
            "cat /etc/worker/config.json > /workspace/seen; echo $NODE_ENV >> /workspace/seen",
            "--label",
            "team=a",
        ];
        let created = daemon.cli(&create).ok();
        assert!(
            created.starts_with("sandbox/api created (0.5 vCPU, 384 MB, 3072 MB disk)"),
            "{created}"
        );
        let env = daemon.cli(&["exec", "api", "--", "sh", "-c", "echo $NODE_ENV $GREETING"]).ok();
        assert_eq!(env, "production hello world\n");
        let stat = ["exec", "api", "--", "stat", "-c", "%a %U %s", "/etc/worker/config.json"];
        assert_eq!(daemon.cli(&stat).ok(), "644 lohar 9\n");
        wait_for("init ran, after the files were there", || {
            let seen = daemon.cli(&["exec", "api", "--", "cat", "/workspace/seen"]);
            (seen.stdout == "{\"a\": 1}\nproduction\n").then_some(())
        });
        let df =
            daemon.cli(&["exec", "api", "--", "sh", "-c", "df -BM --output=size / | tail -1"]).ok();
        let size: u32 = df.trim().trim_end_matches('M').parse().expect("a size");
        assert!((2800..=3072).contains(&size), "the file system grew to its disk: {size}");
        // The same again, and with less said: unchanged. With another value: a conflict.
        assert!(daemon.cli(&create).ok().contains("unchanged"));
        let other = daemon.cli(&["create", "--name", "api", "--env", "NODE_ENV=test"]).fails(1);
        assert!(other.contains("already exists"), "{other}");
        daemon.cli(&["destroy", "api", "--yes"]).ok();
        daemon.assert_nothing_left();
    });
}

#[test]
fn two_creates_of_one_name_make_one_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let children: Vec<_> = (0..4)
            .map(|_| {
                daemon
                    .prepare(Some(daemon.admin()), &["create", "--name", "one", "--memory", "256"])
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("it starts")
            })
            .collect();
        let outputs: Vec<_> =
            children.into_iter().map(|child| child.wait_with_output().expect("it ends")).collect();
        assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
        let created = outputs
            .iter()
            .filter(|output| String::from_utf8_lossy(&output.stdout).contains("created"))
            .count();
        assert_eq!((created, daemon.machines().len()), (1, 1));
        daemon.cli(&["destroy", "one", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

/// The client goes away in the middle: the sandbox is there all the same, in a known state.
#[test]
fn a_create_whose_client_hangs_up_ends_in_a_known_state_vm() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        let mut child = daemon
            .prepare(Some(daemon.admin()), &["create", "--name", "left", "--memory", "256"])
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for("the machine is starting", || (!daemon.machines().is_empty()).then_some(()));
        child.kill().expect("ours to kill");
        child.wait().expect("it ends");
        wait_for("the sandbox is listed", || {
            daemon.cli(&["list"]).ok().contains("left").then_some(())
        });
        assert_eq!(daemon.cli(&["exec", "left", "--", "echo", "fine"]).ok(), "fine\n");
        daemon.cli(&["destroy", "left", "-y"]).ok();
        daemon.assert_nothing_left();
    });
}

/// The data directory's file system has no room for another sandbox.
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    on_fresh_host(|| {
        // Room for a golden snapshot and two sandboxes, also where each of them is a whole disk.
        let mut daemon = TestDaemon::prepared_on_small_disk(1500);
        daemon.allow_error("no space left on the host's disk");
        daemon.allow_error("the host's disk is full");
        daemon.run();
        daemon.cli(&["create", "--name", "first", "--memory", "256"]).ok();
        daemon.cli(&["destroy", "first", "-y"]).ok();
        let ballast = daemon.data_dir().join("ballast");
        daemon.fill_disk(&ballast, 8);
        let full = daemon.cli(&["create", "--name", "x", "--memory", "256"]).fails(1);
        assert!(
            full.contains("503 Service Unavailable: no space left on the host's disk"),
            "{full}"
        );
        daemon.assert_nothing_left();
        std::fs::remove_file(&ballast).expect("it was there");
        daemon.cli(&["create", "--name", "x", "--memory", "256"]).ok();
        match daemon.engine().as_str() {
            "firecracker" => a_guest_that_fills_it_is_told(&daemon, &ballast),
            _ => a_guest_that_fills_it_stands_still(&daemon, &ballast),
        }
        // And a destroy needs no room at all.
        daemon.fill_disk(&ballast, 0);
        daemon.cli(&["destroy", "x", "-y"]).ok();
        std::fs::remove_file(&ballast).expect("it was there");
        daemon.assert_nothing_left();
    });
}

/// It loses nothing, and goes on when there is room.
fn a_guest_that_fills_it_stands_still(daemon: &TestDaemon, ballast: &Utf8Path) {
    let write = "dd if=/dev/urandom of=/home/lohar/big bs=1M count=60 2>/dev/null; sync; \
                     sha256sum < /home/lohar/big > /tmp/sum; echo written > /tmp/done";
    daemon.cli(&["exec", "x", "--detach", "--", "sh", "-c", write]).ok();
    daemon.fill_disk(ballast, 4);
    wait_for("the machine stands still", || {
        daemon.logged("stands still until there is room").then_some(())
    });
    std::fs::remove_file(ballast).expect("it was there");
    wait_for("it goes on", || {
        (daemon.cli(&["exec", "x", "--", "cat", "/tmp/done"]).stdout == "written\n").then_some(())
    });
    let check = "sha256sum < /home/lohar/big | cmp - /tmp/sum && dmesg | grep -c 'I/O error'";
    let checked = daemon.cli(&["exec", "x", "--", "sudo", "sh", "-c", check]);
    assert_eq!(checked.stdout, "0\n", "{}", checked.stderr);
}

/// Firecracker hands the error on. What the guest wrote is lost, and it knows; its memory is not.
fn a_guest_that_fills_it_is_told(daemon: &TestDaemon, ballast: &Utf8Path) {
    daemon.sh("x", "echo kept > /tmp/kept");
    daemon.fill_disk(ballast, 4);
    let write = "dd if=/dev/urandom of=/home/lohar/big bs=1M count=60 conv=fsync";
    let refused = daemon.cli(&["exec", "x", "--", "sh", "-c", write]);
    // Or its file system has given up writing anything before.
    let told = ["error", "Read-only file system"].iter().any(|why| refused.stderr.contains(why));
    assert!(refused.code != 0 && told, "{refused:?}");
    std::fs::remove_file(ballast).expect("it was there");
    assert_eq!(daemon.sh("x", "cat /tmp/kept"), "kept\n", "the same machine");
    let error = daemon.sh("x", "sudo dmesg | grep -c 'I/O error'");
    assert_ne!(error, "0\n", "its kernel was told");
}

#[test]
fn creates_that_cannot_work_leave_nothing() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::prepared("boot_timeout_sec: 60");
        let images = daemon.data_dir().join("images");
        std::fs::write(images.join(image_file("broken")), vec![0; 8192]).expect("a file");
        // A superblock's magic and nothing else: an image until the guest looks at it.
        let mut liar = vec![0; 1 << 20];
        liar[1080..1082].copy_from_slice(&[0x53, 0xef]);
        std::fs::write(images.join(image_file("liar")), liar).expect("a file");
        daemon.run();
        // A machine that does not come up is something an operator should see.
        daemon.allow_error("sandbox did not start");
        let create = |args: &[&str]| {
            daemon.cli(&[&["create", "--name", "x", "--memory", "256"], args].concat()).fails(1)
        };
        let nope = create(&["--image", "nope"]);
        assert!(
            nope.contains("404 Not Found: image \"nope\" not found; there is: liar, minimal"),
            "{nope}"
        );
        assert!(create(&["--image", "broken"]).contains("image \"broken\" not found"));
        let liar = create(&["--image", "liar"]);
        assert!(liar.contains("sandbox did not start") && liar.contains("vda"), "{liar}");
        let small = create(&["--disk-size", "10"]);
        assert!(small.contains("disk_size_mb 10 is smaller than the image"), "{small}");
        std::fs::remove_file(images.join(image_file("minimal"))).expect("it was there");
        let missing = create(&[]);
        assert!(missing.contains("image \"minimal\" cannot be used"), "{missing}");
        daemon.assert_nothing_left();
        assert_eq!(daemon.cli(&["list"]).ok().lines().count(), 1);
    });
}
