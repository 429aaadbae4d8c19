//! Where PID 1 prints: the console if there is one, the kernel's log otherwise.
//!
//! Promise: printing never blocks, never fails and never panics, whatever the console does.

use std::error::Error;
use std::fmt;
use std::fs::File;
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
    // A kernel without a console starts us with none of the three open; whatever is opened next
    // takes their place. So fill them first.
    let null = loop {
        match open("/dev/null") {
            Ok(file) if file.as_raw_fd() <= 2 => std::mem::forget(file),
            Ok(file) => break file,
            Err(_) => return,
        }
    };
    let output = open("/dev/console").or_else(|_| open("/dev/kmsg"));
    let output = output.as_ref().unwrap_or(&null);
    for (file, target) in [(&null, 0), (output, 1), (output, 2)] {
        // SAFETY: dup2 has no memory effects, and no owned descriptor lives in 0, 1 or 2.
        unsafe { libc::dup2(file.as_raw_fd(), target) };
    }
}

fn open(path: &str) -> std::io::Result<File> {
    File::options()
        .read(path == "/dev/null")
        .write(true)
        // Without NONBLOCK a console that nobody reads would stop PID 1.
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)
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
