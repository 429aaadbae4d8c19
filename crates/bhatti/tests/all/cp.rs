//! `bhatti cp` and `bhatti file` against servers that answer what they should not.

use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tar::{EntryType, Header};

use super::world::{Ending, Ran, World, read};

/// The answer to the look at the source: a directory, or a file.
fn looked(is_dir: bool) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nx-file-size: 1\r\nx-file-mode: 0755\r\nx-file-isdir: {is_dir}\r\n\r\n"
    )
    .into_bytes()
}

fn answer(content: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", content.len());
    [head.as_bytes(), content].concat()
}

/// An archive of one entry each, with these names whatever they are.
fn archive(members: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, name, content) in members {
        let mut header = Header::new_gnu();
        let is_link = kind.is_symlink();
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        if is_link {
            fields.linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        if !is_link {
            out.extend_from_slice(content.as_bytes());
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.resize(out.len() + 1024, 0);
    out
}

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;

/// What `bhatti cp dev:/out .` does in a home with something to lose.
fn copied(answers: Vec<Vec<u8>>) -> (World, Ran) {
    copied_with(&["cp", "dev:/out", "."], answers)
}

fn copied_with(args: &[&str], answers: Vec<Vec<u8>>) -> (World, Ran) {
    let world = World::with_bytes(VecDeque::from(answers), Ending::Close);
    std::fs::create_dir(world.path("here")).unwrap();
    std::fs::write(world.path("here/.bashrc"), "mine").unwrap();
    std::fs::write(world.path("secret"), "mine").unwrap();
    let mut command = world.command(args);
    command.current_dir(world.path("here"));
    let ran = super::world::ran(&mut command);
    assert_eq!(read(&world.path("here/.bashrc")), "mine");
    assert_eq!(read(&world.path("secret")), "mine");
    (world, ran)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn only_what_was_asked_for_is_taken() {
    for name in [".bashrc", "../secret", "/etc/evil", "out/../../secret", "other"] {
        let evil = archive(&[(FILE, "out", "fine"), (FILE, name, "evil")]);
        let (world, ran) = copied(vec![looked(false), answer(&evil)]);
        assert_eq!(ran.code, Some(1), "{name}: {ran:?}");
        assert_eq!(names(&world.path("here")), [".bashrc", "out"], "{name}: {ran:?}");
    }
    let (_, ran) = copied(vec![looked(false), answer(&archive(&[(FILE, ".bashrc", "evil")]))]);
    assert_eq!(ran.stderr, "Error: .bashrc was sent, which was not asked for\n");
}

#[test]
fn what_leads_out_or_is_no_file_is_named_and_left_out() {
    let evil = archive(&[
        (DIR, "out/", ""),
        (EntryType::Symlink, "out/up", "../.bashrc"),
        (EntryType::Symlink, "out/etc", "/etc"),
        (FILE, "out/etc/evil", "x"),
        (EntryType::Char, "out/\u{1b}[2Jdev", ""),
        (FILE, "out/run", "x"),
    ]);
    let (world, ran) = copied(vec![looked(true), answer(&evil)]);
    let wanted = "left out: out/up: a link that leads out of what was copied\n\
                  left out: out/etc: a link that leads out of what was copied\n\
                  left out: out/?[2Jdev: a device\n";
    ran.check(1, "copied 2 files (2 B)\n", wanted);
    assert_eq!(names(&world.path("here/out")), ["etc", "run"], "etc is a directory of our own");
    let mode = world.path("here/out/run").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "no set-id");
}

#[test]
fn all_links_are_kept_if_asked_for_and_none_is_followed() {
    let evil = archive(&[
        (DIR, "out/", ""),
        (EntryType::Symlink, "out/up", "../.bashrc"),
        (EntryType::Symlink, "out/home", ".."),
        (FILE, "out/home/.bashrc", "evil"),
        (FILE, "out/up", "a file in its place"),
        (EntryType::Symlink, "out/etc", "/etc"),
    ]);
    let answers = vec![looked(true), answer(&evil)];
    let (world, ran) = copied_with(&["cp", "--all-links", "dev:/out", "."], answers);
    let wanted = "left out: out/home/.bashrc: there is something here that is no directory\n";
    ran.check(1, "copied 1 file (19 B)\n", wanted);
    let link = |name: &str| std::fs::read_link(world.path("here/out").join(name)).unwrap();
    assert_eq!([link("home"), link("etc")], ["..".into(), Path::new("/etc").to_owned()]);
    assert_eq!(read(&world.path("here/out/up")), "a file in its place");
}

#[test]
fn a_transfer_that_breaks_off_is_an_error_and_leaves_no_half_a_file() {
    let whole =
        archive(&[(DIR, "out/", ""), (FILE, "out/a", "x"), (FILE, "out/b", &"y".repeat(3000))]);
    for cut in [600, 1600, 2100, 4000] {
        let mut cut_off = answer(&whole);
        cut_off.truncate(cut_off.len() - whole.len() + cut);
        let (world, ran) = copied(vec![looked(true), cut_off]);
        assert_eq!(ran.code, Some(1), "{cut}: {ran:?}");
        assert!(ran.stderr.contains("the transfer broke off"), "{cut}: {ran:?}");
        assert!(!world.path("here/out/b").exists(), "{cut}");
    }
    let (_, ran) = copied(vec![looked(true), answer(b"<html>no archive at all</html>")]);
    assert!(ran.code == Some(1) && ran.stderr.starts_with("Error: the archive"), "{ran:?}");
}

#[test]
fn bytes_are_printed_as_they_are_and_errors_name_the_file() {
    let missing = r#"{"error":"file not found"}"#;
    let world = World::with(&[("404 Not Found", "", missing)]);
    let wanted = "Error: 404 Not Found: file not found: /a/b\n";
    world.run(&["file", "read", "dev", "/a/b"]).check(1, "", wanted);
    assert_eq!(world.requests(), ["GET /sandboxes/dev/files?path=%2Fa%2Fb"]);
    let world = World::with(&[("200 OK", "", "one\ntwo")]);
    world.run(&["file", "read", "dev", "x"]).check(0, "one\ntwo", "");
    let world = World::with_bytes(
        VecDeque::from([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_vec()]),
        Ending::Close,
    );
    let ran = world.run(&["file", "read", "dev", "x"]);
    assert_eq!((ran.code, &ran.stdout[..]), (Some(1), "half"));
    assert!(ran.stderr.starts_with("Error: the transfer broke off"), "{ran:?}");
    let world = World::with(&[("200 OK", "", "{\"status\":\"ok\"}\n")]);
    world.run(&["file", "write", "--mode", "750", "dev", "/x"]).check(0, "ok\n", "");
    assert_eq!(world.requests(), ["PUT /sandboxes/dev/files?path=%2Fx&mode=0750"]);
    let ran = World::new().run(&["file", "write", "--mode", "9", "dev", "/x"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("octal number"), "{ran:?}");
}
