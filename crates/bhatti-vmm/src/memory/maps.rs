//! Which of a VMM's mappings are its guest's memory, by the text of `/proc/PID/maps`; pure.
//!
//! A VMM that was broken into can make that text say anything. What it gains is that some other
//! memory of its own is taken for the guest's.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use bhatti_engine::Piece;

/// The name a template's memfd has, and so a clone's memory in `/proc/PID/maps`.
pub const TEMPLATE_NAME: &str = "bhatti-memory";

/// The name of a memfd that holds nothing and never will: memory over it starts as zero.
pub const ZERO_NAME: &str = "bhatti-zero";

/// A VMM has some hundred mappings; a guest that gives back every second page brings it to as many as the
/// host allows (`vm.max_map_count`): 65 530, or 1 048 576 where a distribution says so, of 160 bytes at most
/// each. What is read is not kept but for what may be memory.
const MOST_MAPS: u64 = 160 << 20;

/// Of how many mappings of one size it is found out which is which. A VMM has one or two; one that was
/// broken into may have any number.
const MOST_ALIKE: usize = 8;

/// What the pages of a mapping were before anybody wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Zero.
    Zero,
    /// Zero, in huge pages, where a page that was only read looks like one that was written.
    Huge,
    /// A template's.
    Template,
}

/// Whether a mapping of no file can be guest memory, and how it is told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous<'a> {
    /// By its size: the VMM has no other one of that size.
    Counts,
    /// By its sizes, for it is in two parts, the first of which has `first` bytes. They may lie in
    /// any order, and where they touch they look like one; `holds`, which is in the first from its
    /// byte `at` on, tells which is which.
    InTwo {
        first: u64,
        at: u64,
        holds: &'a [u8],
    },
    Not,
}

/// Why there is none.
pub(super) enum NotFound {
    Io(io::Error),
    Why(String),
}

/// A mapping that may be guest memory.
#[derive(Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    ground: Ground,
    /// Device and inode: what it maps.
    file: String,
    /// From which byte of it on.
    offset: u64,
    /// Whether that file is one at all; the kernel has one for huge pages of nobody's.
    named: bool,
}

impl Area {
    fn bytes(&self) -> u64 {
        self.end - self.start
    }

    fn piece(&self) -> Piece {
        Piece { start: self.start, bytes: self.bytes() }
    }

    /// The part of it that lies in `piece`.
    fn within(&self, piece: Piece) -> Option<Piece> {
        let (start, end) = (self.start.max(piece.start), self.end.min(piece.end()));
        (start < end).then(|| Piece { start, bytes: end - start })
    }

    /// Whether both are parts of one mapping. Neighbours without a name need have nothing to do with
    /// each other; the kernel shows as one what is.
    fn goes_on_with(&self, next: &Self) -> bool {
        let follows = self.offset.checked_add(self.bytes()) == Some(next.offset);
        self.named && self.end == next.start && self.file == next.file && follows
    }
}

/// What could be guest memory: its parts in the guest's order, and what they are over.
pub(super) type Candidate = (Vec<Piece>, Ground);

/// Finds what could be guest memory of `bytes` in the text of `/proc/PID/maps`; at least one.
pub(super) fn guest_memory(
    maps: impl Read,
    bytes: u64,
    anonymous: Anonymous<'_>,
) -> Result<Vec<Candidate>, NotFound> {
    let areas = areas(maps, anonymous != Anonymous::Not)?;
    let found = match anonymous {
        Anonymous::InTwo { first, .. } => in_two(&areas, first, bytes),
        Anonymous::Counts | Anonymous::Not => {
            let whole = areas.iter().filter(|area| area.bytes() == bytes);
            let whole = whole.map(|area| (vec![area.piece()], area.ground));
            whole.chain(of_one_file(&areas, bytes)).collect()
        }
    };
    if found.is_empty() {
        let there: Vec<u64> = areas.iter().take(8).map(Area::bytes).collect();
        return Err(NotFound::Why(format!("none of {there:?} bytes is {bytes} bytes long")));
    }
    Ok(found)
}

