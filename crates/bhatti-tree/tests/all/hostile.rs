//! Archives that want more than to be unpacked.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use bhatti_tree::{Tally, UnpackError};
use tar::EntryType;

use crate::support::{Member, archive, names, strict, unpacked};

/// Unpacks beneath `box/`, and says what is beside it afterwards, and what was left out.
fn beside(members: &[Member]) -> (Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("box")).unwrap();
    std::fs::write(dir.path().join("secret"), "untouched").unwrap();
    symlink("..", dir.path().join("box/up")).unwrap();
    let problems = unpacked(&archive(members), &dir.path().join("box")).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("secret")).unwrap(), "untouched");
    let all = names(dir.path());
    let out = all.into_iter().filter(|name| !matches!(&name[..], "box" | "secret" | "box/up"));
    (out.collect(), problems.sentences)
}

#[test]
fn no_name_leads_out() {
    for name in ["../secret", "/secret", "a/../../secret", "a/..", "..", "./../secret"] {
        let (made, told) = beside(&[Member::file(name, "x")]);
        assert_eq!(made, [""; 0], "{name}");
        assert_eq!(told.len(), 1, "{name}");
    }
}

#[test]
fn no_link_is_followed_neither_an_old_one_nor_one_of_the_archive() {
    let (made, told) = beside(&[Member::file("up/secret", "x"), Member::file("up/new", "x")]);
    assert_eq!(made, [""; 0]);
    assert_eq!(told[0], "up/secret: there is something here that is no directory");
    let (made, told) = beside(&[
        Member::new(EntryType::Directory, "d/"),
        Member::link("d/l", "."),
        Member::file("d/l/file", "x"),
    ]);
    assert_eq!(made, ["box/d", "box/d/l"]);
    assert_eq!(told, ["d/l/file: there is something here that is no directory"]);
}

#[test]
fn no_link_is_made_that_leads_out() {
    for target in
        ["/etc/passwd", "..", "../secret", "a/../../secret", "a/..", "./../x", "b/../../.."]
    {
        let (made, told) = beside(&[Member::link("l", target)]);
        assert_eq!(made, [""; 0], "{target}");
        assert_eq!(told, ["l: a link that leads out of what was copied"], "{target}");
    }
    // Each is inside by its letters, and together they would not be.
    let (made, told) = beside(&[
        Member::new(EntryType::Directory, "a/"),
        Member::link("a/here", "."),
        Member::link("a/out", "here/here/../../secret"),
    ]);
    assert_eq!(made, ["box/a", "box/a/here"]);
    assert_eq!(told.len(), 1);
    for target in ["b", "a/b", "./a", ".", "a/./b/", "..hidden"] {
        let (made, told) = beside(&[Member::link("l", target)]);
        assert_eq!((made, told), (vec!["box/l".to_owned()], vec![]), "{target}");
    }
    let (made, told) = beside(&[Member::link("a/b/l", "../../x"), Member::link("a/m", "../../x")]);
    assert_eq!(made, ["box/a", "box/a/b", "box/a/b/l"]);
    assert_eq!(told.len(), 1);
    let (_, told) = beside(&[Member::link("l", "")]);
    assert_eq!(told, ["l: a link that leads nowhere"]);
}

#[test]
fn nothing_is_made_but_files_directories_and_links() {
    for (kind, what) in [
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a FIFO"),
        (EntryType::Link, "a second name of another file"),
        (EntryType::new(b'V'), "something that only another tar knows"),
    ] {
        let member = Member { target: "secret".into(), ..Member::new(kind, "x") };
        let (made, told) = beside(&[member, Member::file("after", "x")]);
        assert_eq!(made, ["box/after"], "{kind:?}");
        assert_eq!(told, [format!("x: {what}")]);
    }
}

#[test]
fn set_id_and_strange_modes_are_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let with = |mode, member| Member { mode, ..member };
    let members = [
        with(0o6755, Member::file("file", "x")),
        with(0o7777, Member::new(EntryType::Directory, "dir/")),
        with(0o7777777, Member::file("dir/odd", "x")),
    ];
    unpacked(&archive(&members), dir.path()).unwrap();
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!([mode("file"), mode("dir"), mode("dir/odd")], [0o755, 0o777, 0o777]);
}

#[test]
fn only_what_was_asked_for_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".bashrc"), "mine").unwrap();
    let run = |members: &[Member]| {
        strict(dir.path(), Some("out")).run(&archive(members)[..], &Tally::default())
    };
    for name in [".bashrc", "outer", "./.bashrc"] {
        let error = run(&[Member::file("out", "x"), Member::file(name, "evil")]).unwrap_err();
        assert!(matches!(error, UnpackError::Foreign(_)), "{name}: {error}");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join(".bashrc")).unwrap(), "mine");
    let told = run(&[Member::link("out", ".bashrc")]).unwrap().sentences;
    assert_eq!(told, ["out: a link that leads out of what was copied"]);
}

