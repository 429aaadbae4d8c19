//! Goldens, generations, layers, named snapshots: made, shared, removed, swept.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bhatti_types::{EngineId, GoldenId, SnapshotId};
use camino::{Utf8Path, Utf8PathBuf};

use super::scratch;
use crate::{DiskError, Layout, bytes_of, link_tree, sync_tree};

fn put(dir: &Utf8Path, name: &str, text: &str) -> Utf8PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn inode(path: &Utf8Path) -> u64 {
    path.metadata().unwrap().ino()
}

fn names(dir: &Utf8Path) -> Vec<String> {
    let entries = dir.read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

/// Everything of ours below the data directory but the parts themselves.
fn left(root: &Utf8Path) -> Vec<String> {
    let parts = ["bases", "frozen", "goldens", "layers", "sandboxes", "snapshots"];
    parts.iter().flat_map(|part| names(&root.join(part))).collect()
}

/// The steps of a machine's life that leave something on disk, each on its own.
fn steps(layout: &Layout) -> Vec<Box<dyn Fn() + '_>> {
    let id = EngineId::random();
    let (golden, snapshot) = (GoldenId::random(), SnapshotId::random());
    let (cold, image) = (layout.frozen(&id, 1), layout.images().join("x.ext4"));
    let (base, named) = (layout.golden(&golden), layout.snapshot(&snapshot));
    let from = cold.clone();
    vec![
        Box::new(move || drop(layout.make_golden(&golden).unwrap())),
        Box::new({
            let base = base.clone();
            move || drop((put(&base, "mem-000", "memory"), put(&base, "disk.qcow2", "disk")))
        }),
        Box::new({
            let id = id.clone();
            move || drop(layout.make_sandbox(&id, 4242).unwrap())
        }),
        Box::new({
            let id = id.clone();
            move || {
                std::fs::write(&image, "image").unwrap();
                layout.pin_image(&id, &image).unwrap();
            }
        }),
        Box::new({
            let id = id.clone();
            move || drop(layout.make_layers(&id).unwrap())
        }),
        Box::new({
            let id = id.clone();
            move || drop(layout.link_layer(&id, 1, &base.join("disk.qcow2")).unwrap())
        }),
        Box::new(move || drop(layout.make_frozen(&id, 1).unwrap())),
        Box::new(move || drop(put(&cold, "state", "state"))),
        Box::new(move || drop(layout.make_snapshot(&snapshot).unwrap())),
        Box::new(move || assert_eq!(link_tree(&from, &named).unwrap(), 5)),
    ]
}

#[test]
fn a_crash_after_any_step_leaves_what_a_sweep_removes() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let count = steps(&layout).len();
    for done in 1..=count {
        for step in steps(&layout).iter().take(done) {
            step();
        }
        assert!(!left(&root).is_empty());
        assert!(!layout.sweep(&[], &[], &[]).unwrap().is_empty());
        assert_eq!(left(&root), [] as [&str; 0], "after step {done}");
    }
}

#[test]
fn a_removal_that_was_cut_short_is_finished_by_a_sweep() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    for cut in ["sandboxes", "frozen", "layers", "bases"] {
        for step in &steps(&layout) {
            step();
        }
        // What a crash leaves of a machine whose removal got this far.
        for part in ["sandboxes", "frozen", "layers", "bases"] {
            for name in names(&root.join(part)) {
                let path = root.join(part).join(name);
                if path.is_dir() {
                    std::fs::remove_dir_all(path).unwrap();
                } else {
                    std::fs::remove_file(path).unwrap();
                }
            }
            if part == cut {
                break;
            }
        }
        layout.sweep(&[], &[], &[]).unwrap();
        assert_eq!(left(&root), [] as [&str; 0], "cut after {cut}");
    }
}

