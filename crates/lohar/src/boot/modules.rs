//! Loads the kernel modules the initramfs brought, in the order of their file names.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::console::report;

const NO_PARAMETERS: &CStr = c"";

/// How long after the agent began to serve [`Module::load_later`] loads. Longer than it takes to
/// make a snapshot that others are cloned from, so that what a driver does when it is loaded is
/// not done again by every clone in its first moments; and short beside the life of a machine
/// whose memory is worth having back.
const LATER: Duration = Duration::from_secs(20);

/// A module's file, which can be loaded when the initramfs is gone.
#[derive(Debug)]
pub struct Module {
    name: String,
    file: File,
}

/// Loads every `NN-name.ko` in `directory`. Failures are reported and skipped: whether the
/// machine can live without a module shows when its device is needed.
///
/// Returns how many are loaded now. A directory that does not exist holds none: the kernel may
/// have everything built in.
pub fn load_all(directory: &Path) -> usize {
    open_all(directory).iter().filter(|module| module.load()).count()
}

/// Opens every `NN-name.ko` in `directory`, in the order they are to be loaded in. Failures are
/// reported and skipped.
pub fn open_all(directory: &Path) -> Vec<Module> {
    let names = list(directory).unwrap_or_else(|error| {
        report(format_args!("cannot list {}: {error}", directory.display()));
        Vec::new()
    });
    let open = |name: String| match File::open(directory.join(&name)) {
        Ok(file) => Some(Module { name, file }),
        Err(error) => {
            report(format_args!("module {name} not opened: {error}"));
            None
        }
    };
    names.into_iter().filter_map(open).collect()
}

impl Module {
    /// False: that was reported.
    fn load(&self) -> bool {
        match finit_module(&self.file, NO_PARAMETERS, ModuleInitFlags::empty()) {
            // Built in, or loaded before us.
            Ok(()) | Err(Errno::EEXIST) => true,
            Err(error) => {
                report(format_args!("module {} not loaded: {error}", self.name));
                false
            }
        }
    }

    /// Loads them when the machine has run for a while ([`LATER`]).
    pub async fn load_later(modules: Vec<Self>) {
        if modules.is_empty() {
            return;
        }
        tokio::time::sleep(LATER).await;
        let loaded = tokio::task::spawn_blocking(move || {
            for module in modules {
                module.load();
            }
        });
        // It fails only when the agent ends.
        loaded.await.ok();
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
