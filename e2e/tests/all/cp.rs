//! `bhatti cp`: trees into a sandbox and out of it, and what a hostile one sends instead.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::files::{curl, noise};

fn daemon_with_dev() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
    daemon
}

/// Kind and mode, time, size, owner, name and target of everything beneath a directory.
const LIST: &str = r"find . -mindepth 1 \( -type d -printf '%y%m %TY-%Tm-%Td 0 ' -o -printf '%y%m %TY-%Tm-%Td %s ' \) -printf '%p %l\n' | sort";

/// The checksums of everything beneath a directory.
const SUMS: &str = "find . -type f -print0 | sort -z | xargs -0 -r sha256sum";

/// What `script` prints, here, in `directory`.
#[track_caller]
fn here(directory: &Path, script: &str) -> String {
    let out = Command::new("sh").args(["-c", script]).current_dir(directory).output();
    let out = out.expect("sh runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[track_caller]
fn there(daemon: &TestDaemon, directory: &str, script: &str) -> String {
    daemon.sh("dev", &format!("cd {directory} && {script}"))
}

fn sample(root: &Path) {
    std::fs::create_dir_all(root.join("sub/empty")).expect("directories");
    std::fs::write(root.join("run.sh"), "#!/bin/sh\necho ran\n").expect("a file");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(root.join("run.sh"), executable).expect("a mode");
    std::fs::write(root.join("sub/large"), noise(5 << 20)).expect("a file");
    std::fs::write(root.join("sub/ü and space"), "odd").expect("a file");
    std::fs::write(root.join(format!("sub/{}", "x".repeat(200))), "long").expect("a file");
    symlink("../run.sh", root.join("sub/link")).expect("a link");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = std::fs::File::open(root.join("run.sh")).expect("it is there");
    file.set_modified(old).expect("a time");
}

/// A tree there and back is the same tree; and each way to say where it goes.
#[test]
fn a_tree_goes_in_and_comes_back() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let root = daemon.scratch_path().join("work");
        let src = root.join("src");
        sample(src.as_std_path());
        let said = daemon.cli(&["cp", src.as_str(), "dev:/workspace"]).ok();
        assert_eq!(said, "copied 4 files (5.2 MB)\n");
        let [list, sums] = [LIST, SUMS].map(|script| here(src.as_std_path(), script));
        assert_eq!(there(&daemon, "/workspace/src", LIST), list);
        assert_eq!(there(&daemon, "/workspace/src", SUMS), sums);
        assert_eq!(there(&daemon, "/workspace/src", "find . ! -user lohar | wc -l"), "0\n");
        assert_eq!(there(&daemon, "/workspace/src", "./run.sh"), "ran\n");
        let back = root.join("back");
        daemon.cli(&["cp", "dev:/workspace/src", back.as_str()]).ok();
        assert_eq!(here(back.as_std_path(), LIST), list);
        assert_eq!(here(back.as_std_path(), SUMS), sums);
        where_it_goes(&daemon, root.as_std_path());
        a_file_goes_too(&daemon, root.as_std_path());
        what_cannot_be_copied(&daemon, root.as_std_path());
        json_says_the_same(&daemon, root.as_std_path());
    });
}

