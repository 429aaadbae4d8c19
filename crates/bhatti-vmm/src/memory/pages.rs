//! Pages: their size, runs of them, sets of them.

/// The unit in which memory is compared, stored and shared, on every host.
pub(super) const PAGE: usize = 4096;

/// A page of nothing.
pub(crate) const ZERO: [u8; PAGE] = [0; PAGE];

/// More memory than any machine has (4 TiB), in pages.
pub(crate) const MOST_PAGES: u32 = 1 << 30;

/// How many pages a memory of that many bytes has; `None` if no machine has such.
pub(crate) fn pages_in(bytes: u64) -> Option<u32> {
    let pages = u32::try_from(bytes / PAGE as u64).ok()?;
    (bytes.is_multiple_of(PAGE as u64) && (1..=MOST_PAGES).contains(&pages)).then_some(pages)
}

/// A set of a machine's pages: one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u32,
}

/// Consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: u32,
    pub count: u32,
}

impl PageSet {
    /// The empty set of a memory of that many pages.
    pub fn new(pages: u32) -> Self {
        Self { words: vec![0; (pages as usize).div_ceil(64)], pages }
    }

    /// Pages beyond the memory's end are ignored.
    pub fn insert(&mut self, page: u32) {
        if page < self.pages {
            self.words[page as usize / 64] |= 1 << (page % 64);
        }
    }

    pub fn remove(&mut self, page: u32) {
        if page < self.pages {
            self.words[page as usize / 64] &= !(1 << (page % 64));
        }
    }

    pub fn contains(&self, page: u32) -> bool {
        page < self.pages && self.words[page as usize / 64] & (1 << (page % 64)) != 0
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(&word, index)| {
            std::iter::successors((word != 0).then_some(word), |word| {
                let rest = word & (word - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |word| index * 64 + word.trailing_zeros())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pages: &[u32]) -> PageSet {
        let mut set = PageSet::new(300);
        pages.iter().for_each(|&page| set.insert(page));
        set
    }

    #[test]
    fn members_come_in_order_and_only_those_that_can_be() {
        let set = set(&[299, 0, 1, 63, 64, 130, 300, u32::MAX]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 63, 64, 130, 299]);
    }

    #[test]
    fn sizes_that_no_machine_has_are_none() {
        assert_eq!(pages_in(1 << 20), Some(256));
        assert_eq!(pages_in(4 << 40), Some(MOST_PAGES));
        for bytes in [0, 1, 4095, 4097, (4 << 40) + 4096, u64::MAX - 4095] {
            assert_eq!(pages_in(bytes), None, "{bytes}");
        }
    }

    #[test]
    fn what_was_removed_is_gone() {
        let mut set = set(&[5, 6, 7, 70]);
        [6, 70, 71, 1000].into_iter().for_each(|page| set.remove(page));
        assert_eq!(set.iter().collect::<Vec<_>>(), [5, 7]);
    }
}
