//! What is packed comes out the same.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bhatti_tree::pipe;
use bhatti_tree::{Source, Tally, root_name};

use crate::support::{names, packed, strict, tree, unpacked};

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// A tree with all that is kept, and names of every length.
fn sample(root: &Path) {
    std::fs::create_dir_all(root.join("sub/empty")).unwrap();
    std::fs::write(root.join("run.sh"), "#!/bin/sh\n").unwrap();
    set_mode(&root.join("run.sh"), 0o751);
    set_time(&root.join("run.sh"), 1_234_567_890);
    std::fs::write(root.join("sub/nothing"), "").unwrap();
    std::fs::write(root.join("sub/block"), vec![7; 512]).unwrap();
    std::fs::write(root.join("sub/large"), vec![9; 700_001]).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"sub/not \xff text\n")), "x").unwrap();
    for length in [98, 99, 100, 101, 255] {
        std::fs::write(root.join("x".repeat(length)), length.to_string()).unwrap();
        symlink("y".repeat(length), root.join(format!("link{length}"))).unwrap();
    }
    let deep = root.join("d/".repeat(60));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "deep").unwrap();
    symlink("../run.sh", root.join("sub/up")).unwrap();
    symlink("sub/./large", root.join("down")).unwrap();
    set_mode(&root.join("sub"), 0o500);
    set_time(&root.join("sub"), 1_111_111_111);
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(from.path());
    let (archive, tally) = packed(from.path(), "copy");
    let counted = Tally::default();
    let problems = strict(to.path(), Some("copy")).run(&archive[..], &counted).unwrap();
    assert_eq!(problems.sentences, [""; 0]);
    assert_eq!(tree(&to.path().join("copy")), tree(from.path()));
    assert_eq!(tally.files(), 11);
    assert_eq!((counted.files(), counted.bytes()), (tally.files(), tally.bytes()));
}

#[test]
fn what_is_in_a_directory_goes_into_another() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(from.path());
    let there = tempfile::tempdir_in(to.path()).unwrap();
    set_mode(there.path(), 0o711);
    let (archive, _) = packed(from.path(), ".");
    assert_eq!(unpacked(&archive, there.path()).unwrap().count, 0);
    assert_eq!(tree(there.path()), tree(from.path()));
    let mode = there.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o711, "a directory that was there stays as it is");
}

#[test]
fn a_copy_over_a_copy_replaces_files_and_keeps_the_rest() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(from.path().join("sub")).unwrap();
    std::fs::write(from.path().join("sub/file"), "new").unwrap();
    symlink("file", from.path().join("sub/link")).unwrap();
    symlink("file", from.path().join("sub/other")).unwrap();
    std::fs::create_dir(to.path().join("sub")).unwrap();
    std::fs::write(to.path().join("target"), "untouched").unwrap();
    symlink("../target", to.path().join("sub/file")).unwrap();
    std::fs::write(to.path().join("sub/link"), "a file").unwrap();
    std::fs::create_dir(to.path().join("sub/other")).unwrap();
    std::fs::write(to.path().join("sub/kept"), "kept").unwrap();
    let (archive, _) = packed(from.path(), ".");
    let problems = unpacked(&archive, to.path()).unwrap();
    assert_eq!(problems.sentences, ["./sub/other: there is a directory of that name"]);
    let content = |name: &str| std::fs::read_to_string(to.path().join(name)).unwrap();
    assert_eq!(content("sub/file"), "new");
    assert_eq!(content("target"), "untouched", "a link is replaced, not followed");
    assert_eq!(std::fs::read_link(to.path().join("sub/link")).unwrap(), Path::new("file"));
    assert_eq!(content("sub/kept"), "kept");
    assert_eq!(names(to.path()).len(), 6, "no temporary stays: {:?}", names(to.path()));
}

#[test]
fn one_file_is_an_archive_too() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    std::fs::write(&file, "content").unwrap();
    symlink("file", &link).unwrap();
    let to = tempfile::tempdir().unwrap();
    for (from, name) in [(&file, "a"), (&link, "b")] {
        let (archive, _) = packed(from, name);
        strict(to.path(), Some(name)).run(&archive[..], &Tally::default()).unwrap();
    }
    assert_eq!(names(to.path()), ["a", "b"]);
    assert!(to.path().join("b").symlink_metadata().unwrap().is_file(), "the root is followed");
}

#[test]
fn other_programs_understand_it_and_it_them() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(from.path());
    let (archive, _) = packed(from.path(), "copy");
    let file = to.path().join("archive.tar");
    std::fs::write(&file, archive).unwrap();
    let tar = |args: &[&str]| {
        let output = std::process::Command::new("tar").current_dir(to.path()).args(args).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    tar(&["-xpf", "archive.tar"]);
    assert_eq!(tree(&to.path().join("copy")), tree(from.path()));
    for format in ["gnu", "posix"] {
        tar(&["-cf", "back.tar", &format!("--format={format}"), "copy"]);
        let back = tempfile::tempdir().unwrap();
        let archive = std::fs::read(to.path().join("back.tar")).unwrap();
        assert_eq!(unpacked(&archive, back.path()).unwrap().sentences, [""; 0]);
        assert_eq!(tree(&back.path().join("copy")), tree(from.path()), "{format}");
    }
}