fn where_it_goes(daemon: &TestDaemon, root: &Path) {
    let cp = |src: &str, dst: &str| {
        let ran =
            daemon.prepare(Some(daemon.admin()), &["cp", src, dst]).current_dir(root).output();
        let ran = ran.expect("it runs");
        assert!(ran.status.success(), "{src} {dst}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    let sums = here(&root.join("src"), SUMS);
    let same_there = |path: &str| assert_eq!(there(daemon, path, SUMS), sums, "{path}");
    let same_here = |path: &str| assert_eq!(here(&root.join(path), SUMS), sums, "{path}");
    cp("src", "dev:/workspace/new");
    same_there("/workspace/new");
    cp("./src/", "dev:/workspace/new");
    same_there("/workspace/new/src");
    daemon.sh("dev", "mkdir /workspace/contents");
    cp("src/.", "dev:/workspace/contents");
    same_there("/workspace/contents");
    cp("src/.", "dev:/workspace/made");
    same_there("/workspace/made");
    daemon.sh("dev", "ln -s new /workspace/link");
    cp("src", "dev:/workspace/link/");
    same_there("/workspace/new/src");
    cp("dev:/workspace/made", ".");
    same_here("made");
    cp("dev:/workspace/made/.", "fresh");
    same_here("fresh");
    std::fs::create_dir(root.join("inside")).expect("a directory");
    cp("dev:/workspace/made/.", "inside");
    same_here("inside");
    cp("dev:/workspace/link", "followed");
    same_here("followed/src");
}

fn a_file_goes_too(daemon: &TestDaemon, root: &Path) {
    let run = |src: &str, dst: &str| {
        daemon.prepare(Some(daemon.admin()), &["cp", src, dst]).current_dir(root).output()
    };
    let cp = |src: &str, dst: &str| {
        let ran = run(src, dst).expect("it runs");
        assert!(ran.status.success(), "{src} {dst}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    let refused = |src: &str, dst: &str, text: &str| {
        let ran = run(src, dst).expect("it runs");
        let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(1) && stderr.contains(text), "{src} {dst}: {stderr}");
    };
    cp("src/run.sh", "dev:/workspace/made");
    cp("src/run.sh", "dev:/workspace/made/other.sh");
    assert_eq!(there(daemon, "/workspace/made", "./other.sh; stat -c %a other.sh"), "ran\n755\n");
    cp("dev:/workspace/made/other.sh", ".");
    cp("dev:/workspace/made/other.sh", "renamed.sh");
    cp("dev:/workspace/made/other.sh", "renamed.sh");
    assert_eq!(here(root, "./renamed.sh; cmp other.sh renamed.sh"), "ran\n");
    assert_eq!(root.join("renamed.sh").metadata().expect("it is there").mtime(), 1_000_000_000);
    refused("src/run.sh", "dev:/workspace/none/", "/workspace/none/ is not a directory");
    let none =
        "there is no directory /workspace/none in dev; make it first: bhatti exec dev -- mkdir";
    refused("src/run.sh", "dev:/workspace/none/file", none);
    refused("src", "dev:/workspace/made/other.sh", "is a directory, and");
    refused("none", "dev:/workspace", "open none: No such file");
    refused("dev:/none", ".", "404 Not Found: file not found: /none");
    refused("dev:/workspace", "renamed.sh", "is a directory, and");
    refused("dev:/dev/zero", ".", "neither a regular file nor a directory");
    refused("nobody:/x", ".", "sandbox \"nobody\" not found");
    refused("src", "nobody:/x", "sandbox \"nobody\" not found");
    refused("src", "made", "neither is in a sandbox");
    refused("dev:/a", "dev:/b", "both are in a sandbox");
}

fn what_cannot_be_copied(daemon: &TestDaemon, root: &Path) {
    let odd = "mkdir -p odd/d && cd odd && mkfifo fifo && ln -s /etc/passwd out && \
               ln -s ../../x d/up && ln -s ../file d/in && echo x > file && sudo mknod null c 1 3 && \
               mkdir kernel && sudo mount -t proc proc kernel";
    there(daemon, "/workspace", odd);
    let ran = daemon.cli(&["cp", "dev:/workspace/odd", root.join("odd").to_str().expect("UTF-8")]);
    let mut told: Vec<&str> = ran.stderr.lines().collect();
    told.sort_unstable();
    let leads_out = "a link that leads out of what was copied";
    let wanted = [
        format!("left out: odd/d/up: {leads_out}"),
        "left out: odd/fifo: a FIFO".to_owned(),
        "left out: odd/null: a device".to_owned(),
        format!("left out: odd/out: {leads_out}"),
    ];
    assert_eq!((ran.code, told), (1, wanted.iter().map(String::as_str).collect()));
    assert_eq!(here(root, "find odd | sort"), "odd\nodd/d\nodd/d/in\nodd/file\nodd/kernel\n");
    let all = root.join("all");
    let all = all.to_str().expect("UTF-8");
    let ran = daemon.cli(&["cp", "--all-links", "dev:/workspace/odd", all]);
    assert_eq!((ran.code, ran.stderr.lines().count()), (1, 2), "FIFO and device: {}", ran.stderr);
    assert_eq!(here(root, "readlink all/out all/d/up all/d/in"), "/etc/passwd\n../../x\n../file\n");
    // What does not know its size is copied all the same.
    let version = root.join("version");
    daemon.cli(&["cp", "dev:/proc/version", version.to_str().expect("UTF-8")]).ok();
    assert!(here(root, "cat version").starts_with("Linux version"));
    // Into a sandbox, which is its user's own, links may lead wherever they like.
    symlink("/etc/hostname", root.join("odd/absolute")).expect("a link");
    let src = root.join("odd");
    daemon.cli(&["cp", src.to_str().expect("UTF-8"), "dev:/workspace/links"]).ok();
    assert_eq!(there(daemon, "/workspace/links", "cat absolute"), "dev\n");
}

fn json_says_the_same(daemon: &TestDaemon, root: &Path) {
    let src = root.join("src/run.sh");
    let said = daemon.json(&["cp", src.to_str().expect("UTF-8"), "dev:/tmp"]);
    let size = src.metadata().expect("it is there").len();
    let wanted = serde_json::json!({"files": 1, "bytes": size, "problems": [], "problem_count": 0});
    assert_eq!(said, wanted);
}

/// An archive of a stranger's, sent into a sandbox. The other way it is the same code that unpacks,
/// see the tests of `bhatti-tree` and of the command.
#[test]
fn a_hostile_archive_stays_where_it_was_asked_to() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let root = daemon.scratch_path().join("work");
        std::fs::create_dir_all(root.join("box")).expect("a directory");
        std::fs::write(root.join("secret"), "untouched").expect("a file");
        let make = "mkdir -p x && cd x && echo evil > secret && tar -cf ../names.tar -P \
                    ../x/secret /etc/hostname && ln -s / root && tar -cf ../link.tar root && \
                    rm root && mkdir root && echo evil > root/evil && tar -rf ../link.tar root/evil";
        here(root.as_std_path(), make);
        daemon.sh("dev", "mkdir -p /workspace/a/box && echo untouched > /workspace/a/secret");
        let put = |name: &str| {
            let file = root.join(name);
            curl(&daemon, "/sandboxes/dev/archive?path=/workspace/a/box", &["-T", file.as_str()])
        };
        let names = put("names.tar");
        assert_eq!(names.status, 200, "{names:?}");
        let body = names.json();
        assert_eq!(body["problem_count"], 2, "{body}");
        assert_eq!(put("link.tar").json()["problem_count"], 1);
        let left =
            there(&daemon, "/workspace/a", "find . ! -type d | sort; cat secret; test ! -e /evil");
        assert_eq!(left, "./box/root\n./secret\nuntouched\n");
    });
}

