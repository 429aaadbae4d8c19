//! Our stdin, if it is one that a command elsewhere should read.

use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use bytes::Bytes;
use nix::poll::PollFlags;
use tokio::sync::mpsc;

use crate::context::wait_if_not_ready;
use crate::failure::Failure;

/// How much is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// Whether stdin goes to the command: a pipe, a file, a socket. Not a terminal, which people
/// would have to end by hand, and not `/dev/null`, which is what the command gets anyway.
pub(super) fn is_for_the_command() -> bool {
    !io::stdin().is_terminal() && !is_null()
}

fn is_null() -> bool {
    let devices = (std::fs::metadata("/dev/stdin"), std::fs::metadata("/dev/null"));
    let (Ok(stdin), Ok(null)) = devices else { return false };
    stdin.file_type().is_char_device() && stdin.rdev() == null.rdev()
}

/// Reads it in a thread, a piece or two ahead of who takes them. Closed at its end.
pub(in crate::command) fn read() -> Result<mpsc::Receiver<io::Result<Bytes>>, Failure> {
    let (give, take) = mpsc::channel(2);
    let work = move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut piece = vec![0; PIECE];
            let read = match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Bytes::from(piece))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => match wait_if_not_ready(&stdin, PollFlags::POLLIN, error) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            let last = read.is_err();
            if give.blocking_send(read).is_err() || last {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(work)?;
    Ok(take)
}
