//! Where PID 1 prints: the console if there is one, the kernel's log otherwise.
//!
//! Promise: printing never blocks, never fails and never panics, whatever the console does.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Prints one line.
pub fn report(line: fmt::Arguments<'_>) {
    // One write call: /dev/kmsg makes a record of each. `eprintln!` would panic when it fails.
    let text = format!("lohar: {line}\n");
    std::io::stderr().write_all(text.as_bytes()).ok();
}

/// Points stdin at nothing, and stdout and stderr at the console.
///
/// Called again once the drivers are loaded: the console may be a device that did not exist
/// before. Needs `/dev`.
pub fn attach() {
    let open = |path: &str| {
        std::fs::OpenOptions::new()
            .read(path == "/dev/null")
            .write(true)
            // Without NONBLOCK a console that nobody reads would stop PID 1.
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)
    };
    let output = open("/dev/console").or_else(|_| open("/dev/kmsg")).or_else(|_| open("/dev/null"));
    for (file, targets) in [(open("/dev/null"), &[0][..]), (output, &[1, 2][..])] {
        let Ok(file) = file else { continue };
        for &target in targets {
            // SAFETY: dup2 onto 0, 1 or 2 has no memory effects; no owned descriptor lives there.
            unsafe { libc::dup2(file.as_raw_fd(), target) };
        }
        if file.as_raw_fd() <= 2 {
            // A kernel without a console starts us with these slots empty, and this open took
            // one of them; closing it now would empty it again.
            std::mem::forget(file);
        }
    }
}

/// Prints an error and its causes in one line.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}
