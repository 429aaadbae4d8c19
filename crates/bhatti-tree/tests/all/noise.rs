//! Archives that somebody has damaged, at random.

use std::ffi::OsStr;

use crate::unpacking::stays_in_its_box;

/// An archive with something of everything, to begin with.
fn sample() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    std::fs::write(dir.path().join("a/file"), "content").unwrap();
    std::fs::write(dir.path().join("a/b").join("n".repeat(150)), "long").unwrap();
    std::os::unix::fs::symlink("../file", dir.path().join("a/b/link")).unwrap();
    std::os::unix::fs::symlink("l".repeat(150), dir.path().join("far")).unwrap();
    let mut archive = Vec::new();
    let source = bhatti_tree::Source::open(dir.path()).unwrap();
    source.pack(OsStr::new("."), &mut archive, &bhatti_tree::Tally::default()).unwrap();
    archive
}

#[test]
fn a_damaged_archive_makes_nothing_outside() {
    let whole = sample();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..600 {
        let mut archive = whole.clone();
        for _ in 0..=random(4) {
            let at = random(archive.len());
            let words: [&[u8]; 6] = [b"../", b"/", b"\0", b"..", b"\xff", b"7"];
            let word = words[random(words.len())];
            let end = (at + word.len()).min(archive.len());
            archive[at..end].copy_from_slice(&word[..end - at]);
        }
        stays_in_its_box(&archive);
    }
}
