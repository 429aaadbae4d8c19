//! One file at a time: read, written, looked at, listed; and everything a file can be instead.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use serde_json::Value;

/// What `PUT` takes.
const MAX_FILE: usize = 100 << 20;

/// A daemon with one sandbox, `dev`.
fn daemon_with_dev() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
    daemon
}

/// Bytes in which every part is different from every other.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Runs `bhatti` with `input` on stdin; what it prints is bytes.
#[track_caller]
fn fed(daemon: &TestDaemon, args: &[&str], input: &[u8]) -> Output {
    let mut child = daemon
        .prepare(Some(daemon.admin()), args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut pipe = child.stdin.take().expect("piped");
    // It reads all of it before it prints anything; one that refuses closes the pipe.
    drop(pipe.write_all(input));
    drop(pipe);
    child.wait_with_output().expect("it ends")
}

#[track_caller]
fn write(daemon: &TestDaemon, path: &str, content: &[u8]) {
    let out = fed(daemon, &["file", "write", "dev", path], content);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "ok\n", "{out:?}");
}

#[track_caller]
fn read(daemon: &TestDaemon, path: &str) -> Vec<u8> {
    let out = daemon.prepare(Some(daemon.admin()), &["file", "read", "dev", path]).output();
    let out = out.expect("it runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// An answer over plain HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::trim)
    }

    /// The body, if it is JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The sentence of an error.
    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }
}

/// Asks with curl: what the contract says of headers and bodies is for every client.
#[track_caller]
pub(crate) fn curl(daemon: &TestDaemon, path: &str, args: &[&str]) -> Answer {
    let head = daemon.scratch_path().join("curl-head");
    let out = Command::new("curl")
        .args(["-sS", "--max-time", "90", "-D", head.as_str(), "-H"])
        .arg(format!("Authorization: Bearer {}", daemon.admin().key))
        .args(args)
        .arg(format!("{}{path}", daemon.url()))
        .output()
        .expect("curl runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let headers = std::fs::read_to_string(head).expect("curl wrote it").to_lowercase();
    // Of several answers (100 Continue) the last one counts.
    let last = headers.trim_end().rsplit("\r\n\r\n").next().expect("an answer").to_owned();
    let status = last.split(' ').nth(1).and_then(|word| word.parse().ok());
    Answer { status: status.expect("a status"), headers: last, body: out.stdout }
}

fn names(daemon: &TestDaemon, directory: &str) -> String {
    daemon.sh("dev", &format!("ls -A {directory}"))
}

/// The commands of the seeds, and the contract's headers.
#[test]
fn a_file_is_written_read_and_listed() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let app = "/workspace/app.js";
        let text = b"console.log(\"hello\")\n";
        write(&daemon, app, text);
        assert_eq!(read(&daemon, app), text);
        assert_eq!(daemon.sh("dev", "stat -c '%a %U' /workspace/app.js"), "644 lohar\n");
        let listed = daemon.cli(&["file", "ls", "dev", "/workspace/"]).ok();
        assert!(listed.contains("-0644       21 app.js\n"), "{listed}");
        let json = daemon.json(&["file", "ls", "dev", "/workspace"]);
        let entry = json.as_array().expect("a list").iter().find(|e| e["name"] == "app.js");
        let wanted = serde_json::json!({"name":"app.js","size":21,"is_dir":false,"mode":"0644"});
        assert_eq!(entry, Some(&wanted));
        modes_are_given_or_kept(&daemon);
        parts_are_read(&daemon);
        paths_and_links(&daemon);
        what_is_no_file_is_told_apart(&daemon);
        requests_that_make_no_sense(&daemon);
    });
}