#[test]
fn everything_of_sleep_is_private_and_starts_empty() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let (id, golden, snapshot) = (EngineId::random(), GoldenId::random(), SnapshotId::random());
    let make = || {
        let mut made = vec![layout.make_golden(&golden).unwrap()];
        made.push(layout.make_snapshot(&snapshot).unwrap());
        made.push(layout.make_frozen(&id, 7).unwrap());
        made
    };
    let made = make();
    let expected = [layout.golden(&golden), layout.snapshot(&snapshot), layout.frozen(&id, 7)];
    assert_eq!(made, expected);
    for dir in &made {
        put(dir, "half", "a leftover");
    }
    let mut again = make();
    again.push(layout.make_layers(&id).unwrap());
    let parted = SnapshotId::random();
    put(&layout.make_snapshot(&parted).unwrap(), "half", "a leftover");
    layout.make_snapshot_parts(&parted).unwrap();
    assert_eq!(names(&layout.snapshot(&parted)), ["disk", "memory"]);
    again.extend([layout.snapshot_memory(&parted), layout.snapshot_disk(&parted)]);
    for dir in &again {
        assert_eq!(names(dir), [] as [&str; 0], "{dir}");
        for dir in dir.ancestors().take_while(|dir| *dir != root) {
            let mode = dir.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o700, "{dir}");
        }
    }
    for _ in 0..2 {
        layout.remove_golden(&golden).unwrap();
        layout.remove_snapshot(&snapshot).unwrap();
        layout.remove_frozen(&id, 7).unwrap();
    }
    assert!(made.iter().all(|dir| !dir.exists()));
}

#[test]
fn a_sweep_keeps_what_is_known_and_what_is_not_ours() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let machines = [EngineId::random(), EngineId::random()];
    let goldens = [GoldenId::random(), GoldenId::random()];
    let snapshots = [SnapshotId::random(), SnapshotId::random()];
    for i in 0..2 {
        layout.make_frozen(&machines[i], 1).unwrap();
        layout.make_golden(&goldens[i]).unwrap();
        layout.make_snapshot(&snapshots[i]).unwrap();
    }
    for part in ["frozen", "goldens", "layers", "snapshots"] {
        put(&root.join(part), "lost+found", "");
    }
    let gone = layout.sweep(&machines[..1], &goldens[..1], &snapshots[..1]).unwrap();
    let of_machine = root.join("frozen").join(machines[1].as_str());
    assert_eq!(gone, [of_machine, layout.golden(&goldens[1]), layout.snapshot(&snapshots[1])]);
    assert!(gone.iter().all(|path| !path.exists()));
    assert!(layout.frozen(&machines[0], 1).exists() && layout.golden(&goldens[0]).exists());
    assert!(layout.snapshot(&snapshots[0]).exists());
    assert_eq!(left(&root).iter().filter(|name| *name == "lost+found").count(), 4);
}

#[test]
fn generations_and_layers_are_swept_by_number() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let (id, other) = (EngineId::random(), EngineId::random());
    for machine in [&id, &other] {
        layout.make_layers(machine).unwrap();
        for number in [1, 2, 10] {
            layout.make_frozen(machine, number).unwrap();
            std::fs::write(layout.layer(machine, number), "").unwrap();
        }
    }
    put(&root.join("layers").join(id.as_str()), "notes.txt", "");
    let mut gone = layout.sweep_frozen(&id, &[10, 3]).unwrap();
    gone.sort();
    assert_eq!(gone, [layout.frozen(&id, 1), layout.frozen(&id, 2)]);
    assert!(layout.frozen(&id, 10).exists());

    // The record calls the data directory by another name; the other machine's do not count.
    let elsewhere = Utf8PathBuf::from("/elsewhere/layers").join(id.as_str()).join("10.qcow2");
    let keep = [layout.layer(&id, 1), elsewhere, layout.layer(&other, 2)];
    assert_eq!(layout.sweep_layers(&id, &keep).unwrap(), [layout.layer(&id, 2)]);
    let dir = root.join("layers").join(id.as_str());
    assert_eq!(names(&dir), ["1.qcow2", "10.qcow2", "notes.txt"]);
    assert!([1, 2, 10].iter().all(|n| layout.layer(&other, *n).exists()));
    assert!([1, 2, 10].iter().all(|n| layout.frozen(&other, *n).exists()));
    let never = EngineId::random();
    assert_eq!(layout.sweep_frozen(&never, &[]).unwrap(), [] as [&str; 0]);
    assert_eq!(layout.sweep_layers(&never, &[]).unwrap(), [] as [&str; 0]);
}