#[test]
fn what_is_too_long_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        let endless = Member { claims: Some(1 << 40), ..Member::new(kind, "x") };
        let endless = archive(&[endless]);
        let error = unpacked(&endless, dir.path()).unwrap_err();
        assert!(matches!(error, UnpackError::Format(_)), "{kind:?}: {error}");
    }
    let long = Member { content: vec![b'x'; 4000], ..Member::new(EntryType::GNULongName, "") };
    let told = unpacked(&archive(&[long, Member::file("", "x")]), dir.path()).unwrap();
    assert_eq!(told.count, 1, "no file system has such a name");
    let deep =
        Member { content: "d/".repeat(200).into(), ..Member::new(EntryType::GNULongName, "") };
    let told = unpacked(&archive(&[deep, Member::file("", "x")]), dir.path()).unwrap();
    assert!(told.sentences[0].ends_with("too deep"), "{told:?}");
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn sparse_files_are_refused_however_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("sparse")).unwrap().set_len(1 << 20).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let mut tar = Command::new("tar");
        tar.current_dir(dir.path()).args(["-cSf", "-"]).args(format).arg("sparse");
        let archive = tar.output().unwrap();
        assert!(archive.status.success(), "{format:?}");
        let to = tempfile::tempdir().unwrap();
        let error = unpacked(&archive.stdout, to.path()).unwrap_err();
        assert!(matches!(error, UnpackError::Format(_)), "{format:?}: {error}");
        assert_eq!(names(to.path()), [""; 0], "{format:?}");
    }
}

#[test]
fn an_archive_that_ends_early_leaves_no_half_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let members = [Member::file("first", "whole"), Member::file("second", &"x".repeat(2000))];
    let whole = archive(&members);
    for cut in [1100, 1536 + 100, 1536 + 700] {
        let error = unpacked(&whole[..cut], dir.path()).unwrap_err();
        assert!(matches!(error, UnpackError::Archive(_)), "{cut}: {error}");
        assert_eq!(names(dir.path()), ["first"], "{cut}");
    }
    let mut broken = archive(&members);
    broken[1024 + 10] ^= 1;
    let error = unpacked(&broken, dir.path()).unwrap_err();
    assert!(matches!(error, UnpackError::Archive(_)), "a wrong checksum: {error}");
    let error = unpacked(&[b'x'; 2048], dir.path()).unwrap_err();
    assert!(matches!(error, UnpackError::Archive(_)), "{error}");
    assert_eq!(unpacked(&[], dir.path()).unwrap().count, 0);
}

/// A sender that would go on for ever with names that are left out.
struct Flood {
    entry: Vec<u8>,
    at: usize,
    left: usize,
}

impl Read for Flood {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let n = into.len().min(self.entry.len() - self.at);
        into[..n].copy_from_slice(&self.entry[self.at..self.at + n]);
        self.at = (self.at + n) % self.entry.len();
        self.left -= usize::from(self.at == 0);
        Ok(n)
    }
}

#[test]
fn a_million_complaints_are_counted_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut entry = archive(&[Member::new(EntryType::Fifo, "\u{1b}[2Jx")]);
    entry.truncate(512);
    let flood = Flood { entry, at: 0, left: 100_000 };
    let problems = strict(dir.path(), None).run(flood, &Tally::default()).unwrap();
    assert_eq!((problems.sentences.len(), problems.count), (20, 100_000));
    assert_eq!(problems.sentences[0], "?[2Jx: a FIFO");
}

#[test]
fn a_directory_that_may_not_be_written_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let members = [
        Member { mode: 0o500, ..Member::new(EntryType::Directory, "a/") },
        Member::file("a/inside", "x"),
        Member::file("b/no-directory-entry", "x"),
        Member::file("a/again", "x"),
    ];
    unpacked(&archive(&members), dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["a", "a/again", "a/inside", "b", "b/no-directory-entry"]);
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode();
    assert_eq!((mode("a") & 0o777, mode("b") & 0o777), (0o500, 0o755));
}

#[test]
fn after_a_step_that_failed_files_do_not_land_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    std::fs::write(dir.path().join("a/file"), "a file").unwrap();
    let members = [
        Member::file("a/file/x/lost", "x"),
        Member::file("a/file/x/lost-too", "x"),
        Member::file("a/right", "x"),
    ];
    let told = unpacked(&archive(&members), dir.path()).unwrap();
    assert_eq!(told.count, 2);
    assert_eq!(names(dir.path()), ["a", "a/file", "a/right"]);
}