fn modes_are_given_or_kept(daemon: &TestDaemon) {
    let mode = |path: &str| daemon.sh("dev", &format!("stat -c %a {path}"));
    fed(daemon, &["file", "write", "--mode", "0750", "dev", "/tmp/m/run.sh"], b"a");
    assert_eq!(mode("/tmp/m/run.sh"), "750\n");
    assert_eq!(mode("/tmp/m"), "755\n", "its directory was made");
    write(daemon, "/tmp/m/run.sh", b"b");
    assert_eq!(mode("/tmp/m/run.sh"), "750\n", "it stays executable");
    let url = "/sandboxes/dev/files?path=/tmp/m/run.sh";
    assert_eq!(curl(daemon, &format!("{url}&mode=600"), &["-T", "/etc/hostname"]).status, 200);
    assert_eq!(mode("/tmp/m/run.sh"), "600\n");
    let looked = curl(daemon, url, &["-I"]);
    assert_eq!((looked.status, looked.header("x-file-mode")), (200, Some("0600")));
    assert_eq!(looked.header("x-file-isdir"), Some("false"));
    assert!(looked.header("content-length").is_some_and(|length| length != "0"));
    assert_eq!(looked.header("content-length"), looked.header("x-file-size"));
    let directory = curl(daemon, "/sandboxes/dev/files?path=/tmp", &["-I"]);
    assert_eq!(directory.header("x-file-isdir"), Some("true"));
    assert_eq!(directory.header("x-file-mode"), Some("1777"));
}

fn parts_are_read(daemon: &TestDaemon) {
    daemon.sh("dev", "seq 1 1000 > /tmp/seq");
    let url = "/sandboxes/dev/files?path=/tmp/seq";
    let whole = curl(daemon, url, &[]);
    assert_eq!((whole.status, whole.body.len()), (200, 3893));
    assert_eq!(whole.header("content-length"), Some("3893"));
    assert_eq!(whole.header("x-file-size"), Some("3893"));
    assert_eq!(whole.header("content-type"), Some("application/octet-stream"));
    let body = |query: &str| curl(daemon, &format!("{url}{query}"), &[]).body;
    assert_eq!(body("&offset=10&limit=3"), b"10\n11\n12\n");
    assert_eq!(body("&offset=999&limit=50"), b"999\n1000\n");
    assert_eq!(body("&max_bytes=7"), b"1\n2\n3\n");
    assert_eq!(body("&offset=10").len(), 3893, "an offset alone means nothing");
    let range = |range: &str| {
        let answer = curl(daemon, url, &["-r", range]);
        let span = answer.header("content-range").map(str::to_owned);
        (answer.status, span.unwrap_or_default(), answer.body)
    };
    assert_eq!(range("0-3"), (206, "bytes 0-3/3893".to_owned(), b"1\n2\n".to_vec()));
    assert_eq!(range("3888-"), (206, "bytes 3888-3892/3893".to_owned(), b"1000\n".to_vec()));
    assert_eq!(range("-5"), (206, "bytes 3888-3892/3893".to_owned(), b"1000\n".to_vec()));
    assert_eq!(range("5000-"), (416, "bytes */3893".to_owned(), Vec::new()));
    let proc = curl(daemon, "/sandboxes/dev/files?path=/proc/self/status", &[]);
    assert!(proc.body.starts_with(b"Name:"), "the kernel's files have no size: {proc:?}");
}

fn paths_and_links(daemon: &TestDaemon) {
    daemon.sh("dev", "cd /tmp && echo target > target && ln -s target link && ln -s none dangling");
    assert_eq!(read(daemon, "/tmp/link"), b"target\n", "reading follows a link");
    assert_eq!(read(daemon, "tmp/link"), b"target\n", "a relative path begins at the root");
    write(daemon, "/tmp/link", b"new");
    assert_eq!(
        daemon.sh("dev", "cat /tmp/target; test -L /tmp/link || echo file"),
        "target\nfile\n"
    );
    write(daemon, "/tmp/dangling", b"new");
    assert_eq!(read(daemon, "/tmp/dangling"), b"new");
    write(daemon, "/tmp/with space/ü\n?&#", b"odd");
    assert_eq!(read(daemon, "/tmp/with space/ü\n?&#"), b"odd");
    let listed = daemon.cli(&["file", "ls", "dev", "/tmp/with space"]).ok();
    assert_eq!(listed, "-0644        3 ü??&#\n", "one entry is one line");
    write(daemon, "/tmp/empty", b"");
    let empty = curl(daemon, "/sandboxes/dev/files?path=/tmp/empty", &[]);
    assert_eq!((empty.header("content-length"), empty.body.len()), (Some("0"), 0));
}

