//! What a path leads to, without opening it.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Takes hold of whatever is at `path`, following symlinks. A device or a FIFO notices nothing; the
/// handle says what it is, and `/proc/self/fd` opens it, whatever the path leads to by then.
///
/// Not by `custom_flags`: the standard library leaves out of those what is in `O_ACCMODE`, and musl
/// counts `O_PATH` among it. A FIFO would then be opened, and wait for a writer.
pub fn handle(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    Ok(File::from(open(path, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;

    use nix::fcntl::{FcntlArg, fcntl};

    #[test]
    fn nothing_is_opened_by_taking_hold_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        // Would wait here for a writer.
        let handle = handle(&fifo).unwrap();
        assert!(handle.metadata().unwrap().file_type().is_fifo());
        let flags = OFlag::from_bits_retain(fcntl(handle.as_fd(), FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_PATH));
    }
}
