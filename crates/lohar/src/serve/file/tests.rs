//! The operations that only look, on files of a scratch directory.

use super::*;
use crate::guest::Account;
use crate::process::Reaper;
use bhatti_link::read_message;
use bhatti_wire::message::{
    ByteRange, DirectoryPart, FilePart, LineRange, ListDirectory, MAX_ENTRIES, ReadFile,
};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn guest() -> Guest {
    let account = Account {
        name: "tester".into(),
        home: "/nonexistent".into(),
        shell: "/bin/sh".into(),
        login_gid: 0,
    };
    Guest::new(Arc::new(Reaper::default()), account, (0, 0))
}

/// The reply, and what came after it: `None` if the stream was reset.
async fn answer(path: &Path, part: Option<FilePart>) -> (FileReply, Option<Vec<u8>>) {
    let request = ReadFile { path: path.to_str().unwrap().to_owned(), part };
    let (mut host, mut ours) = tokio::io::duplex(1 << 20);
    let guest = guest();
    let reading = async move {
        read(&guest, request, &mut ours).await;
        // Where the stream says that it was half-closed, a pipe in memory says nothing.
        ours.write_all(b"!").await.is_err()
    };
    let hearing = async {
        let reply = read_message(&mut host).await.unwrap().unwrap();
        let mut content = Vec::new();
        host.read_to_end(&mut content).await.unwrap();
        (reply, content)
    };
    let (closed, (reply, content)) = tokio::join!(reading, hearing);
    (reply, closed.then_some(content))
}

async fn part_of(path: &Path, part: Option<FilePart>) -> (u64, Option<u64>, String) {
    let (reply, content) = answer(path, part).await;
    assert_eq!(reply.failure, None);
    (reply.offset, reply.length, String::from_utf8(content.expect("all of it")).unwrap())
}

async fn refused(path: &Path) -> (ErrorKind, String) {
    let (reply, _) = answer(path, None).await;
    let failure = reply.failure.expect("a failure");
    (ErrorKind::try_from(failure.kind).unwrap(), failure.message)
}

#[tokio::test]
async fn a_file_is_read_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "0123\n567\n9").unwrap();
    let bytes = |offset, length| Some(FilePart::Bytes(ByteRange { offset, length }));
    for (part, offset, length, content) in [
        (None, 0, Some(10), "0123\n567\n9"),
        (bytes(2, 4), 2, Some(4), "23\n5"),
        (bytes(8, 0), 8, Some(2), "\n9"),
        (bytes(8, 100), 8, Some(2), "\n9"),
        (bytes(10, 0), 10, Some(0), ""),
        (bytes(u64::MAX, u64::MAX), 10, Some(0), ""),
        (Some(FilePart::Tail(3)), 7, Some(3), "7\n9"),
        (Some(FilePart::Tail(u64::MAX)), 0, Some(10), "0123\n567\n9"),
        (
            Some(FilePart::Lines(LineRange { first: 2, count: 5, max_bytes: 0 })),
            0,
            None,
            "567\n9\n",
        ),
    ] {
        assert_eq!(part_of(&path, part).await, (offset, length, content.to_owned()), "{part:?}");
    }
}

#[tokio::test]
async fn large_files_and_lines_arrive_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let text: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
    std::fs::write(&path, &text).unwrap();
    assert!(text.len() > 4 * CHUNK);
    assert_eq!(part_of(&path, None).await.2, text);
    let range = LineRange { first: 100_000, count: 50_000, max_bytes: 0 };
    let lines: String = (99_999..149_999).map(|n| format!("line {n}\n")).collect();
    assert_eq!(part_of(&path, Some(FilePart::Lines(range))).await.2, lines);
}

#[tokio::test]
async fn the_kernels_files_are_read_to_their_end() {
    let (_, length, content) = part_of(Path::new("/proc/self/limits"), None).await;
    assert_eq!(length, None);
    assert!(content.starts_with("Limit"), "{content}");
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert_eq!(part_of(&empty, None).await, (0, Some(0), String::new()));
}

#[tokio::test]
async fn what_is_no_regular_file_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    std::os::unix::fs::symlink("fifo", at("to-fifo")).unwrap();
    std::fs::write(at("file"), "x").unwrap();
    for (path, kind, text) in [
        (at("fifo"), ErrorKind::Invalid, "is not a regular file"),
        (at("to-fifo"), ErrorKind::Invalid, "is not a regular file"),
        (at("socket"), ErrorKind::Invalid, "is not a regular file"),
        ("/dev/zero".into(), ErrorKind::Invalid, "is not a regular file"),
        (dir.path().to_owned(), ErrorKind::Invalid, "is a directory"),
        (at("loop"), ErrorKind::Invalid, "ymbolic link"),
        (at("none"), ErrorKind::NotFound, "file not found"),
        (at("file/below"), ErrorKind::Invalid, "ot a directory"),
        ("relative".into(), ErrorKind::Invalid, "is not absolute"),
        (at("nul\0"), ErrorKind::Invalid, "does not name a file"),
    ] {
        let (told, message) = refused(&path).await;
        assert_eq!(told, kind, "{message}");
        assert!(message.contains(text), "{message}");
    }
}

#[tokio::test]
async fn a_look_follows_links() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "12345").unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
    let look = |name: &str| {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        async move { stat(&guest(), StatFile { path }).await }
    };
    let info = look("link").await.info.expect("it is there");
    assert_eq!((info.size, info.kind()), (5, FileKind::Regular));
    assert_eq!(look("").await.info.expect("it is there").kind(), FileKind::Directory);
    assert_eq!(look("none").await.failure.expect("a failure").kind(), ErrorKind::NotFound);
}

async fn listed(path: &Path) -> Result<(Vec<FileInfo>, u64), Failure> {
    let request = ListDirectory { path: path.to_str().unwrap().to_owned() };
    let (mut host, mut ours) = tokio::io::duplex(64 * 1024);
    let guest = guest();
    let hearing = async {
        let mut entries = Vec::new();
        loop {
            let part: DirectoryPart = read_message(&mut host).await.unwrap().expect("an end");
            if let Some(failure) = part.failure {
                return Err(failure);
            }
            entries.extend(part.entries);
            if let Some(total) = part.total {
                return Ok((entries, total));
            }
        }
    };
    tokio::join!(list(&guest, request, &mut ours), hearing).1
}

#[tokio::test]
async fn a_directory_is_listed_by_name_and_links_are_links() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "a", ".hidden"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let (entries, total) = listed(dir.path()).await.unwrap();
    let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.kind())).collect();
    let wanted = [
        (".hidden", FileKind::Regular),
        ("a", FileKind::Regular),
        ("b", FileKind::Regular),
        ("link", FileKind::Symlink),
        ("sub", FileKind::Directory),
    ];
    assert_eq!((seen, total), (wanted.to_vec(), 5));
    let failure = listed(&dir.path().join("a")).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::Invalid);
    assert!(failure.message.ends_with("is not a directory"), "{}", failure.message);
    assert_eq!(listed(&dir.path().join("none")).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_huge_directory_is_counted_but_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..=MAX_ENTRIES {
        std::fs::write(dir.path().join(n.to_string()), "").unwrap();
    }
    let (entries, total) = listed(dir.path()).await.unwrap();
    assert_eq!((entries.len(), total), (MAX_ENTRIES, MAX_ENTRIES as u64 + 1));
}