fn what_is_no_file_is_told_apart(daemon: &TestDaemon) {
    daemon.sh("dev", "mkfifo /tmp/fifo; ln -s loop /tmp/loop; sudo ln -s /dev/zero /tmp/zero");
    let get = |path: &str| {
        let answer = curl(daemon, &format!("/sandboxes/dev/files?path={path}"), &[]);
        (answer.status, answer.error())
    };
    let words = |status: u16, text: &str| (status, text.to_owned());
    assert_eq!(get("/tmp/none"), words(404, "file not found"));
    assert_eq!(get("/tmp"), words(400, "/tmp is a directory"));
    assert_eq!(get("/tmp/fifo"), words(400, "/tmp/fifo is not a regular file"));
    assert_eq!(get("/tmp/zero"), words(400, "/tmp/zero is not a regular file"));
    assert_eq!(get("/tmp/none&ls=true"), words(404, "file not found"));
    assert_eq!(get("/tmp/target&ls=true"), words(400, "/tmp/target is not a directory"));
    let (status, text) = get("/tmp/loop");
    assert!(status == 400 && text.contains("ymbolic link"), "{status} {text}");
    assert_eq!(curl(daemon, "/sandboxes/dev/files?path=/tmp/none", &["-I"]).status, 404);
    let out = daemon.cli(&["file", "read", "dev", "/tmp/none"]).fails(1);
    assert_eq!(out, "Error: 404 Not Found: file not found: /tmp/none\n");
    let out = fed(daemon, &["file", "write", "dev", "/tmp"], b"x");
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(text, "Error: 400 Bad Request: /tmp is a directory\n");
    let nobody = daemon.cli(&["file", "ls", "nobody", "/"]).fails(1);
    assert!(nobody.contains("sandbox \"nobody\" not found"), "{nobody}");
}

fn requests_that_make_no_sense(daemon: &TestDaemon) {
    let words = |answer: Answer| (answer.status, answer.error());
    let url = "/sandboxes/dev/files";
    let missing = (400, "path query parameter required".to_owned());
    assert_eq!(words(curl(daemon, url, &[])), missing);
    assert_eq!(words(curl(daemon, url, &["-X", "PUT", "-d", "x"])), missing);
    let here = &format!("{url}?path=/tmp/x");
    let length = (400, "Content-Length header required for file upload".to_owned());
    let chunked = ["-T", "/etc/hostname", "-H", "Transfer-Encoding: chunked"];
    assert_eq!(words(curl(daemon, here, &chunked)), length);
    let large = daemon.scratch_path().join("large");
    std::fs::File::create(&large).expect("a file").set_len(MAX_FILE as u64 + 1).expect("sparse");
    let refused = words(curl(daemon, here, &["-T", large.as_str()]));
    assert_eq!(refused, (413, "file too large: 104857601 bytes (max 104857600)".to_owned()));
    assert_eq!(
        words(curl(daemon, here, &["-X", "DELETE"])),
        (405, "method not allowed".to_owned())
    );
    let relative = words(curl(daemon, &format!("{url}?path=/tmp/.."), &["-T", "/etc/hostname"]));
    assert_eq!(relative.0, 400, "{relative:?}");
    assert!(!names(daemon, "/tmp").lines().any(|name| name == "x"));
}

