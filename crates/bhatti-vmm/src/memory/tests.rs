//! Saving, loading and sharing the memory of real processes.

pub(crate) mod machine;

use std::os::unix::fs::{FileExt, MetadataExt};

use camino::{Utf8Path, Utf8PathBuf};

use super::MemoryError;
use super::chain::{self, MOST_LAYERS};
use super::mapping::Ground;
use super::pages::{PAGE, PageSet};
use super::template::{Template, Templates};
use machine::Machine;

/// 16 MiB, but a little odd.
const PAGES: u32 = 4099;
const BYTES: u64 = PAGES as u64 * PAGE as u64;

/// Directories for snapshots, gone with it.
pub(crate) struct Shelf(tempfile::TempDir);

impl Shelf {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// An empty directory.
    pub(crate) fn dir(&self, name: &str) -> Utf8PathBuf {
        let dir = Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap();
        std::fs::create_dir(&dir).unwrap();
        dir
    }
}

/// Saves and says how many pages of data were written.
fn save(machine: &Machine, into: &Utf8Path, since: Option<&Utf8Path>) -> u64 {
    save_over(machine, into, since, None)
}

fn save_over(
    machine: &Machine,
    into: &Utf8Path,
    since: Option<&Utf8Path>,
    base: Option<&Utf8Path>,
) -> u64 {
    let saved = chain::save(&machine.mapping(), into, since, base).unwrap();
    let files = std::fs::read_dir(into).unwrap().map(|file| file.unwrap().metadata().unwrap());
    assert_eq!(saved.total, files.map(|file| file.len()).sum::<u64>());
    // Header and index are less than a page for every page of data, but for the header.
    saved.written.saturating_sub(PAGE as u64) / PAGE as u64
}

fn names(dir: &Utf8Path) -> Vec<String> {
    let mut names: Vec<_> =
        dir.read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
    names.sort_unstable();
    names
}

/// A new machine, without a base, with the memory that was saved.
fn revived(dir: &Utf8Path) -> Machine {
    let machine = Machine::zero(PAGES);
    chain::load(dir, None, &machine.mapping()).unwrap();
    machine
}

/// Not `assert_eq`: nobody wants to read 16 MiB.
fn assert_same(one: &Machine, other: &Machine) {
    let (one, other) = (one.memory(), other.memory());
    let differ = one.chunks(PAGE).zip(other.chunks(PAGE)).position(|(a, b)| a != b);
    assert_eq!(differ, None, "the first page that differs");
}

fn filled(pages: impl IntoIterator<Item = u32>, byte: u8) -> Machine {
    let mut machine = Machine::zero(PAGES);
    pages.into_iter().for_each(|page| machine.fill(page, byte));
    machine
}

#[test]
fn changed_pages_are_known_and_what_was_only_looked_at_is_not_saved() {
    let shelf = Shelf::new();
    let mut machine = filled([0, 7, 8, PAGES - 1], 3);
    machine.look(100);
    machine.fill(200, 0);
    let mapping = machine.mapping();
    assert_eq!(mapping.ground(), Ground::Zero);
    let changed = mapping.changed().unwrap();
    for page in [0, 7, 8, PAGES - 1] {
        assert!(changed.iter().any(|changed| changed == page), "page {page}");
    }
    let dir = shelf.dir("1");
    assert_eq!(save(&machine, &dir, None), 4);
    assert_same(&machine, &revived(&dir));
}

