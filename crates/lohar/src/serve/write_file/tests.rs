//! Files written into a scratch directory as whoever runs the test.

use super::*;
use crate::guest::Account;
use crate::process::Reaper;
use bhatti_wire::message::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

fn me() -> (u32, u32) {
    (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
}

fn guest() -> Guest {
    let account = Account {
        name: "tester".into(),
        home: "/nonexistent".into(),
        shell: "/bin/sh".into(),
        login_gid: me().1,
    };
    Guest::new(Arc::new(Reaper::default()), account, me())
}

fn request(path: &Path, mode: u32, size: u64) -> WriteFile {
    WriteFile { path: path.to_str().unwrap().to_owned(), mode, size, keep_mode: false }
}

async fn write(path: &Path, mode: u32, size: u64, content: &[u8]) -> Result<(), FileError> {
    write_file(&guest(), request(path, mode, size), &mut { content }).await
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn a_file_arrives_whole_with_its_parents_and_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/file");
    let content: Vec<u8> = (0..700_000_u32).map(|n| n as u8).collect();
    write(&path, 0o754, content.len() as u64, &content).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o754);
    assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!((path.metadata().unwrap().uid(), path.metadata().unwrap().gid()), me());
    assert_eq!(names(path.parent().unwrap()), ["file"]);
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("empty"), 0o600, 0, b"").await.unwrap();
    assert_eq!(dir.path().join("empty").metadata().unwrap().len(), 0);
}

#[tokio::test]
async fn a_short_stream_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "old").unwrap();
    let error = write(&path, 0o644, 10, b"1234").await.unwrap_err();
    assert_eq!(error.to_string(), "connection lost after 4/10 bytes");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(names(dir.path()), ["file"], "the temporary is gone");
}

/// A host that gives its stream up.
struct GivenUp;

impl AsyncRead for GivenUp {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

#[tokio::test]
async fn who_gives_up_before_the_end_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "old").unwrap();
    for content in ["", "new", &"x".repeat(CHUNK)] {
        let mut all = content.as_bytes().chain(GivenUp);
        let request = request(&path, 0o644, content.len() as u64);
        write_file(&guest(), request, &mut all).await.expect_err("nobody said that this is it");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["file"]);
    }
}

#[test]
fn several_make_the_same_directories_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let deep = dir.path().join(format!("{round}/a/b/c/d"));
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    make_parents(&deep, me()).unwrap();
                });
            }
        });
    }
}

#[tokio::test]
async fn more_than_promised_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("file"), 0o644, 3, b"123456").await.unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("file")).unwrap(), "123");
}

#[tokio::test]
async fn a_symlink_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/no/such/target", &link).unwrap();
    write(&link, 0o644, 2, b"ok").await.unwrap();
    assert!(link.symlink_metadata().unwrap().is_file());
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    for (path, size, kind) in [
        ("relative".to_owned(), 1, ErrorKind::Invalid),
        (String::new(), 1, ErrorKind::Invalid),
        ("/".to_owned(), 1, ErrorKind::Invalid),
        (at("new/.."), 1, ErrorKind::Invalid),
        (at("new/"), 1, ErrorKind::Invalid),
        (at("nul\0"), 1, ErrorKind::Invalid),
        (at("sub"), 1, ErrorKind::Invalid),
        (at("file/below"), 1, ErrorKind::Invalid),
        (at(&"x".repeat(300)), 1, ErrorKind::Invalid),
        (at("new"), MAX_FILE + 1, ErrorKind::TooLarge),
    ] {
        let error = write(Path::new(&path), 0o644, size, b"x").await.expect_err(&path);
        assert_eq!(error.failure().kind, i32::from(kind), "{path:?}: {error}");
    }
    let mut left = names(dir.path());
    left.sort();
    assert_eq!(left, ["file", "sub"]);
}

#[tokio::test]
async fn a_mode_is_kept_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    let kept = || WriteFile { keep_mode: true, ..request(&path, 0o644, 1) };
    let mode = || path.metadata().unwrap().mode() & 0o7777;
    write_file(&guest(), kept(), &mut &b"1"[..]).await.unwrap();
    assert_eq!(mode(), 0o644, "a new file has the mode of the request");
    std::fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
    write_file(&guest(), kept(), &mut &b"2"[..]).await.unwrap();
    assert_eq!(mode(), 0o755, "somebody else's content is not set-id");
    write(&path, 0o600, 1, b"3").await.unwrap();
    assert_eq!(mode(), 0o600);
}

#[tokio::test]
async fn two_writers_and_a_reader_never_meet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let size = 3 * CHUNK + 17;
    let [ones, twos] = [1, 2].map(|byte| vec![byte; size]);
    std::fs::write(&path, &ones).unwrap();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (path, done) = (path.clone(), done.clone());
        move || {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let content = std::fs::read(&path).unwrap();
                assert_eq!(content.len(), size);
                assert!(content.iter().all(|byte| *byte == content[0]), "a mixture");
                reads += 1;
            }
            reads
        }
    });
    let guest = guest();
    for _ in 0..10 {
        let (mut one, mut two) = (&ones[..], &twos[..]);
        let (one, two) = tokio::join!(
            write_file(&guest, request(&path, 0o644, size as u64), &mut one),
            write_file(&guest, request(&path, 0o644, size as u64), &mut two),
        );
        one.and(two).unwrap();
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn a_full_disk_is_told_apart() {
    let error = FileError::io("write", "/x")(io::Error::from_raw_os_error(libc::ENOSPC));
    assert_eq!(error.failure().kind, i32::from(ErrorKind::NoSpace));
    assert_eq!(
        error.failure().message,
        "failed to write /x: No space left on device (os error 28)"
    );
}
