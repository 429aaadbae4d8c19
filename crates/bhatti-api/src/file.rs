//! `/sandboxes/:s/files` and `/sandboxes/:s/archive`: what is known of a file, and what became of
//! an archive.

use serde::{Deserialize, Serialize};

/// The largest file that is written in one piece, in bytes.
pub const MAX_FILE: u64 = 100 << 20;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Any characters but `/`: not fit for a terminal as it is.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Permission bits as four octal digits.
    pub mode: String,
    pub is_dir: bool,
    /// Seconds since the Unix epoch.
    pub mtime: i64,
}

impl FileInfo {
    /// Stands at the end of a list that has not room for all.
    pub fn truncated(listed: usize, total: u64) -> Self {
        Self {
            name: format!("... truncated at {listed} entries ({total} total)"),
            size: 0,
            mode: String::new(),
            is_dir: false,
            mtime: 0,
        }
    }
}

/// Permission bits as the contract writes them.
pub fn octal(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// The answer to `PUT /sandboxes/:s/archive`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Always `ok`: something may have been left out all the same.
    pub status: String,
    /// Regular files that were written.
    pub files: u64,
    /// What is in them.
    pub bytes: u64,
    /// What was left out, a sentence each; not all of it if it is much.
    pub problems: Vec<String>,
    /// How much was left out.
    pub problem_count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_four_digits() {
        assert_eq!([octal(0o644), octal(0o4755), octal(0)], ["0644", "4755", "0000"]);
    }

    #[test]
    fn a_truncated_list_says_so_in_the_contracts_words() {
        let entry = FileInfo::truncated(10_000, 10_001);
        assert_eq!(entry.name, "... truncated at 10000 entries (10001 total)");
    }
}