/// The largest file there is, both ways, and what is there when nobody waits for its end.
#[test]
fn a_large_file_is_whole_or_not_there() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let content = noise(MAX_FILE);
        write(&daemon, "/workspace/large", &content);
        assert!(read(&daemon, "/workspace/large") == content, "it came back changed");
        let small = daemon.memory_mib("VmHWM");
        assert!(small < 120, "the daemon needed {small} MiB: it holds files whole");
        // Who sends a lot to nobody still reads why that is wrong.
        let nobody = fed(&daemon, &["file", "write", "nobody", "/x"], &content[..20 << 20]);
        let text = String::from_utf8_lossy(&nobody.stderr);
        assert!(text.contains("sandbox \"nobody\" not found"), "{text}");
        upload_that_breaks_off(&daemon, &content);
        download_that_breaks_off(&daemon);
        let over =
            fed(&daemon, &["file", "write", "dev", "/workspace/x"], &[&content[..], b"x"].concat());
        let text = String::from_utf8_lossy(&over.stderr);
        assert!(text.contains("larger than 100 MiB") && text.contains("bhatti cp"), "{text}");
    });
}

/// An upload of `size` bytes of which only some come.
fn begin_upload(daemon: &TestDaemon, path: &str, size: usize) -> TcpStream {
    let address = daemon.url().strip_prefix("http://").expect("plain HTTP");
    let mut stream = TcpStream::connect(address).expect("it listens");
    let key = &daemon.admin().key;
    let head = format!(
        "PUT /sandboxes/dev/files?path={path} HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {key}\r\nContent-Length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("it is read");
    stream
}

fn upload_that_breaks_off(daemon: &TestDaemon, content: &[u8]) {
    write(daemon, "/workspace/kept/file", b"old");
    let mut stream = begin_upload(daemon, "/workspace/kept/file", 10 << 20);
    stream.write_all(&content[..5 << 20]).expect("it is read");
    drop(stream);
    // The guest hears of it at once; nothing tells us when.
    wait_for("the agent has let the file go", || {
        let open = daemon.sh("dev", "sudo sh -c 'ls -l /proc/1/fd' | grep -c deleted || true");
        (open == "0\n").then_some(())
    });
    assert_eq!(names(daemon, "/workspace/kept"), "file\n");
    assert_eq!(read(daemon, "/workspace/kept/file"), b"old");
}

fn download_that_breaks_off(daemon: &TestDaemon) {
    let mut child = daemon
        .prepare(Some(daemon.admin()), &["file", "read", "dev", "/workspace/large"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut some = [0; 4096];
    child.stdout.take().expect("piped").read_exact(&mut some).expect("some of it");
    // Its pipe is closed, and it ends with that.
    child.wait().expect("it ends");
    wait_for("the agent has let the file go", || {
        let open = daemon.sh("dev", "sudo sh -c 'ls -l /proc/1/fd' | grep -c large || true");
        (open == "0\n").then_some(())
    });
}

#[test]
fn a_disk_that_takes_nothing_says_so_and_keeps_what_it_has() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        // A disk of its own, small enough to be filled.
        let make = "sudo mkdir /small && sudo mount -t tmpfs -o size=8m,mode=777 small /small";
        daemon.sh("dev", make);
        write(&daemon, "/small/file", b"old");
        let content = noise(16 << 20);
        let large = daemon.scratch_path().join("large");
        std::fs::write(&large, &content).expect("a file");
        let full = curl(&daemon, "/sandboxes/dev/files?path=/small/file", &["-T", large.as_str()]);
        assert_eq!(full.status, 507, "{full:?}");
        assert!(full.error().contains("No space left on device"), "{full:?}");
        assert_eq!(read(&daemon, "/small/file"), b"old");
        assert_eq!(names(&daemon, "/small"), "file\n");
        let out = fed(&daemon, &["file", "write", "dev", "/small/new/file"], &content);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(text.contains("507") && text.contains("/small/new/file"), "{text}");
        assert_eq!(daemon.sh("dev", "find /small -type f"), "/small/file\n");
        daemon.sh("dev", "sudo mount -o remount,ro /small");
        let locked =
            curl(&daemon, "/sandboxes/dev/files?path=/small/file", &["-T", large.as_str()]);
        assert_eq!(locked.status, 409, "{locked:?}");
        assert!(locked.error().contains("Read-only file system"), "{locked:?}");
        assert!(!daemon.logged("request failed"), "a tenant's disk is no failure of the daemon's");
        the_root_itself_is_full(&daemon);
    });
}

