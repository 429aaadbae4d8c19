//! What a reader makes of layers that were cut, extended or have flipped bits.

use proptest::prelude::*;

use super::*;
use crate::memory::tests::Shelf;

const PLACE: Place = Place { pages: 64, ordinal: 3, id: 7, below: 6, base: 5 };

/// Pages 2, 3 and 40 with data, 9 zero.
fn whole(path: &Utf8Path) -> Vec<u8> {
    let data: Vec<u8> = (0..3 * PAGE).map(|at| (at / 16) as u8).collect();
    let hash = |slot: usize| Content::of(&data[slot * PAGE..(slot + 1) * PAGE]);
    let mut writer = Writer::create(path, PLACE).unwrap();
    writer.append(&[(2, hash(0)), (3, hash(1))], &data[..2 * PAGE]).unwrap();
    writer.append(&[(9, Content::ZERO), (40, hash(2))], &data[2 * PAGE..]).unwrap();
    let bytes = writer.finish().unwrap();
    assert_eq!(bytes, path.metadata().unwrap().len());
    std::fs::read(path).unwrap()
}

type Said = (Place, Vec<(Entry, Vec<u8>)>);

/// All that a layer says, read to its last page.
fn read(path: &Utf8Path) -> Result<Said, MemoryError> {
    let layer = Layer::open(path)?;
    let mut all = Vec::new();
    for entry in &layer.entries {
        let mut page = vec![0; PAGE];
        if let Some(slot) = entry.slot() {
            layer.read(slot, std::iter::once(entry), &mut page)?;
        }
        all.push((*entry, page));
    }
    Ok((layer.place, all))
}

#[test]
fn what_is_written_is_read() {
    let shelf = Shelf::new();
    let path = shelf.dir("l").join("layer");
    whole(&path);
    let (place, all) = read(&path).unwrap();
    assert_eq!(place, PLACE);
    assert_eq!(all.iter().map(|(entry, _)| entry.page).collect::<Vec<_>>(), [2, 3, 9, 40]);
    assert_eq!(all[2].0.slot(), None);
    assert_eq!((all[1].1[0], all[1].1[PAGE - 1], all[3].1[17]), (0, 255, 1));
    assert_eq!(Place::read(&path).unwrap(), PLACE);
}

#[test]
fn a_layer_cut_or_extended_anywhere_is_damaged() {
    let shelf = Shelf::new();
    let path = shelf.dir("l").join("layer");
    let bytes = whole(&path);
    let longer = [&bytes[..], &[0]].concat();
    // Every length near an edge, and some in between.
    let edges = [0, HEADER, HEADER + 16, PAGE, 2 * PAGE, 4 * PAGE, bytes.len()];
    let near = edges.iter().flat_map(|edge| edge.saturating_sub(3)..edge + 3);
    for length in near.chain((0..bytes.len()).step_by(701)) {
        if length == bytes.len() || length > longer.len() {
            continue;
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &longer[..length]).unwrap();
        let error = read(&path).unwrap_err();
        assert!(matches!(error, MemoryError::Damaged { .. }), "{length}: {error:?}");
    }
}

#[test]
fn a_layer_that_was_not_finished_is_none() {
    let shelf = Shelf::new();
    let path = shelf.dir("l").join("layer");
    let mut writer = Writer::create(&path, PLACE).unwrap();
    let page = [1; PAGE];
    writer.append(&[(1, Content::of(&page))], &page).unwrap();
    drop(writer);
    let error = Layer::open(&path).unwrap_err();
    assert!(error.to_string().ends_with("was never finished"), "{error}");
}

/// A header that lies but has the right hash, as only a bug of ours could write it.
#[test]
fn numbers_that_cannot_be_are_refused_before_anything_is_allocated() {
    let header = |place: Place, entries, data_pages| {
        let bytes = Header { place, entries, data_pages, index_hash: 0 }.encode();
        Header::parse(&array(&bytes, 0)).map(|_| ())
    };
    assert_eq!(header(PLACE, 4, 3), Ok(()));
    let too_many = Err("its header counts more pages than there can be");
    assert_eq!(header(PLACE, 65, 3), too_many);
    assert_eq!(header(PLACE, 4, 5), too_many);
    assert_eq!(header(Place { pages: u32::MAX, ..PLACE }, 4, 3), too_many);
    assert_eq!(header(Place { pages: u32::MAX, ..PLACE }, u32::MAX, u32::MAX), too_many);
}

#[test]
fn an_index_that_cannot_be_is_refused() {
    let header = Header { place: PLACE, entries: 2, data_pages: 1, index_hash: 0 };
    let parse = |entries: [(u32, u32, u64); 2]| {
        let mut index = Vec::new();
        for (page, slot, hash) in entries {
            index.extend_from_slice(&page.to_le_bytes());
            index.extend_from_slice(&slot.to_le_bytes());
            index.extend_from_slice(&u128::from(hash).to_le_bytes());
        }
        parse_index(&index, &header).map(|entries| entries.len())
    };
    assert_eq!(parse([(1, 0, 9), (2, NO_SLOT, 0)]), Ok(2));
    let (order, places) = ("its index is not in order", "its index points to the wrong places");
    assert_eq!(parse([(1, 0, 9), (1, NO_SLOT, 0)]), Err(order));
    assert_eq!(parse([(2, 0, 9), (1, NO_SLOT, 0)]), Err(order));
    assert_eq!(parse([(1, 0, 9), (64, NO_SLOT, 0)]), Err(order));
    assert_eq!(parse([(1, 1, 9), (2, NO_SLOT, 0)]), Err(places));
    assert_eq!(parse([(1, NO_SLOT, 9), (2, 0, 9)]), Err(places));
    assert_eq!(parse([(1, 0, 0), (2, 0, 9)]), Err(places));
    assert_eq!(parse([(1, 0, 9), (2, 1, 9)]), Err("its index does not account for its data"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(250) })]

    /// Whatever happens to the bytes: an error, or all is as it was (the padding was hit).
    #[test]
    fn no_change_of_bytes_goes_unnoticed(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
        near_the_index in any::<bool>(),
    ) {
        let shelf = Shelf::new();
        let path = shelf.dir("l").join("layer");
        let mut bytes = whole(&path);
        let before = read(&path).unwrap();
        let whole = bytes.clone();
        for (at, mask) in changes {
            // Half of the time where the numbers are.
            let numbers: Vec<usize> = (0..HEADER + 16).chain(4 * PAGE..bytes.len()).collect();
            let at = if near_the_index { *at.get(&numbers) } else { at.index(bytes.len()) };
            bytes[at] ^= mask;
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        match read(&path) {
            Ok(after) => {
                prop_assert_eq!(after, before);
                let padding = HEADER + 16..PAGE;
                let elsewhere = |bytes: &[u8]| [&bytes[..padding.start], &bytes[padding.end..]].concat();
                prop_assert!(elsewhere(&bytes) == elsewhere(&whole));
            }
            Err(MemoryError::Damaged { .. }) => {}
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    /// Arbitrary bytes under a header's magic: an error, never a panic.
    #[test]
    fn arbitrary_bytes_are_not_a_layer(tail in prop::collection::vec(any::<u8>(), 0..2 * HEADER)) {
        let shelf = Shelf::new();
        let path = shelf.dir("l").join("layer");
        std::fs::write(&path, [&MAGIC[..], &tail].concat()).unwrap();
        prop_assert!(Layer::open(&path).is_err());
    }
}
