//! Loads the kernel modules the initramfs brought, in the order of their file names.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::console::report;

const NO_PARAMETERS: &CStr = c"";

/// Loads every `NN-name.ko` in `directory`. Failures are reported and skipped: whether the
/// machine can live without a module shows when its device is needed.
///
/// Returns how many are loaded now. A directory that does not exist holds none: the kernel may
/// have everything built in.
pub fn load_all(directory: &Path) -> usize {
    let files = match list(directory) {
        Ok(files) => files,
        Err(error) => {
            report(format_args!("cannot list {}: {error}", directory.display()));
            return 0;
        }
    };
    let mut loaded = 0;
    for name in files {
        match load(&directory.join(&name)) {
            Ok(()) => loaded += 1,
            Err(error) => report(format_args!("module {name} not loaded: {error}")),
        }
    }
    loaded
}

fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, NO_PARAMETERS, ModuleInitFlags::empty()) {
        // Built in, or loaded before us.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn list(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && name.ends_with(".ko")
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["10-net.ko", "00-virtio.ko", "02-mmio.ko", "README"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), ["00-virtio.ko", "02-mmio.ko", "10-net.ko"]);
        assert_eq!(list(&dir.path().join("none")).unwrap(), [""; 0]);
    }

    #[test]
    fn a_file_that_is_no_module_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("00-bad.ko"), "not ELF").unwrap();
        assert_eq!(load_all(dir.path()), 0);
    }
}