/// What guest memory that lies in these `pieces` is over, and where in them there is memory of no file
/// in place of what was there: zero before anybody wrote it. If all of it was a template's, which the
/// caller knows, there may be nothing left of that.
pub(super) fn laid_out(
    maps: impl Read,
    pieces: &[Piece],
    of_template: bool,
) -> Result<(Ground, Vec<Piece>), NotFound> {
    let areas = areas(maps, true)?;
    let parts: Vec<(Piece, &Area)> = pieces
        .iter()
        .flat_map(|piece| areas.iter().filter_map(|area| Some((area.within(*piece)?, area))))
        .collect();
    let there: u128 = parts.iter().map(|(part, _)| u128::from(part.bytes)).sum();
    if there != pieces.iter().map(|piece| u128::from(piece.bytes)).sum() {
        return Err(NotFound::Why(format!("{there} bytes are left of {pieces:?}")));
    }
    let (named, nameless): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, area)| area.named);
    // Memory that was never of a file has nothing in the place of another.
    let (over, replaced) =
        if named.is_empty() && !of_template { (nameless, Vec::new()) } else { (named, nameless) };
    let of_nothing = over.is_empty() && !replaced.is_empty();
    let ground = over.first().map(|(_, area)| area.ground);
    let ground = ground.or_else(|| of_nothing.then_some(Ground::Template));
    match ground {
        Some(ground) if over.iter().all(|(_, area)| area.ground == ground) => {
            Ok((ground, replaced.into_iter().map(|(part, _)| part).collect()))
        }
        _ => Err(NotFound::Why(format!("{pieces:?} are over several things"))),
    }
}

/// All private, writable mappings of a known kind.
fn areas(maps: impl Read, anonymous: bool) -> Result<Vec<Area>, NotFound> {
    let mut reader = BufReader::with_capacity(64 << 10, maps.take(MOST_MAPS));
    let mut areas: Vec<Area> = Vec::new();
    let (mut line, mut seen) = (Vec::new(), 0);
    while reader.read_until(b'\n', &mut line).map_err(NotFound::Io)? != 0 {
        seen += line.len() as u64;
        if let Some(area) = parse(&String::from_utf8_lossy(&line), anonymous) {
            match areas.last_mut() {
                Some(last) if last.goes_on_with(&area) => {
                    last.end = area.end;
                }
                _ => areas.push(area),
            }
        }
        line.clear();
    }
    if seen >= MOST_MAPS {
        return Err(NotFound::Why("it has too many mappings".to_owned()));
    }
    Ok(areas)
}

/// Files of which there is every byte exactly once, in more than one part.
fn of_one_file(areas: &[Area], bytes: u64) -> Vec<Candidate> {
    let mut files: BTreeMap<&str, Vec<&Area>> = BTreeMap::new();
    for area in areas.iter().filter(|area| area.named) {
        files.entry(&area.file).or_default().push(area);
    }
    let whole = files.into_values().filter_map(|mut parts| {
        parts.sort_unstable_by_key(|part| part.offset);
        let end = parts.iter().try_fold(0, |end: u64, part| {
            (part.offset == end).then(|| end.checked_add(part.bytes())).flatten()
        });
        let ground = parts.first()?.ground;
        let is = parts.len() > 1 && end == Some(bytes);
        is.then(|| (parts.iter().map(|part| part.piece()).collect(), ground))
    });
    whole.collect()
}

/// Every way in which mappings of no file can be two parts, the first of `first` bytes.
fn in_two(areas: &[Area], first: u64, bytes: u64) -> Vec<Candidate> {
    let Some(second) = bytes.checked_sub(first).filter(|second| *second > 0) else {
        return Vec::new();
    };
    let of = |bytes| {
        areas.iter().filter(move |area| !area.named && area.bytes() == bytes).take(MOST_ALIKE)
    };
    let mut found = Vec::new();
    for whole in of(bytes) {
        let piece = |from, bytes| Piece { start: whole.start + from, bytes };
        found.push((vec![piece(0, first), piece(first, second)], whole.ground));
        found.push((vec![piece(second, first), piece(0, second)], whole.ground));
    }
    for one in of(first) {
        let others = of(second).filter(|other| other.start != one.start);
        for other in others.filter(|other| other.ground == one.ground) {
            found.push((vec![one.piece(), other.piece()], one.ground));
        }
    }
    found
}