/// Many small files are one transfer, and not one of them is half there when it breaks off.
#[test]
fn a_copy_that_breaks_off_leaves_only_whole_files() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let root = daemon.scratch_path().join("work");
        let src = root.join("many");
        std::fs::create_dir_all(&src).expect("a directory");
        let size = 2000;
        for n in 0..3000 {
            std::fs::write(src.join(format!("{n:04}")), format!("{n:0size$}")).expect("a file");
        }
        std::fs::write(src.join("zz-last"), noise(60 << 20)).expect("a file");
        let began = Instant::now();
        let mut child = daemon
            .prepare(Some(daemon.admin()), &["cp", src.as_str(), "dev:/workspace"])
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for("some have arrived", || {
            let count = daemon.sh("dev", "ls /workspace/many 2>/dev/null | wc -l");
            (count.trim().parse::<u32>().expect("a number") > 100).then_some(())
        });
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("ours to signal");
        assert_eq!(child.wait().expect("it ends").code(), Some(130));
        only_whole_files(&daemon, size);
        let said = daemon.cli(&["cp", src.as_str(), "dev:/workspace"]).ok();
        assert_eq!(said, "copied 3001 files (68.9 MB)\n");
        assert!(began.elapsed() < bhatti_testkit::deadline());
        a_download_breaks_off(&daemon, root.as_std_path());
    });
}