/// The same on the disk that everything else needs too.
fn the_root_itself_is_full(daemon: &TestDaemon) {
    write(daemon, "/workspace/file", b"old");
    daemon.sh("dev", "sudo fallocate -l 100T /workspace/ballast 2>/dev/null; df -m / > /dev/null");
    let script = "free=$(df --output=avail -B1 / | tail -1); \
                  sudo fallocate -l $((free - 4194304)) /workspace/ballast";
    daemon.sh("dev", script);
    let out = fed(daemon, &["file", "write", "dev", "/workspace/file"], &noise(64 << 20));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("507") && text.contains("No space left on device"), "{text}");
    assert_eq!(read(daemon, "/workspace/file"), b"old");
    assert_eq!(names(daemon, "/workspace"), "ballast\nfile\n");
    daemon.sh("dev", "rm -f /workspace/ballast || sudo rm /workspace/ballast");
    write(daemon, "/workspace/file", b"new");
}

/// Neither a reader in the guest nor one outside ever sees a mixture of two writers' files.
#[test]
fn two_writers_and_a_reader_never_meet() {
    on_fresh_host(|| {
        let daemon = daemon_with_dev();
        let size = 3 << 20;
        let [ones, twos] = [b'1', b'2'].map(|byte| vec![byte; size]);
        write(&daemon, "/workspace/file", &ones);
        // In the guest: counts what it sees, ends with 1 when it is something else.
        let watch = "while :; do case $(md5sum < /workspace/file) in \
                     $1*|$2*) echo same >> /tmp/seen;; *) echo mixture >> /tmp/seen;; esac; done";
        let sums = [&ones, &twos].map(|content| {
            write(&daemon, "/tmp/one", content);
            daemon.sh("dev", "md5sum < /tmp/one | cut -d' ' -f1").trim().to_owned()
        });
        let watching =
            ["exec", "dev", "--detach", "--", "sh", "-c", watch, "sh", &sums[0], &sums[1]];
        daemon.cli(&watching).ok();
        std::thread::scope(|scope| {
            let writers = [&ones, &twos].map(|content| {
                let daemon = &daemon;
                scope.spawn(move || (0..8).for_each(|_| write(daemon, "/workspace/file", content)))
            });
            while writers.iter().any(|writer| !writer.is_finished()) {
                let seen = read(&daemon, "/workspace/file");
                assert!(seen == ones || seen == twos, "a mixture of {} bytes", seen.len());
            }
        });
        let seen = daemon.sh("dev", "sort /tmp/seen | uniq -c");
        assert!(seen.contains("same") && !seen.contains("mixture"), "{seen}");
        assert_eq!(names(&daemon, "/workspace"), "file\n");
    });
}

/// Files in a sandbox that sleeps, and in one that falls asleep between two of them.
#[test]
fn a_sandbox_wakes_for_its_files_and_stays_awake_for_a_slow_one() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start_with("thermal:\n  warm_after: 1s\n  cold_after: 2s\n");
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        write(&daemon, "/workspace/file", b"kept");
        daemon.wait_for_state("dev", "stopped");
        assert_eq!(read(&daemon, "/workspace/file"), b"kept");
        // An upload that takes longer than it takes to fall asleep.
        let content = noise(1 << 20);
        let mut stream = begin_upload(&daemon, "/workspace/slow", content.len());
        stream.write_all(&content[..1 << 19]).expect("it is read");
        let began = Instant::now();
        wait_for("it would have fallen asleep twice", || {
            assert_eq!(daemon.state("dev").as_deref(), Some("hot"), "asleep under an upload");
            (began.elapsed() > Duration::from_secs(5)).then_some(())
        });
        stream.write_all(&content[1 << 19..]).expect("it is read");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        drop(stream);
        daemon.wait_for_state("dev", "stopped");
        assert!(read(&daemon, "/workspace/slow") == content, "it is not what was written");
    });
}
