//! The layout on a real file system.

mod sleep;

use super::*;

fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("data")).unwrap();
    (dir, path)
}

#[test]
fn one_daemon_at_a_time() {
    let (_dir, root) = scratch();
    let first = Layout::open(&root).unwrap();
    assert!(matches!(Layout::open(&root), Err(DiskError::Locked { .. })));
    drop(first);
    Layout::open(&root).unwrap();
}

#[test]
fn a_foreign_or_impossible_directory_is_refused() {
    let (dir, root) = scratch();
    std::fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(12345), None).expect("tests run as root");
    assert!(matches!(Layout::open(&root), Err(DiskError::Foreign { uid: 12345, .. })));
    let file = Utf8PathBuf::from_path_buf(dir.path().join("file")).unwrap();
    std::fs::write(&file, "").unwrap();
    assert!(matches!(Layout::open(&file), Err(DiskError::NotADirectory { .. })));
}

#[test]
fn a_replaced_image_stays_under_the_disks_that_stand_on_it() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let (id, image) = (EngineId::random(), layout.images().join("x.ext4"));
    std::fs::write(&image, "old").unwrap();
    let base = layout.pin_image(&id, &image).unwrap();
    std::fs::write(root.join("new"), "new").unwrap();
    std::fs::rename(root.join("new"), &image).unwrap();
    assert_eq!(std::fs::read_to_string(&base).unwrap(), "old");
    assert_eq!(layout.pin_image(&id, &image).unwrap(), base);
    assert_eq!(std::fs::read_to_string(&base).unwrap(), "new");
    layout.remove_sandbox(&id).unwrap();
    assert!(!base.exists());
    layout.pin_image(&id, &image).unwrap();
    assert_eq!(layout.sweep(&[], &[], &[]).unwrap(), [base]);
}

#[test]
fn sandbox_directories_are_private_and_swept() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let (kept, gone) = (EngineId::random(), EngineId::random());
    let dir = layout.make_sandbox(&kept, 4242).unwrap();
    layout.make_sandbox(&gone, 4243).unwrap();
    std::fs::create_dir(root.join("sandboxes/someone-elses")).unwrap();
    let metadata = dir.metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (4242, 0o700));
    assert!(layout.make_sandbox(&kept, 1).is_err(), "an id is never reused");
    let keep = std::slice::from_ref(&kept);
    assert_eq!(layout.sweep(keep, &[], &[]).unwrap(), [layout.sandbox(&gone)]);
    assert!(dir.exists() && root.join("sandboxes/someone-elses").exists());
    layout.remove_sandbox(&kept).unwrap();
    layout.remove_sandbox(&kept).unwrap();
}