#[test]
fn what_cannot_be_copied_is_told_and_the_rest_is_copied() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&from.path().join("fifo"), mode).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    symlink("/etc/passwd", from.path().join("absolute")).unwrap();
    std::fs::write(from.path().join("file"), "copied").unwrap();
    let deep = from.path().join("d/".repeat(140));
    std::fs::create_dir_all(&deep).unwrap();
    let (archive, _) = packed(from.path(), "copy");
    let problems = unpacked(&archive, to.path()).unwrap();
    let mut told = problems.sentences;
    told.sort();
    assert_eq!(told[1], "copy/absolute: a link that leads out of what was copied");
    assert_eq!(told[2], "copy/fifo: a FIFO");
    assert!(told[0].ends_with("more than 128 directories deep"), "{}", told[0]);
    assert_eq!(told.len(), 3, "a socket is nothing without its program");
    assert_eq!(std::fs::read_to_string(to.path().join("copy/file")).unwrap(), "copied");
}

/// Says `first` once it has been asked for the first time.
struct After<'a>(Option<Box<dyn FnOnce() + 'a>>);

impl io::Write for After<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(first) = self.0.take() {
            first();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_shrinks_keeps_its_place_in_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    std::fs::write(&file, vec![1; 300_000]).unwrap();
    let source = Source::open(&file).unwrap();
    let mut archive = Vec::new();
    let truncate = || File::options().write(true).open(&file).unwrap().set_len(10).unwrap();
    let mut cut = After(Some(Box::new(truncate)));
    let mut both = Tee(&mut cut, &mut archive);
    source.pack(OsStr::new("log"), &mut both, &Tally::default()).unwrap();
    let to = tempfile::tempdir().unwrap();
    let problems = unpacked(&archive, to.path()).unwrap();
    assert_eq!(problems.count, 1);
    assert!(problems.sentences[0].contains("became shorter"), "{:?}", problems.sentences);
    assert_eq!(std::fs::read(to.path().join("log")).unwrap().len(), 300_000);
}

struct Tee<'a, A, B>(&'a mut A, &'a mut B);

impl<A: io::Write, B: io::Write> io::Write for Tee<'_, A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn files_that_do_not_know_their_size_are_copied_too() {
    let path = Path::new("/proc/self/limits");
    let to = tempfile::tempdir().unwrap();
    let (archive, tally) = packed(path, "limits");
    assert_eq!(unpacked(&archive, to.path()).unwrap().sentences, [""; 0]);
    let content = std::fs::read_to_string(to.path().join("limits")).unwrap();
    assert_eq!(content, std::fs::read_to_string(path).unwrap());
    assert_eq!((tally.files(), tally.bytes()), (1, content.len() as u64));
}

#[test]
fn special_files_are_not_opened() {
    for path in ["/dev/zero", "/dev/null"] {
        let error = Source::open(Path::new(path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
    }
    let error = Source::open(Path::new("/no/such")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_root_is_called_what_the_path_says_last() {
    for (path, name) in [
        ("/a/b", "b"),
        ("/a/b/", "b"),
        ("/a/b//", "b"),
        ("b", "b"),
        ("/a/b/.", "."),
        ("/a/b/./", "."),
        (".", "."),
        ("./", "."),
        ("a/..", "."),
        ("/", "."),
        ("a.", "a."),
    ] {
        assert_eq!(root_name(Path::new(path)), name, "{path}");
    }
}

#[test]
fn a_pipe_passes_everything_on_and_every_error() {
    let content: Vec<u8> = (0..3 * pipe::CHUNK + 17).map(|n| n as u8).collect();
    let through = |outcome: io::Result<()>| {
        let (mut out, mut pieces) = pipe::from_thread();
        let (sender, mut reader) = pipe::to_thread();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let written = io::Write::write_all(&mut out, &content);
                out.finish(written.and(outcome));
            });
            scope.spawn(move || {
                while let Some(piece) = pieces.blocking_recv() {
                    sender.blocking_send(piece).unwrap();
                }
            });
            let mut arrived = Vec::new();
            reader.read_to_end(&mut arrived).map(|_| arrived)
        })
    };
    assert!(through(Ok(())).unwrap() == content);
    let broken = through(Err(io::Error::other("half-way"))).unwrap_err();
    assert_eq!(broken.to_string(), "half-way");
    let (mut out, pieces) = pipe::from_thread();
    drop(pieces);
    let alone = std::thread::spawn(move || io::Write::write_all(&mut out, &[0; 3 * pipe::CHUNK]));
    assert_eq!(alone.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}