#[test]
fn a_linked_layer_outlives_its_golden() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let (id, golden) = (EngineId::random(), GoldenId::random());
    let disk = put(&layout.make_golden(&golden).unwrap(), "disk.qcow2", "disk");
    let layer = layout.link_layer(&id, 4, &disk).unwrap();
    assert_eq!((&layer, inode(&layer)), (&layout.layer(&id, 4), inode(&disk)));
    let newer = put(&layout.golden(&golden), "newer.qcow2", "newer");
    assert_eq!(layout.link_layer(&id, 4, &newer).unwrap(), layer);
    layout.remove_golden(&golden).unwrap();
    assert_eq!(std::fs::read_to_string(&layer).unwrap(), "newer");
    let missing = layout.link_layer(&id, 4, &disk);
    assert!(matches!(missing, Err(DiskError::File { .. })), "{missing:?}");
    let no_file = layout.link_layer(&id, 4, &root);
    assert!(matches!(no_file, Err(DiskError::NotAFile { .. })), "{no_file:?}");
    assert_eq!(std::fs::read_to_string(&layer).unwrap(), "newer", "a refusal costs nothing");
}

#[test]
fn a_linked_tree_is_whole_or_refused() {
    let (_dir, root) = scratch();
    let layout = Layout::open(&root).unwrap();
    let id = EngineId::random();
    let from = layout.make_frozen(&id, 1).unwrap();
    let files = [put(&from, "manifest.json", "{}"), put(&from, "mem-000", "memory")];
    let into = || layout.make_snapshot(&SnapshotId::random()).unwrap();
    let to = into();
    assert_eq!(link_tree(&from, &to).unwrap(), 8);
    assert_eq!((bytes_of(&from).unwrap(), bytes_of(&to).unwrap()), (8, 8));
    for file in &files {
        assert_eq!(inode(&to.join(file.file_name().unwrap())), inode(file));
    }
    sync_tree(&to).unwrap();
    let twice = link_tree(&from, &to);
    assert!(matches!(twice, Err(DiskError::File { .. })), "{twice:?}");

    std::os::unix::fs::symlink("/etc/shadow", from.join("odd")).unwrap();
    for odd in ["a symbolic link", "a directory"] {
        let refused = [link_tree(&from, &into()).map(drop), sync_tree(&from)];
        for refused in refused.into_iter().chain([bytes_of(&from).map(drop)]) {
            let Err(DiskError::NotAFile { path }) = refused else { panic!("{odd}: {refused:?}") };
            assert_eq!(path, from.join("odd"));
        }
        std::fs::remove_file(from.join("odd")).ok();
        std::fs::create_dir_all(from.join("odd")).unwrap();
    }
    layout.remove_frozen(&id, 1).unwrap();
    assert!(matches!(sync_tree(&from), Err(DiskError::File { .. })));
    assert_eq!(bytes_of(&to).unwrap(), 8, "the snapshot stays when the generation goes");
}

#[test]
fn a_link_that_cannot_be_made_says_why() {
    use nix::mount::{MsFlags, mount};
    let (_dir, root) = scratch();
    // Mounts in a namespace that goes with its only thread.
    let test = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("tests run as root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        std::fs::create_dir(&root).unwrap();
        let elsewhere = put(root.parent().unwrap(), "disk.qcow2", "");
        // Room for the layout and little else: on tmpfs a name costs what a file costs.
        let options = Some("size=1m,nr_inodes=24,mode=0711");
        mount(Some("none"), root.as_str(), Some("tmpfs"), MsFlags::empty(), options).unwrap();
        let layout = Layout::open(&root).unwrap();
        let id = EngineId::random();
        let crossed = layout.link_layer(&id, 0, &elsewhere).unwrap_err();
        assert!(matches!(crossed, DiskError::OtherFileSystem { .. }), "{crossed:?}");
        let disk = put(&layout.make_golden(&GoldenId::random()).unwrap(), "disk.qcow2", "");
        let full = (1..24).find_map(|number| layout.link_layer(&id, number, &disk).err());
        assert!(matches!(full, Some(DiskError::Full { .. })), "{full:?}");
        let full = layout.make_frozen(&id, 1).unwrap_err();
        assert!(matches!(full, DiskError::Full { .. }), "{full:?}");
        // Removing needs no room.
        layout.sweep(&[], &[], &[]).unwrap();
        layout.make_frozen(&id, 1).unwrap();
    };
    std::thread::spawn(test).join().unwrap();
}