/// A line of `/proc/PID/maps`, if it is about guest memory: private, writable, of a known name.
fn parse(line: &str, anonymous: bool) -> Option<Area> {
    let mut words = line.trim_end().splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    if words.next()? != "rw-p" {
        return None;
    }
    let (offset, device, rest) = (words.next()?, words.next()?, words.next()?);
    let name = words.next().unwrap_or_default().trim_start();
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let (ground, named) = match name.strip_prefix("/memfd:") {
        Some(TEMPLATE_NAME) => (Ground::Template, true),
        Some(ZERO_NAME) => (Ground::Zero, true),
        // What QEMU calls the huge pages it makes by itself.
        Some("memory-backend-memfd") => (Ground::Huge, true),
        // The jail has a root of its own; how much of it the name shows depends on who looks.
        None if name.ends_with("/dev/zero") => (Ground::Zero, true),
        None if name.is_empty() && anonymous => (Ground::Zero, false),
        // What the kernel calls huge pages of no file.
        None if name == "/anon_hugepage" && anonymous => (Ground::Huge, false),
        _ => return None,
    };
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end, offset) = (number(start)?, number(end)?, number(offset)?);
    let file = format!("{device} {rest}");
    (start < end).then_some(Area { start, end, ground, file, offset, named })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0400000 r--p 00000000 fe:00 1234   /usr/bin/qemu-system-x86_64
