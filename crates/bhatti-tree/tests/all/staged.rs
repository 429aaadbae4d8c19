//! A file that is not there until it is whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use bhatti_tree::Staged;

use crate::support::names;

#[test]
fn nothing_is_seen_before_and_nothing_stays_after() {
    let dir = tempfile::tempdir().unwrap();
    let open = File::open(dir.path()).unwrap();
    let begin = |text: &str| {
        let mut staged = Staged::create(open.as_fd()).unwrap();
        staged.file().write_all(text.as_bytes()).unwrap();
        staged
    };
    let content = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    drop(begin("never"));
    assert_eq!(names(dir.path()), [""; 0]);
    let first = begin("first");
    assert_eq!(names(dir.path()), [""; 0], "it has no name yet");
    first.publish(OsStr::new("file")).unwrap();
    begin("second").publish(OsStr::new("file")).unwrap();
    assert_eq!(content("file"), "second");
    symlink("file", dir.path().join("link")).unwrap();
    begin("third").publish(OsStr::new("link")).unwrap();
    assert_eq!([content("file"), content("link")], ["second", "third"]);
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    let refused = begin("fourth").publish(OsStr::new("dir")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::IsADirectory);
    assert_eq!(names(dir.path()), ["dir", "file", "link"]);
}
