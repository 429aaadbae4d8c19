//! Names nobody can guess.

use std::io::{self, Read};

/// `N` random bytes as hex.
pub fn hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