7f0000000000-7f0000400000 rw-p 00000000 00:01 77     /memfd:bhatti-memory (deleted)
7f0000400000-7f0000800000 rw-p 00400000 00:01 77     /memfd:bhatti-memory (deleted)
7f0000800000-7f0000900000 rw-p 00000000 00:01 78     /memfd:bhatti-memory (deleted)
7f0001000000-7f0001800000 rw-s 00000000 00:01 79     /memfd:bhatti-memory (deleted)
7f0002000000-7f0002800000 r--p 00000000 00:01 77     /memfd:bhatti-memory (deleted)
7f0003000000-7f0003800000 rw-p 00000000 00:00 0
7f0004000000-7f0004800000 rw-p 00000000 00:05 7      /memfd:other (deleted)
7f0005000000-7f0005200000 rw-p 00000000 00:05 5      /srv/j/dev/zero
7f0006000000-7f0006600000 rw-p 00000000 00:0f 9      /memfd:memory-backend-memfd (deleted)
";

    fn all(maps: &str, bytes: u64, anonymous: Anonymous<'_>) -> Result<Vec<Candidate>, String> {
        guest_memory(maps.as_bytes(), bytes, anonymous).map_err(|error| match error {
            NotFound::Io(error) => error.to_string(),
            NotFound::Why(why) => why,
        })
    }

    /// Where guest memory in one piece is.
    fn found(maps: &str, bytes: u64) -> Result<(u64, Ground), String> {
        one(all(maps, bytes, Anonymous::Not)?)
    }

    fn one(found: Vec<Candidate>) -> Result<(u64, Ground), String> {
        match &found[..] {
            [(pieces, ground)] if pieces.len() == 1 => Ok((pieces[0].start, *ground)),
            several => Err(format!("several: {several:?}")),
        }
    }

    #[test]
    fn only_a_private_writable_mapping_of_the_right_name_and_length_is_it() {
        assert_eq!(found(MAPS, 8 << 20), Ok((0x7f00_0000_0000, Ground::Template)));
        assert_eq!(found(MAPS, 2 << 20), Ok((0x7f00_0500_0000, Ground::Zero)));
        assert_eq!(found(MAPS, 6 << 20), Ok((0x7f00_0600_0000, Ground::Huge)));
        let why = found(MAPS, 4 << 20).unwrap_err();
        assert_eq!(why, "none of [8388608, 1048576, 2097152, 6291456] bytes is 4194304 bytes long");
    }

    #[test]
    fn memory_without_a_name_is_found_where_it_counts() {
        let found = |maps, anonymous| one(all(maps, 8 << 20, anonymous).unwrap());
        // The one without a name and the template's are of one size.
        assert_eq!(found(MAPS, Anonymous::Not), Ok((0x7f00_0000_0000, Ground::Template)));
        assert!(found(MAPS, Anonymous::Counts).unwrap_err().contains("several"));
        let maps = MAPS.replace("bhatti-memory", "other");
        let maps = format!("7f0002ff0000-7f0003000000 rw-p 00000000 00:00 0\n{maps}");
        assert_eq!(found(&maps, Anonymous::Counts), Ok((0x7f00_0300_0000, Ground::Zero)));
        let huge =
            "7f0003000000-7f0003800000 rw-p 00000000 00:0f 5      /anon_hugepage (deleted)\n";
        assert_eq!(found(huge, Anonymous::Counts), Ok((0x7f00_0300_0000, Ground::Huge)));
        assert!(all(huge, 8 << 20, Anonymous::Not).is_err());
    }

    #[test]
    fn parts_of_one_file_are_memory_in_the_order_of_the_file() {
        let line = |start: u64, bytes: u64, offset: u64| {
            let end = start + bytes;
            format!(
                "{start:x}-{end:x} rw-p {offset:08x} 00:01 77   /memfd:bhatti-memory (deleted)\n"
            )
        };
        // The second lies right below the first.
        let maps = line(0x1000_0000, 0x1000, 0x3000) + &line(0x1000_1000, 0x3000, 0);
        let two = vec![
            Piece { start: 0x1000_1000, bytes: 0x3000 },
            Piece { start: 0x1000_0000, bytes: 0x1000 },
        ];
        let found = all(&maps, 0x4000, Anonymous::Not);
        assert_eq!(found, Ok(vec![(two, Ground::Template)]));
        let twice = maps.clone() + &line(0x2000_0000, 0x1000, 0x3000);
        let hole = line(0x1000_0000, 0x1000, 0x4000) + &line(0x1000_2000, 0x3000, 0);
        let short = line(0x1000_0000, 0x1000, 0x3000) + &line(0x1000_2000, 0x2000, 0);
        for other in [twice, hole, short] {
            assert!(all(&other, 0x4000, Anonymous::Not).is_err(), "{other}");
        }
    }

    #[test]
    fn parts_without_a_name_can_lie_in_any_order() {
        let two = |first| Anonymous::InTwo { first, at: 0, holds: b"" };
        let starts = |maps: &str, first, bytes| -> Vec<(u64, u64)> {
            let found = all(maps, bytes, two(first)).unwrap_or_default();
            assert!(found.iter().all(|(pieces, _)| pieces[0].bytes == first));
            found.iter().map(|(pieces, _)| (pieces[0].start, pieces[1].start)).collect()
        };
        let apart = "10000000-10001000 rw-p 0 00:00 0\n20000000-20003000 rw-p 0 00:00 0\n";
        assert_eq!(starts(apart, 0x3000, 0x4000), [(0x2000_0000, 0x1000_0000)]);
        let alike = "10000000-10001000 rw-p 0 00:00 0\n20000000-20001000 rw-p 0 00:00 0\n";
        let both = [(0x1000_0000, 0x2000_0000), (0x2000_0000, 0x1000_0000)];
        assert_eq!(starts(alike, 0x1000, 0x2000), both);
        let merged = "10000000-10004000 rw-p 0 00:00 0\n";
        assert_eq!(
            starts(merged, 0x3000, 0x4000),
            [(0x1000_0000, 0x1000_3000), (0x1000_1000, 0x1000_0000)]
        );
        for (first, bytes) in [(0x4000, 0x4000), (0x5000, 0x4000), (0x1000, 0x3000)] {
            assert!(starts(merged, first, bytes).is_empty());
        }
        assert!(
            starts(MAPS, 0x40_0000, 0x80_0000)
                .iter()
                .all(|found| found.0 == 0x7f00_0300_0000 || found.0 == 0x7f00_0340_0000)
        );
    }

    #[test]
    fn what_is_known_where_it_is_may_have_holes_of_nothing() {
        let piece = |start: u64, bytes: u64| Piece { start, bytes };
        let out_of = |maps: &str, pieces: &[Piece], of_template| {
            laid_out(maps.as_bytes(), pieces, of_template).map_err(|error| match error {
                NotFound::Io(error) => error.to_string(),
                NotFound::Why(why) => why,
            })
        };
        let out = |maps: &str, pieces: &[Piece]| out_of(maps, pieces, false);
        // The kernel shows what lies beside the memory, and is of no file either, as one with a hole.
        let maps = "\
1000-3000 rw-p 00000000 00:00 0
3000-5000 rw-p 00001000 00:01 77     /memfd:bhatti-memory (deleted)
5000-6000 rw-p 00000000 00:00 0
6000-8000 rw-p 00004000 00:01 77     /memfd:bhatti-memory (deleted)
8000-9000 rw-p 00000000 00:00 0
9000-a000 r--p 00000000 00:01 77     /memfd:bhatti-memory (deleted)
b000-c000 rw-p 00000000 00:05 7      /dev/zero
";
        let holes = vec![piece(0x2000, 0x1000), piece(0x5000, 0x1000)];
        assert_eq!(out(maps, &[piece(0x2000, 0x5000)]), Ok((Ground::Template, holes)));
        let other_way = [piece(0x6000, 0x3000), piece(0x4000, 0x2000)];
        let holes = vec![piece(0x8000, 0x1000), piece(0x5000, 0x1000)];
        assert_eq!(out(maps, &other_way), Ok((Ground::Template, holes)));
        let all = [piece(0x1000, 0x2000)];
        assert_eq!(out(maps, &all), Ok((Ground::Zero, Vec::new())));
        assert_eq!(out_of(maps, &all, true), Ok((Ground::Template, all.to_vec())));
        assert!(out(maps, &[piece(0x8000, 0x2000)]).unwrap_err().contains("4096 bytes are left"));
        let both = [piece(0x3000, 0x1000), piece(0xb000, 0x1000)];
        assert!(out(maps, &both).unwrap_err().contains("several"));
        assert!(out(maps, &[piece(u64::MAX - 1, u64::MAX)]).is_err());
        assert!(out(maps, &[]).is_err() && out_of(maps, &[], true).is_err());
    }

    #[test]
    fn two_that_fit_are_none() {
        let twice = format!("{MAPS}7f0007000000-7f0007200000 rw-p 0 00:05 5 /dev/zero\n");
        assert!(found(&twice, 2 << 20).unwrap_err().contains("several"));
    }

    #[test]
    fn nonsense_is_not_a_mapping() {
        for line in [
            "",
            "7f00 rw-p 0 0 0 /dev/zero",
            "7f01-7f00 rw-p 0 0:0 0 /dev/zero",
            "ffffffffffffffffff-fffffffffffffffffff rw-p 0 0:0 0 /dev/zero",
            "7f00-7f01 rw-p 0 0:0 0 /memfd:bhatti-memory-not",
        ] {
            assert_eq!(parse(line, false), None, "{line}");
        }
    }

    #[test]
    fn a_vmm_with_too_many_mappings_is_not_read_to_its_end() {
        let line = b"7f0007000000-7f0007200000 rw-p 0 00:05 5 /dev/zero\n";
        let times = MOST_MAPS as usize / line.len();
        let read = |times| match areas(&line.repeat(times)[..], false) {
            Ok(areas) => areas.len().to_string(),
            Err(NotFound::Why(why)) => why,
            Err(NotFound::Io(error)) => error.to_string(),
        };
        assert_eq!(read(1 << 20), (1 << 20).to_string(), "as many as a host allows");
        assert_eq!(read(times + 1), "it has too many mappings");
    }
}