#[test]
fn a_second_save_writes_what_changed_since_the_first() {
    let shelf = Shelf::new();
    let (one, two, three) = (shelf.dir("1"), shelf.dir("2"), shelf.dir("3"));
    let mut machine = filled(0..1000, 1);
    assert_eq!(save(&machine, &one, None), 1000 + 5, "5 of them are the index");
    [3, 500, 2000].into_iter().for_each(|page| machine.fill(page, 2));
    // Written, but to what it was.
    machine.fill(600, 1);
    assert_eq!(save(&machine, &two, Some(&one)), 3);
    let inode = |path: Utf8PathBuf| path.metadata().unwrap().ino();
    assert_eq!(inode(two.join("mem-000")), inode(one.join("mem-top")));
    assert_same(&machine, &revived(&two));
    // From the revived machine, in which every page has been written by the load.
    let mut second = revived(&two);
    second.fill(3, 9);
    assert_eq!(save(&second, &three, Some(&two)), 1);
    std::fs::remove_dir_all(&one).unwrap();
    std::fs::remove_dir_all(&two).unwrap();
    assert_same(&second, &revived(&three));
    assert_eq!(revived(&three).byte(500), 2);
}

#[test]
fn a_save_of_nothing_new_adds_no_layer() {
    let shelf = Shelf::new();
    let machine = filled(0..10, 1);
    let mut since = shelf.dir("0");
    save(&machine, &since, None);
    for turn in 1..20 {
        let into = shelf.dir(&turn.to_string());
        let saved = chain::save(&machine.mapping(), &into, Some(&since), None).unwrap();
        assert_eq!(saved.written, 0);
        since = into;
    }
    assert_eq!(names(&since), ["mem-top"]);
    assert_same(&machine, &revived(&since));
}

#[test]
fn a_page_that_became_zero_is_zero_afterwards() {
    let shelf = Shelf::new();
    let (one, two) = (shelf.dir("1"), shelf.dir("2"));
    let mut machine = filled(0..20, 1);
    save(&machine, &one, None);
    (5..8).for_each(|page| machine.fill(page, 0));
    assert_eq!(save(&machine, &two, Some(&one)), 0, "zeros have no data");
    assert_ne!(names(&two), ["mem-top"]);
    let revived = revived(&two);
    assert_eq!((revived.byte(4), revived.byte(5), revived.byte(8)), (1, 0, 1));
}

#[test]
fn a_machine_that_never_wrote_can_be_saved() {
    let shelf = Shelf::new();
    let dir = shelf.dir("1");
    assert_eq!(save(&Machine::zero(PAGES), &dir, None), 0);
    assert_same(&Machine::zero(PAGES), &revived(&dir));
}

#[test]
fn what_a_fresh_vmm_wrote_by_itself_does_not_survive_a_load() {
    let shelf = Shelf::new();
    let dir = shelf.dir("1");
    let machine = filled([1, 2], 1);
    save(&machine, &dir, None);
    let other = filled([2, 3], 7);
    chain::load(&dir, None, &other.mapping()).unwrap();
    assert_same(&machine, &other);

    let templates = Templates::new(1, u64::MAX);
    let template = templates.get(std::slice::from_ref(&dir), BYTES).unwrap();
    let mut clone = Machine::over(template.descriptor(), PAGES);
    clone.fill(1, 8);
    clone.fill(9, 8);
    chain::load(&dir, Some(&template), &clone.mapping()).unwrap();
    assert_same(&machine, &clone);
}

#[test]
fn a_long_life_keeps_the_chain_short_and_the_bytes_few() {
    let shelf = Shelf::new();
    let mut machine = filled(0..2000, 1);
    let mut since = shelf.dir("0");
    let mut written = save(&machine, &since, None);
    for turn in 1..=60u32 {
        // Ten pages, other ones each time, two of them over and over.
        for page in 0..8 {
            machine.fill((turn * 37 + page * 101) % PAGES, (turn % 250) as u8 + 1);
        }
        machine.fill(5, turn as u8);
        machine.fill(6, turn as u8);
        let into = shelf.dir(&turn.to_string());
        written += save(&machine, &into, Some(&since));
        let layers = names(&into).len();
        assert!(layers <= MOST_LAYERS, "{layers} layers after {turn} saves");
        if turn % 9 == 0 {
            assert_same(&machine, &revived(&into));
        }
        std::fs::remove_dir_all(&since).unwrap();
        since = into;
    }
    assert!(written < 2 * 2000 + 60 * 10 * 3, "{written} pages written in all");
}

