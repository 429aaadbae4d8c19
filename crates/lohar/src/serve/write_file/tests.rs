//! Files written into a scratch directory as whoever runs the test.

use super::*;
use std::os::unix::fs::MetadataExt;

fn me() -> (u32, u32) {
    (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
}

async fn write(path: &Path, mode: u32, size: u64, content: &[u8]) -> Result<(), WriteError> {
    let request = WriteFile { path: path.to_str().unwrap().to_owned(), mode, size };
    let mut content = content;
    write_file(&request, me(), &mut content).await
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
        (at("new"), MAX_FILE + 1, ErrorKind::Invalid),
    ] {
        let request = WriteFile { path: path.clone(), mode: 0o644, size };
        let error = write_file(&request, me(), &mut &b"x"[..]).await.expect_err(&path);
        assert_eq!(error.failure().kind, i32::from(kind), "{path:?}: {error}");
    }
    let mut left = names(dir.path());
    left.sort();
    assert_eq!(left, ["file", "sub"]);
}

#[tokio::test]
async fn a_directory_is_synced_or_says_why_not() {
    let dir = tempfile::tempdir().unwrap();
    sync_directory(dir.path()).await.unwrap();
    let error = sync_directory(&dir.path().join("none")).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_full_disk_is_told_apart() {
    let error = WriteError::File {
        action: "write",
        path: "/x".into(),
        source: io::Error::from_raw_os_error(libc::ENOSPC),
    };
    assert_eq!(error.failure().kind, i32::from(ErrorKind::NoSpace));
    assert_eq!(
        error.failure().message,
        "failed to write /x: No space left on device (os error 28)"
    );
}
