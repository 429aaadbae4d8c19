//! Identity files in a scratch directory that plays `/etc`.

use super::*;

const A: &str = "0123456789abcdef0123456789abcdef";
const B: &str = "ffffffffffffffffffffffffffffffff";

fn identify(etc: &Path, hostname: &str, machine_id: &str) {
    let problems = write_identity(etc, hostname, machine_id);
    assert!(problems.is_empty(), "{problems:?}");
}

fn read(etc: &Path, name: &str) -> String {
    std::fs::read_to_string(etc.join(name)).unwrap()
}

#[test]
fn the_host_decides_the_machine_id() {
    let etc = tempfile::tempdir().unwrap();
    std::fs::write(etc.path().join("machine-id"), "uninitialized\n").unwrap();
    for id in [A, B, A] {
        identify(etc.path(), "one", id);
        assert_eq!(read(etc.path(), "machine-id"), format!("{id}\n"));
    }
    // The same without a line break is the same: nothing is written.
    std::fs::write(etc.path().join("machine-id"), A).unwrap();
    identify(etc.path(), "one", A);
    assert_eq!(read(etc.path(), "machine-id"), A);
}

#[test]
fn without_a_word_from_the_host_the_machine_id_stays() {
    let etc = tempfile::tempdir().unwrap();
    identify(etc.path(), "one", "");
    let made = read(etc.path(), "machine-id");
    assert!(is_machine_id(made.trim()), "{made:?}");
    identify(etc.path(), "another-name", "");
    assert_eq!(read(etc.path(), "machine-id"), made);
    assert_eq!(read(etc.path(), "hostname"), "another-name\n");
}

#[test]
fn machine_ids_are_told_from_other_text() {
    assert!(is_machine_id(A));
    let (upper, long) = (A.to_uppercase(), format!("{A}0"));
    for bad in ["", "abc", "uninitialized", upper.as_str(), long.as_str()] {
        assert!(!is_machine_id(bad), "{bad}");
    }
}

#[test]
fn hosts_keeps_the_lines_of_others_and_replaces_ours() {
    let etc = tempfile::tempdir().unwrap();
    std::fs::write(etc.path().join("hosts"), "10.0.0.1 db\n").unwrap();
    identify(etc.path(), "one", A);
    identify(etc.path(), "two", A);
    assert_eq!(read(etc.path(), "hosts"), format!("{}10.0.0.1 db\n", own_lines(Some("two"))));
}

#[test]
fn a_hosts_file_that_cannot_be_read_is_left_alone() {
    let etc = tempfile::tempdir().unwrap();
    let hosts = "10.0.0.1 blocked\n".repeat(300_000);
    std::fs::write(etc.path().join("hosts"), &hosts).unwrap();
    let problems = write_identity(etc.path(), "one", A);
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(problem.to_string(), "failed to read hosts");
    assert!(read(etc.path(), "hosts") == hosts);
    assert_eq!(read(etc.path(), "hostname"), "one\n", "the others are written");
    assert_eq!(read(etc.path(), "machine-id").trim(), A);
}

#[test]
fn a_directory_nobody_can_write_to_is_reported_file_by_file() {
    // A file in the place of the directory fails for root too, as a full disk does.
    let etc = tempfile::NamedTempFile::new().unwrap();
    let names: Vec<_> =
        write_identity(etc.path(), "one", A).iter().map(|problem| problem.name).collect();
    assert_eq!(names, ["machine-id", "hostname", "hosts"]);
    assert!(write_resolvers(etc.path(), &[]).is_err());
}

#[test]
fn a_name_that_is_no_word_stays_out_of_the_files() {
    let etc = tempfile::tempdir().unwrap();
    std::fs::write(etc.path().join("hostname"), "image\n").unwrap();
    for name in ["a b", "a\n6.6.6.6 bank", "#", ""] {
        identify(etc.path(), name, A);
        assert_eq!(read(etc.path(), "hostname"), "image\n");
        assert_eq!(read(etc.path(), "hosts"), own_lines(None));
    }
    identify(etc.path(), "my_box", A);
    assert_eq!(read(etc.path(), "hostname"), "my_box\n");
}

#[test]
fn resolvers_replace_a_dangling_link() {
    let etc = tempfile::tempdir().unwrap();
    let path = etc.path().join("resolv.conf");
    std::os::unix::fs::symlink("/run/systemd/resolve/stub-resolv.conf", &path).unwrap();
    write_resolvers(etc.path(), &["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
        .unwrap();
    assert_eq!(read(etc.path(), "resolv.conf"), "nameserver 10.1.0.1\nnameserver fd00::1\n");
}

#[test]
fn our_lines_have_one_length_and_one_sector() {
    let longest = "x".repeat(64);
    for name in [None, Some("a"), Some("ü"), Some(longest.as_str())] {
        assert_eq!(own_lines(name).len(), own_lines(None).len(), "{name:?}");
        assert!(own_lines(name).len() <= 512);
    }
    assert_eq!(
        own_lines(Some("box")).lines().next().unwrap().split_whitespace().nth(2),
        Some("box")
    );
}

#[test]
fn another_name_is_written_in_place_and_nothing_of_the_former_stays() {
    let etc = tempfile::tempdir().unwrap();
    std::fs::write(etc.path().join("hosts"), "10.0.0.1 db\n").unwrap();
    identify(etc.path(), "a-golden-snapshot", A);
    assert!(write_resolvers(etc.path(), &["10.0.0.1".parse().unwrap()]).is_ok());
    let inode = |name: &str| std::fs::metadata(etc.path().join(name)).unwrap().ino();
    let names = ["hosts", "hostname", "machine-id", "resolv.conf"];
    let before = names.map(inode);
    identify(etc.path(), "box", B);
    assert!(write_resolvers(etc.path(), &["10.64.12.1".parse().unwrap()]).is_ok());
    assert_eq!(names.map(inode), before);
    assert_eq!(read(etc.path(), "hosts"), format!("{}10.0.0.1 db\n", own_lines(Some("box"))));
    assert_eq!(read(etc.path(), "hostname"), "box\n");
    assert_eq!(read(etc.path(), "machine-id"), format!("{B}\n"));
    assert_eq!(read(etc.path(), "resolv.conf"), "nameserver 10.64.12.1\n");
}