#[test]
fn clones_share_a_template_and_see_only_their_own_changes() {
    let shelf = Shelf::new();
    let (golden, saved, again) = (shelf.dir("g"), shelf.dir("1"), shelf.dir("2"));
    save(&filled(10..500, 1), &golden, None);
    let templates = Templates::new(1, u64::MAX);
    let template = templates.get(std::slice::from_ref(&golden), BYTES).unwrap();
    let mut clone = Machine::over(template.descriptor(), PAGES);
    let sibling = Machine::over(template.descriptor(), PAGES);
    chain::load(&golden, Some(&template), &clone.mapping()).unwrap();
    assert_eq!(clone.mapping().ground(), Ground::Template);
    assert_eq!(clone.mapping().changed().unwrap(), PageSet::new(PAGES));

    clone.look(20);
    clone.fill(11, 2);
    clone.fill(12, 0);
    clone.fill(3000, 2);
    assert_eq!(clone.mapping().changed().unwrap().iter().collect::<Vec<_>>(), [11, 12, 3000]);
    assert_eq!(save_over(&clone, &saved, None, Some(&golden)), 2);
    assert_eq!((sibling.byte(11), sibling.byte(12), sibling.byte(3000)), (1, 1, 0));

    let mut woken = Machine::over(template.descriptor(), PAGES);
    chain::load(&saved, Some(&template), &woken.mapping()).unwrap();
    assert_same(&clone, &woken);
    // Back to what the base has: said, not forgotten.
    woken.fill(11, 1);
    save_over(&woken, &again, Some(&saved), Some(&golden));
    let last = Machine::over(template.descriptor(), PAGES);
    chain::load(&again, Some(&template), &last.mapping()).unwrap();
    assert_same(&woken, &last);
}

#[test]
fn a_template_can_be_made_of_a_snapshot_and_its_base() {
    let shelf = Shelf::new();
    let (golden, named) = (shelf.dir("g"), shelf.dir("n"));
    save(&filled(10..500, 1), &golden, None);
    let templates = Templates::new(2, u64::MAX);
    let template = templates.get(std::slice::from_ref(&golden), BYTES).unwrap();
    let mut clone = Machine::over(template.descriptor(), PAGES);
    clone.fill(11, 2);
    (12..300).for_each(|page| clone.fill(page, 0));
    save_over(&clone, &named, None, Some(&golden));

    let stacked = templates.get(&[golden, named.clone()], BYTES).unwrap();
    assert_same(&clone, &Machine::over(stacked.descriptor(), PAGES));
    let alone = templates.get(&[named], BYTES);
    assert!(alone.is_ok(), "it is loaded already, so its base is not asked for");
}

#[test]
fn nobody_can_write_a_template() {
    let shelf = Shelf::new();
    let golden = shelf.dir("g");
    save(&filled(0..9, 1), &golden, None);
    let template = Templates::new(1, u64::MAX).get(&[golden], BYTES).unwrap();
    let file = std::fs::File::from(template.descriptor().try_clone_to_owned().unwrap());
    assert!(file.write_at(&[1], 0).is_err());
    assert!(file.set_len(0).is_err());
    assert!(file.set_len(BYTES * 2).is_err());
}

