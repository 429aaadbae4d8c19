//! Our end: the terminal this command runs in, without its line editing, and as it was afterwards.

use std::io::Read;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// What is read from the keyboard at once, in bytes. A paste comes in several.
const READ: usize = 4096;

/// A terminal that passes every key on and shows every byte as it is. Dropping it, on whatever
/// way, makes it as it was.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn new() -> Result<Self, Failure> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).map_err(|error| {
            Failure::caused("stdin is not a terminal, which a shell needs", &error)
        })?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw)
            .map_err(|error| Failure::caused("this terminal has no raw mode", &error))?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Fails if the terminal is gone; then it needs nothing any more.
        tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before).unwrap_or_default();
    }
}

/// Rows and columns, if the terminal knows.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdin()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// What is typed from now on. It ends with the terminal. A thread reads: a descriptor that others
/// use too must not be made non-blocking.
pub(super) fn keys() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let (typed, keys) = mpsc::channel(1);
    let read = move || {
        let mut buffer = [0; READ];
        while let Ok(n @ 1..) = std::io::stdin().read(&mut buffer) {
            if typed.blocking_send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(keys)
}
