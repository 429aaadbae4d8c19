//! The rules of what may be found, on made-up findings.

use super::*;

/// What a sandbox would show that holds these generations.
fn showing(life: &Life, blocks: &[u32], disk: [u32; 3], memory: [u32; 2], ticks: u64) -> Seen {
    let mut files = BTreeMap::new();
    let mut add = |label: &str, kind: char, sizes: &[usize], held: &[u32]| {
        for (number, (size, generation)) in sizes.iter().zip(held).enumerate() {
            let name = format!("{kind}{number}");
            let line = file_line(label, &name, *generation);
            files.insert(name, hex(&Sha256::digest(pattern(&line, *size))));
        }
    };
    add(&life.disk_label, 'd', &DISK_FILES, &disk);
    add(&life.memory_label, 't', &MEMORY_FILES, &memory);
    let memory = Some(life.memory_digest(blocks));
    Seen { clock: None, ticks: Some([ticks, ticks, 0]), memory, files }
}

fn life() -> Life {
    Life::new("a", 2)
}

#[test]
fn what_was_acknowledged_must_be_there() {
    let mut life = life();
    let write = life.next_write(1, false);
    life.written(&write, Fate::Acknowledged);
    let new = showing(&life, &[0, 1], [0, 1, 0], [0, 1], 5);
    assert_eq!(life.judge(&new), Vec::<String>::new());
    let old = showing(&life, &[0, 0], [0, 0, 0], [0, 0], 4);
    let wrong = life.judge(&old);
    assert_eq!(wrong.len(), 4, "disk file, memory, tmpfs file, counter: {wrong:?}");
}

#[test]
fn what_was_not_acknowledged_may_be_there_and_is_settled_by_looking() {
    for happened in [0, 1] {
        let mut life = life();
        let write = life.next_write(0, false);
        life.written(&write, Fate::InDoubt);
        let found = showing(&life, &[happened, 0], [happened, 0, 0], [happened, 0], 1);
        assert_eq!(life.judge(&found), Vec::<String>::new());
        let other = showing(&life, &[1 - happened, 0], [1 - happened, 0, 0], [happened, 0], 2);
        assert_eq!(life.judge(&other).len(), 2, "it cannot change its mind");
    }
}

#[test]
fn a_crash_of_the_machine_leaves_what_was_synced_or_newer() {
    let written = |syncs: [bool; 2]| {
        let mut life = life();
        for sync in syncs {
            let write = life.next_write(0, sync);
            life.written(&write, Fate::Acknowledged);
        }
        life.memory_is_lost();
        life
    };
    let fits = |life: &Life, file: u32| {
        let found = showing(life, &[0, 0], [file, 0, 0], [0, 0], 0);
        life.clone().judge(&found).is_empty()
    };
    let life = written([true, false]);
    assert!(!fits(&life, 0) && fits(&life, 1) && fits(&life, 2));
    let life = written([false, true]);
    assert!(!fits(&life, 0) && !fits(&life, 1) && fits(&life, 2));
}

#[test]
fn a_sync_is_for_all_files() {
    let mut life = life();
    for (pick, sync) in [(0, false), (1, true)] {
        let write = life.next_write(pick, sync);
        life.written(&write, Fate::Acknowledged);
    }
    life.memory_is_lost();
    let found = showing(&life, &[0, 0], [0, 2, 0], [0, 0], 0);
    assert_eq!(life.judge_disk(&found).len(), 1, "the first write was synced by the second");
}

#[test]
fn a_silent_worker_is_a_loss_unless_it_was_announced() {
    let mut life = life();
    let mut found = showing(&life, &[0, 0], [0; 3], [0; 2], 1);
    found.memory = None;
    found.ticks = None;
    assert_eq!(life.judge(&found).len(), 2);
    assert_eq!(life.judge_disk(&found), Vec::<String>::new());
    let mut found = showing(&life, &[0, 0], [0; 3], [0; 2], 1);
    found.ticks = Some([9, 3, 1]);
    assert_eq!(life.judge(&found).len(), 1, "the connection broke");
}