/// Which error it is that the caller makes "unusable" of.
#[track_caller]
fn assert_damaged<T: std::fmt::Debug>(result: Result<T, MemoryError>, about: &str) {
    match result.unwrap_err() {
        MemoryError::Damaged { why } => assert!(why.contains(about), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let shelf = Shelf::new();
    let dirs: Vec<_> = ["1", "2", "3", "x", "y", "z"].map(|name| shelf.dir(name)).into();
    let mut machine = filled(0..100, 1);
    save(&machine, &dirs[0], None);
    for turn in 1..3 {
        machine.fill(0, 1 + turn as u8);
        save(&machine, &dirs[turn], Some(&dirs[turn - 1]));
    }
    save(&filled(0..100, 4), &dirs[3], None);
    let empty = Machine::zero(PAGES);
    let load = |dir: &Utf8Path| chain::load(dir, None, &empty.mapping());
    let copy = |from: Utf8PathBuf, to: Utf8PathBuf| {
        std::fs::remove_file(&to).ok();
        std::fs::copy(from, to).unwrap()
    };

    assert_damaged(load(&dirs[4]), "missing");
    std::fs::remove_file(dirs[1].join("mem-top")).unwrap();
    assert_damaged(load(&dirs[1]), "missing");
    copy(dirs[2].join("mem-top"), dirs[1].join("mem-top"));
    assert_damaged(load(&dirs[1]), "missing");
    copy(dirs[3].join("mem-top"), dirs[2].join("mem-000"));
    assert_damaged(load(&dirs[2]), "layer 1 does not belong there");
    copy(dirs[3].join("mem-top"), dirs[2].join("mem-001"));
    assert_damaged(load(&dirs[2]), "layer 1 does not belong there");

    let other_size = Machine::zero(PAGES - 1);
    assert_damaged(chain::load(&dirs[0], None, &other_size.mapping()), "the machine 4098");
    assert_damaged(
        Templates::new(1, u64::MAX).get(&[dirs[0].clone()], BYTES * 2),
        "the machine 8198",
    );
}

#[test]
fn a_chain_over_another_base_is_refused() {
    let shelf = Shelf::new();
    let (golden, other, saved) = (shelf.dir("g"), shelf.dir("o"), shelf.dir("1"));
    save(&filled(0..100, 1), &golden, None);
    save(&filled(0..100, 1), &other, None);
    let templates = Templates::new(2, u64::MAX);
    let get = |dir: &Utf8PathBuf| templates.get(std::slice::from_ref(dir), BYTES).unwrap();
    let (right, wrong) = (get(&golden), get(&other));
    let mut clone = Machine::over(right.descriptor(), PAGES);
    clone.fill(5, 9);
    save_over(&clone, &saved, None, Some(&golden));

    let elsewhere = Machine::over(wrong.descriptor(), PAGES);
    assert_damaged(chain::load(&saved, Some(&wrong), &elsewhere.mapping()), "another base");
    assert_damaged(chain::load(&saved, None, &Machine::zero(PAGES).mapping()), "another base");
    assert_damaged(templates.get(std::slice::from_ref(&saved), BYTES), "another base");
    // Nothing can be built upon it either, so everything is written.
    let (full, again) = (shelf.dir("f"), shelf.dir("a"));
    assert_eq!(save(&filled(0..3, 1), &full, Some(&saved)), 3);
    assert_eq!(names(&full), ["mem-top"]);
    assert_eq!(save_over(&elsewhere, &again, Some(&saved), Some(&other)), 0);
    assert_eq!(names(&again), ["mem-top"]);
    // A base that is named and a memory that stands on none do not fit.
    let mapping = clone.mapping();
    let refused = chain::save(&mapping, &shelf.dir("r"), None, None).unwrap_err();
    assert!(matches!(refused, MemoryError::NoMapping { .. }), "{refused:?}");
}

#[test]
fn a_flipped_bit_in_a_page_is_found_before_the_page_is_seen() {
    let shelf = Shelf::new();
    let dir = shelf.dir("1");
    save(&filled([4, 5, 6], 1), &dir, None);
    flip(&dir.join("mem-top"), 2 * PAGE as u64 + 77);
    let machine = Machine::zero(PAGES);
    assert_damaged(chain::load(&dir, None, &machine.mapping()), "page 5 does not match its hash");
    assert_eq!(machine.byte(5), 0);
    let templates = Templates::new(1, u64::MAX);
    assert_damaged(templates.get(&[dir], BYTES), "page 5 does not match its hash");
}

/// Flips one bit of a file, in place.
pub(crate) fn flip(path: &Utf8Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_damaged_former_snapshot_costs_space_and_not_the_memory() {
    let shelf = Shelf::new();
    let (one, two) = (shelf.dir("1"), shelf.dir("2"));
    let mut machine = filled(0..50, 1);
    save(&machine, &one, None);
    machine.fill(0, 2);
    flip(&one.join("mem-top"), 51 * PAGE as u64 + 3);
    assert_eq!(save(&machine, &two, Some(&one)), 50);
    assert_same(&machine, &revived(&two));
}

#[test]
fn what_cannot_be_linked_is_written() {
    let shelf = Shelf::new();
    let (one, two, three) = (shelf.dir("1"), shelf.dir("2"), shelf.dir("3"));
    let mut machine = filled(0..50, 1);
    save(&machine, &one, None);
    machine.fill(0, 2);
    save(&machine, &two, Some(&one));
    // In the way of the second of two links.
    std::fs::create_dir(three.join("mem-001")).unwrap();
    let saved = chain::save(&machine.mapping(), &three, Some(&two), None).unwrap();
    assert_eq!((saved.written, saved.written / PAGE as u64), (saved.total, 51));
    assert_eq!(names(&three), ["mem-001", "mem-top"], "the first link is gone again");
    assert_same(&machine, &revived(&three));
}

#[test]
fn a_machine_that_ended_is_gone_and_not_empty() {
    let shelf = Shelf::new();
    let machine = filled(0..50, 1);
    let mapping = machine.mapping();
    let pid = machine.pid;
    drop(machine);
    let error = chain::save(&mapping, &shelf.dir("1"), None, None).unwrap_err();
    assert!(matches!(error, MemoryError::Gone), "{error:?}");
    assert!(matches!(mapping.write(0, &[1; PAGE]).unwrap_err(), MemoryError::Gone));
    let error = super::Mapping::find(pid, BYTES, super::Anonymous::Not).unwrap_err();
    assert!(matches!(error, MemoryError::Gone), "{error:?}");
}

/// As Firecracker's of more than 3 GiB is.
#[test]
fn memory_in_two_parts_is_saved_and_loaded_in_the_guests_order() {
    const FIRST: u32 = PAGES - 300;
    let shelf = Shelf::new();
    let nameless = |machine: &Machine, at, holds: &[u8]| {
        let first = u64::from(FIRST) * PAGE as u64;
        let in_two = super::Anonymous::InTwo { first, at, holds };
        super::Mapping::find(machine.pid, BYTES, in_two)
    };
    let mut booted = Machine::parted(None, PAGES, FIRST);
    for (page, byte) in [(5, 1), (FIRST - 1, 2), (FIRST, 3), (PAGES - 1, 4)] {
        booted.fill(page, byte);
    }
    let mark = 5 * PAGE as u64;
    let mapping = nameless(&booted, mark, &[1; 32]).unwrap();
    // Neither the one way nor the other, and both ways.
    for holds in [&[9; 32][..], &[]] {
        assert!(matches!(nameless(&booted, mark, holds), Err(MemoryError::NoMapping { .. })));
    }
    let changed: Vec<u32> = mapping.changed().unwrap().iter().collect();
    for page in [5, FIRST - 1, FIRST, PAGES - 1] {
        assert!(changed.contains(&page), "page {page}");
    }
    let dir = shelf.dir("1");
    chain::save(&mapping, &dir, None, None).unwrap();
    let (whole, bytes) = (revived(&dir).memory(), |page: u32| page as usize * PAGE);
    assert_eq!([5, FIRST - 1, FIRST, PAGES - 1].map(|page| whole[bytes(page)]), [1, 2, 3, 4]);
    // One piece's last page and the other's first, by one read.
    let mut seam = [0; 2 * PAGE];
    mapping.read(super::pages::Run { first: FIRST - 1, count: 2 }, &mut seam).unwrap();
    assert_eq!((seam[0], seam[PAGE]), (2, 3));

    let templates = Templates::new(1, u64::MAX);
    let template = templates.get(std::slice::from_ref(&dir), BYTES).unwrap();
    let mut clone = Machine::parted(Some(template.descriptor()), PAGES, FIRST);
    assert_eq!(clone.memory(), whole);
    clone.fill(FIRST, 7);
    let own = shelf.dir("2");
    chain::save(&clone.mapping(), &own, None, Some(&dir)).unwrap();
    let other = Machine::parted(Some(template.descriptor()), PAGES, FIRST);
    chain::load(&own, Some(&template), &other.mapping()).unwrap();
    assert_same(&clone, &other);
    assert_eq!(other.byte(FIRST), 7);
}

/// As Firecracker gives back what a guest has freed: also what a template has something else for.
#[test]
fn memory_that_was_given_back_costs_nothing_and_is_zero_where_it_was_looked_at() {
    const FIRST: u32 = PAGES - 300;
    let shelf = Shelf::new();
    let base = shelf.dir("base");
    save(&filled((0..40).chain([FIRST - 1, FIRST, PAGES - 1]), 1), &base, None);
    let templates = Templates::new(1, u64::MAX);
    let template = templates.get(std::slice::from_ref(&base), BYTES).unwrap();
    for first in [PAGES, FIRST] {
        let mut clone = Machine::parted(Some(template.descriptor()), PAGES, first);
        let at = clone.mapping().pieces().to_vec();
        assert_eq!(at.len(), if first == PAGES { 1 } else { 2 });
        let mapping = || super::Mapping::at(clone.pid, at.clone(), true).unwrap();
        let mut changed: Vec<u32> = mapping().changed().unwrap().iter().collect();
        // Of the template's own, changed before, changed after, looked at after, never there; and both
        // ends of both parts.
        clone.fill(6, 2);
        for page in [0, 5, 6, 7, 8, 100, FIRST - 1, FIRST, PAGES - 1] {
            clone.give_back(page);
        }
        clone.fill(7, 3);
        clone.look(8);
        clone.look(100);
        changed.extend([7, 8, 100]);
        let mapping = || super::Mapping::at(clone.pid, at.clone(), true).unwrap();
        assert_eq!(mapping().ground(), Ground::Template);
        let seen: Vec<u32> = mapping().changed().unwrap().iter().collect();
        assert_eq!(seen, changed, "nobody knows what is in the others");
        let error = super::Mapping::find(clone.pid, BYTES, super::Anonymous::Not).unwrap_err();
        assert!(matches!(error, MemoryError::NoMapping { .. }), "who only looks at names is lost");

        let own = shelf.dir(&format!("own-{first}"));
        let saved = chain::save(&mapping(), &own, None, Some(&base)).unwrap();
        assert!(saved.written < 8 * PAGE as u64, "only one page has data: {saved:?}");
        let mut woken = Machine::over(template.descriptor(), PAGES);
        chain::load(&own, Some(&template), &woken.mapping()).unwrap();
        let alone: Vec<u32> = woken.mapping().changed().unwrap().iter().collect();
        assert_eq!(alone, [7, 8], "what is zero in the template too, or of nobody, is shared");
        for (page, byte) in [(1, 1), (7, 3), (8, 0), (100, 0)] {
            assert_eq!(woken.byte(page), byte, "page {page}");
        }
        // What was given back may hold what the template has, and nothing else.
        let mut all = vec![0; BYTES as usize];
        mapping().read(super::pages::Run { first: 0, count: PAGES }, &mut all).unwrap();
        for page in [0, 5, 6, FIRST - 1, FIRST, PAGES - 1] {
            assert_eq!(woken.byte(page), 1, "page {page}");
            let at = page as usize * super::pages::PAGE;
            all[at..at + super::pages::PAGE].fill(1);
        }
        assert!(all == woken.memory());

        // What the woken one gives back has been said of it before.
        let again = shelf.dir(&format!("again-{first}"));
        let at = woken.mapping().pieces().to_vec();
        woken.give_back(7);
        let mapping = super::Mapping::at(woken.pid, at, true).unwrap();
        chain::save(&mapping, &again, Some(&own), Some(&base)).unwrap();
        let later = Machine::over(template.descriptor(), PAGES);
        chain::load(&again, Some(&template), &later.mapping()).unwrap();
        assert_eq!((later.byte(7), later.byte(8), later.byte(1)), (0, 0, 1));
    }
}

/// Nothing of its template is left in it, and it can still be put to sleep.
#[test]
fn a_clone_may_give_back_all_of_its_memory() {
    let shelf = Shelf::new();
    let base = shelf.dir("base");
    save(&filled([0, 1, PAGES - 1], 1), &base, None);
    let templates = Templates::new(1, u64::MAX);
    let template = templates.get(std::slice::from_ref(&base), BYTES).unwrap();
    let mut clone = Machine::over(template.descriptor(), PAGES);
    let at = clone.mapping().pieces().to_vec();
    (0..PAGES).for_each(|page| clone.give_back(page));
    clone.fill(1, 3);
    let own = shelf.dir("own");
    let mapping = super::Mapping::at(clone.pid, at, true).unwrap();
    chain::save(&mapping, &own, None, Some(&base)).unwrap();
    let woken = Machine::over(template.descriptor(), PAGES);
    chain::load(&own, Some(&template), &woken.mapping()).unwrap();
    assert_eq!([0, 1, 2, PAGES - 1].map(|page| woken.byte(page)), [1, 3, 0, 1]);
}

#[test]
fn a_machine_without_a_template_may_give_back_too() {
    let shelf = Shelf::new();
    let mut machine = filled([3, 4], 1);
    let at = machine.mapping().pieces().to_vec();
    machine.give_back(3);
    machine.give_back(9);
    let mapping = super::Mapping::at(machine.pid, at.clone(), false).unwrap();
    assert_eq!(mapping.ground(), Ground::Zero);
    let dir = shelf.dir("1");
    chain::save(&mapping, &dir, None, None).unwrap();
    let woken = revived(&dir);
    assert_eq!([3, 4, 9].map(|page| woken.byte(page)), [0, 1, 0]);
    // What is not all there is nothing that can be saved.
    let beyond = bhatti_engine::Piece { bytes: 1 << 40, ..at[0] };
    let error = super::Mapping::at(machine.pid, vec![beyond], false).unwrap_err();
    assert!(matches!(error, MemoryError::NoMapping { .. }), "{error:?}");
}

#[test]
fn a_vmm_that_never_gives_its_memory_makes_nobody_wait() {
    let machine = Machine::stalling(PAGES);
    let mapping = machine.mapping();
    let run = super::pages::Run { first: 0, count: 1 };
    let (told, tells) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(mapping.read(run, &mut [0; PAGE])));
    // Who reads from outside is not let wait by the kernel; if ever, the machine's end ends it.
    let read = tells.recv_timeout(std::time::Duration::from_secs(20)).expect("it waits");
    assert!(matches!(read.unwrap_err(), MemoryError::File { .. }));
}

#[test]
fn nothing_beyond_the_guests_memory_is_read_or_written() {
    let machine = Machine::zero(PAGES);
    let mapping = machine.mapping();
    let refused = |result: Result<(), MemoryError>| {
        matches!(result.unwrap_err(), MemoryError::NoMapping { .. })
    };
    let read = |first, count, bytes: usize| {
        mapping.read(super::pages::Run { first, count }, &mut vec![0; bytes])
    };
    assert!(read(PAGES - 1, 1, PAGE).is_ok());
    assert!(refused(read(PAGES, 1, PAGE)));
    assert!(refused(read(u32::MAX, 2, 2 * PAGE)));
    assert!(refused(read(0, 1, PAGE + 1)));
    assert!(refused(mapping.write(PAGES - 1, &[0; 2 * PAGE])));
    assert!(refused(mapping.write(0, &[0; 5])));
    assert!(machine.memory().iter().all(|&byte| byte == 0));
}

#[test]
fn an_idle_template_is_kept_up_to_a_number_and_one_in_use_is_never_loaded_twice() {
    let shelf = Shelf::new();
    let dirs: Vec<_> = (0..4).map(|name| shelf.dir(&name.to_string())).collect();
    for (dir, byte) in dirs.iter().zip(1..) {
        save(&filled([1], byte), dir, None);
    }
    let templates = Templates::new(2, u64::MAX);
    let get = |at: usize| templates.get(&dirs[at..=at], BYTES).unwrap();
    let number = |template: &Template| inode(template);
    let used = get(0);
    let numbers = [number(&used), number(&get(1)), number(&get(2)), number(&get(3))];
    assert_eq!(number(&get(0)), numbers[0], "it is in use");
    assert_eq!(number(&get(2)), numbers[2], "it is one of two that are kept");
    assert_eq!(number(&get(3)), numbers[3]);
    assert_eq!(templates.loaded(), 3);
    assert_ne!(number(&get(1)), numbers[1], "it was used longest ago");
    drop(used);
    assert_eq!(templates.loaded(), 2);
}

#[test]
fn idle_templates_take_no_more_memory_than_they_may() {
    let shelf = Shelf::new();
    let dirs: Vec<_> = (0..3).map(|name| shelf.dir(&name.to_string())).collect();
    for (dir, pages) in dirs.iter().zip([1000, 1000, 3000]) {
        save(&filled(0..pages, 1), dir, None);
    }
    let templates = Templates::new(3, 2500 * PAGE as u64);
    let get = |at: usize| templates.get(&dirs[at..=at], BYTES).unwrap();
    let first = inode(&get(0));
    drop(get(1));
    assert_eq!(templates.loaded(), 2, "zeros take nothing: both fit");
    let large = get(2);
    assert_eq!(templates.loaded(), 3, "one that is in use is not idle");
    drop(large);
    assert_eq!(templates.loaded(), 2, "it is too large");
    assert_eq!(inode(&get(0)), first, "and has cost no other one its place");
}

fn inode(template: &Template) -> u64 {
    let file = std::fs::File::from(template.descriptor().try_clone_to_owned().unwrap());
    file.metadata().unwrap().ino()
}

#[test]
fn many_at_once_get_the_same_template() {
    let shelf = Shelf::new();
    let dir = shelf.dir("g");
    save(&filled(0..2000, 1), &dir, None);
    let templates = Templates::new(1, u64::MAX);
    let barrier = std::sync::Barrier::new(8);
    let got: Vec<_> = std::thread::scope(|scope| {
        let get = || {
            barrier.wait();
            templates.get(std::slice::from_ref(&dir), BYTES).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(got.iter().all(|template| inode(template) == inode(&got[0])));
}

#[test]
fn a_template_whose_files_were_replaced_is_loaded_anew() {
    let shelf = Shelf::new();
    let dir = shelf.dir("g");
    save(&filled([1], 1), &dir, None);
    let templates = Templates::new(4, u64::MAX);
    let old = templates.get(std::slice::from_ref(&dir), BYTES).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_damaged(templates.get(std::slice::from_ref(&dir), BYTES), "missing");
    save(&filled([1], 2), &shelf.dir("g"), None);
    let new = templates.get(&[dir], BYTES).unwrap();
    let byte = |template: &Template| Machine::over(template.descriptor(), PAGES).byte(1);
    assert_eq!((byte(&old), byte(&new)), (1, 2));
}