fn only_whole_files(daemon: &TestDaemon, size: usize) {
    let others = format!("find . -type f ! -size {size}c | wc -l");
    wait_for("the agent has let go", || {
        let open = daemon.sh("dev", "sudo ls -l /proc/1/fd | grep -c workspace || true");
        (open == "0\n").then_some(())
    });
    let left = there(daemon, "/workspace/many", &others);
    // The last one is as long as it is, or is not there.
    assert!(left == "0\n" || left == "1\n", "{left} files are not whole");
    assert_eq!(there(daemon, "/workspace/many", "find . -name '.*tmp*' | wc -l"), "0\n");
}

fn a_download_breaks_off(daemon: &TestDaemon, root: &Path) {
    let back = root.join("back");
    let mut child = daemon
        .prepare(
            Some(daemon.admin()),
            &["cp", "dev:/workspace/many", back.to_str().expect("UTF-8")],
        )
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let files = || std::fs::read_dir(&back).map_or(0, Iterator::count);
    wait_for("some have arrived", || (files() > 100).then_some(()));
    child.kill().expect("ours to kill");
    child.wait().expect("it ends");
    for entry in std::fs::read_dir(&back).expect("it is there") {
        let entry = entry.expect("readable");
        let name = entry.file_name().into_string().expect("UTF-8");
        let length = entry.metadata().expect("it is there").len();
        let wanted = if name == "zz-last" { 60 << 20 } else { 2000 };
        assert_eq!(length, wanted, "{name}");
    }
}

#[test]
fn a_full_disk_in_the_middle_of_a_copy_says_so() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let make = "sudo mkdir /small && sudo mount -t tmpfs -o size=8m,mode=777 small /small";
        daemon.sh("dev", make);
        let src = daemon.scratch_path().join("src");
        std::fs::create_dir_all(&src).expect("a directory");
        std::fs::write(src.join("a"), noise(4 << 20)).expect("a file");
        std::fs::write(src.join("b"), noise(40 << 20)).expect("a file");
        let full = daemon.cli(&["cp", src.as_str(), "dev:/small"]).fails(1);
        assert!(full.contains("507") && full.contains("No space left on device"), "{full}");
        assert!(full.contains("src/"), "it does not say which file: {full}");
        let left = there(&daemon, "/small", "find . -type f -size -4096k | wc -l");
        assert_eq!(left, "0\n", "half a file is there");
        daemon.sh("dev", "rm -r /small/src && sudo mount -o remount,ro /small");
        let locked = daemon.cli(&["cp", src.as_str(), "dev:/small"]).fails(1);
        assert!(locked.contains("Read-only file system"), "{locked}");
    });
}

/// A copy keeps its sandbox awake, and wakes one that sleeps.
#[test]
fn a_sleeping_sandbox_wakes_for_a_copy() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let src = daemon.scratch_path().join("src");
        sample(src.as_std_path());
        daemon.cli(&["stop", "dev"]).ok();
        daemon.cli(&["cp", src.as_str(), "dev:/workspace"]).ok();
        daemon.cli(&["stop", "dev"]).ok();
        let back = daemon.scratch_path().join("back");
        daemon.cli(&["cp", "dev:/workspace/src", back.as_str()]).ok();
        let sums = [&src, &back].map(|path| here(path.as_std_path(), SUMS));
        assert_eq!(sums[0], sums[1]);
    });
}
