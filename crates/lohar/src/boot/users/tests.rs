//! Account files of real images, before and after.

use super::*;
use std::os::unix::fs::MetadataExt;

const DEBIAN: &str =
    "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";

/// Planning twice changes nothing the second time, and the account stays the same.
fn check(passwd: &str, group: &str, shadow: Option<&str>) -> Plan {
    let first = plan(passwd, group, shadow, "/bin/bash");
    let second = plan(&first.passwd, &first.group, first.shadow.as_deref(), "/bin/bash");
    assert_eq!(first, second);
    assert!(first.passwd.starts_with(passwd), "records of the image are kept as they are");
    assert_eq!(records(&first.passwd).filter(|fields| number(fields, 2) == Some(UID)).count(), 1);
    assert!(records(&first.group).any(|fields| number(&fields, 2) == Some(GID)));
    first
}

#[test]
fn a_plain_image_gets_the_account() {
    let plan = check(DEBIAN, "root:x:0:\n", Some("root:*:19700:0:99999:7:::\n"));
    assert!(plan.passwd.ends_with("\nlohar:x:1000:1000:lohar:/home/lohar:/bin/bash\n"));
    assert!(plan.group.ends_with("\nlohar:x:1000:\n"));
    assert!(plan.shadow.unwrap().ends_with("\nlohar:*:19700:0:99999:7:::\n"));
    assert_eq!(plan.account.home, "/home/lohar");
}

#[test]
fn an_image_with_its_own_uid_1000_keeps_it() {
    let passwd = format!("{DEBIAN}node:x:1000:1001::/home/node:/bin/bash");
    let plan = check(&passwd, "root:x:0:\nnode:x:1000:\n", Some("node:!:1::::::\n"));
    assert_eq!(plan.account.name, "node");
    assert_eq!(plan.account.login_gid, 1001);
    assert!(!plan.passwd.contains("lohar"));
    assert!(!plan.shadow.unwrap().contains("lohar"));
}

#[test]
fn a_service_account_with_uid_1000_gets_a_home_and_a_shell() {
    let plan = check("app:x:1000:1000::/:/sbin/nologin\n", "", None);
    assert_eq!(plan.account.home, "/home/app");
    assert_eq!(plan.account.shell, "/bin/bash");
}

#[test]
fn an_empty_image_gets_a_root_too() {
    let plan = check("", "", None);
    assert!(plan.passwd.starts_with("root:x:0:0:"));
    assert_eq!(plan.shadow, None);
}

#[test]
fn a_taken_name_is_not_taken_again() {
    let plan = check("lohar:x:7:7::/var/lohar:/bin/sh\n", "lohar:x:7:\n", None);
    assert_eq!(plan.account.name, "bhatti");
    assert!(plan.group.contains("bhatti:x:1000:"));
}

#[test]
fn garbage_lines_are_left_alone() {
    let plan = check("#comment\n:::\nx\nroot:x:zero:0\n", "\n:\n", None);
    assert_eq!(plan.account.name, "lohar");
}

#[test]
fn groups_are_those_that_list_the_user() {
    let group = "sudo:x:27:lohar\ndocker:x:999:a,lohar , b\nlohar:x:1000:\nbad:x:?:lohar\nother:x:5:lohart\n";
    assert_eq!(groups_of(group, "lohar"), [27, 999]);
}

#[test]
fn the_plan_reaches_the_disk_once() {
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc");
    std::fs::create_dir_all(etc.join("sudoers.d")).unwrap();
    std::fs::create_dir_all(etc.join("skel")).unwrap();
    std::fs::write(etc.join("skel/.profile"), "# hi\n").unwrap();
    std::fs::write(etc.join("passwd"), DEBIAN).unwrap();
    if std::fs::metadata(&etc).unwrap().uid() != 0 {
        // Giving files to uid 1000 needs root; the tests of `plan` above do not.
        return;
    }
    let ensure = || {
        let (account, problems) = ensure_user(root.path());
        assert!(problems.is_empty(), "{problems:?}");
        account
    };
    let account = ensure();
    assert_eq!(account.shell, "/bin/sh", "no bash in this image");
    let home = root.path().join("home/lohar").metadata().unwrap();
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o777), (UID, GID, 0o755));
    assert_eq!(root.path().join("home/lohar/.profile").metadata().unwrap().uid(), UID);
    assert_eq!(root.path().join("workspace").metadata().unwrap().uid(), UID);
    assert_eq!(etc.join("sudoers.d/lohar").metadata().unwrap().mode() & 0o7777, 0o440);
    let passwd = etc.join("passwd");
    let before = passwd.metadata().unwrap().ino();
    assert_eq!(ensure(), account);
    assert_eq!(passwd.metadata().unwrap().ino(), before, "not rewritten");
}

#[test]
fn a_broken_account_file_costs_only_itself() {
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc");
    std::fs::create_dir_all(etc.join("passwd")).unwrap();
    std::fs::write(etc.join("group"), "root:x:0:\n").unwrap();
    let big = "x".repeat(5 << 20);
    std::fs::write(etc.join("shadow"), &big).unwrap();
    // Only root can give away the home; that is not what this is about.
    let (account, problems) = ensure_user(root.path());
    let said: Vec<_> = problems.iter().map(|problem| problem.to_string()).collect();
    for name in ["passwd", "shadow"] {
        let expected = format!("failed to read {}", etc.join(name).display());
        assert!(said.contains(&expected), "{said:?}");
    }
    assert_eq!((account.name.as_str(), account.home.as_str()), ("lohar", "/home/lohar"));
    assert!(etc.join("passwd").is_dir());
    assert!(std::fs::read_to_string(etc.join("shadow")).unwrap() == big);
    assert!(std::fs::read_to_string(etc.join("group")).unwrap().contains(":1000:"));
}

#[test]
fn a_machine_that_takes_no_file_still_has_an_account() {
    let root = tempfile::tempdir().unwrap();
    // Fails for root too, as a full or read-only disk does.
    for name in ["etc", "home", "workspace"] {
        std::fs::write(root.path().join(name), "").unwrap();
    }
    let (account, problems) = ensure_user(root.path());
    assert_eq!(account.name, "lohar");
    assert!(problems.len() >= 3, "{problems:?}");
}
