//! Giving a paused machine a new top layer; the former one becomes read-only.
//!
//! ```text
//!  sealed: a second name for root.qcow2 ─▶ root-1.qcow2, empty ─▶ VMM puts it on top ─▶ first name
//!                                                                 (the one step       removed,
//!                                                                  that counts)       root's, 0400
//! ```
//!
//! Everything that can fail for a reason of the host comes before the step that counts, and is
//! undone. If its answer is lost, or the daemon with it, a call with the same arguments asks the VMM
//! what it stands on and goes on from there, to the same answer.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::sync::Arc;

use bhatti_engine::{EngineError, RootDisk};
use camino::{Utf8Path, Utf8PathBuf};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};

use crate::disk::{self, MAX_LAYERS, TopName};
use crate::launch::own_disk;
use crate::vm::Shared;
use crate::watcher::Command;
use bhatti_vmm::{blocking, file_error};

/// One sealing, from its first check to its end.
struct Sealing {
    machine: Arc<Shared>,
    disk: RootDisk,
    sealed: Utf8PathBuf,
    old: TopName,
    new: TopName,
}

/// What the first steps have made.
struct Prepared {
    /// The former top layer, open.
    layer: File,
    bytes: u64,
}

/// See [`bhatti_engine::Vm::seal_disk`].
pub(crate) async fn seal(
    machine: Arc<Shared>,
    disk: RootDisk,
    sealed: Utf8PathBuf,
) -> Result<RootDisk, EngineError> {
    let old = own_disk(&disk, &machine.dir)?;
    let sealing = Sealing { new: old.next(), machine, disk, sealed, old };
    let on_top = sealing.on_top().await?;
    // An earlier call may have come that far and not heard of it.
    let switched = on_top == sealing.new.node();
    if !switched && on_top != sealing.old.node() {
        let message = format!("the machine's disk is {on_top}, not {}", sealing.disk.file);
        return Err(EngineError::Control { command: "seal".to_owned(), message });
    }
    let (sealing, prepared) = blocking(move || {
        let prepared = sealing.prepare(switched)?;
        Ok((sealing, prepared))
    })
    .await?;
    if !switched && let Err(error) = sealing.put_on_top().await {
        match sealing.on_top().await {
            // The deed was done, and only the answer was lost.
            Ok(node) if node == sealing.new.node() => {}
            // If nobody can tell, the new layer may be in use.
            told => {
                sealing.undo(told.is_ok());
                return Err(error);
            }
        }
    }
    blocking(move || sealing.finish(prepared)).await
}

impl Sealing {
    async fn on_top(&self) -> Result<String, EngineError> {
        self.machine.ask(Command::Disk).await.map(|disk| disk.node)
    }

    async fn put_on_top(&self) -> Result<(), EngineError> {
        let (new, old) = (self.new.clone(), self.old.clone());
        self.machine.ask(|reply| Command::PutOnTop { new, old, reply }).await
    }

    /// Gives the top layer its second name and makes the new one, unless that is in use already.
    fn prepare(&self, switched: bool) -> Result<Prepared, EngineError> {
        let path = &self.disk.file;
        if self.disk.layers.len() >= MAX_LAYERS {
            let why = format!("it lies on {MAX_LAYERS} layers, which is the most");
            return Err(file_error("seal", path)(io::Error::other(why)));
        }
        let dir = &self.machine.dir;
        let layer = match dir.open_file(&self.old.file()) {
            // The last step but one of an earlier call.
            Err(error) if switched && error.kind() == io::ErrorKind::NotFound => {
                disk::open_layer(&self.sealed)?.0
            }
            other => other.map_err(file_error("open", path))?,
        };
        let bytes =
            disk::check_overlay(&layer, self.disk.bytes).map_err(file_error("use", path))?;
        link(&layer, &self.sealed).map_err(file_error("name a disk layer", &self.sealed))?;
        if !switched {
            let made = dir
                .remove(&self.new.file())
                .map_err(|error| dir.error("remove", &self.new.file(), error))
                .and_then(|()| {
                    disk::create_overlay(dir.path(), &self.new, bytes, self.machine.owner)
                });
            if let Err(error) = made {
                self.undo(false);
                return Err(error);
            }
        }
        Ok(Prepared { layer, bytes })
    }

    /// Removes what [`Self::prepare`] made; the new layer only if nobody uses it.
    fn undo(&self, new_layer_too: bool) {
        let told = |error: io::Error| {
            let dir = self.machine.dir.path();
            tracing::warn!(%error, %dir, "cannot remove what a failed sealing has made");
        };
        std::fs::remove_file(&self.sealed).unwrap_or_else(told);
        if new_layer_too {
            self.machine.dir.remove(&self.new.file()).unwrap_or_else(told);
        }
    }

    /// Takes the former top layer out of the VMM's hands.
    fn finish(self, prepared: Prepared) -> Result<RootDisk, EngineError> {
        let Prepared { layer, bytes } = prepared;
        let Self { machine, disk, sealed, old, new } = self;
        let read_only = std::fs::Permissions::from_mode(0o400);
        fchown(&layer, Some(0), Some(0))
            .and_then(|()| layer.set_permissions(read_only))
            .map_err(file_error("take over", &sealed))?;
        if let Err(error) = machine.dir.remove(&old.file()) {
            tracing::warn!(%error, dir = %machine.dir.path(), "a sealed layer keeps its old name");
        }
        let RootDisk { base, mut layers, format, .. } = disk;
        layers.push(sealed);
        let file = machine.dir.path().join(new.file());
        Ok(RootDisk { file, base, layers, bytes: Some(bytes), format })
    }
}

/// Gives an open file another name: this file, whatever its first name means by now.
fn link(file: &File, name: &Utf8Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = AtFlags::AT_SYMLINK_FOLLOW;
    match nix::unistd::linkat(AT_FDCWD, open.as_str(), AT_FDCWD, name.as_std_path(), flags) {
        Err(Errno::EEXIST) if is(name, file)? => Ok(()),
        other => Ok(other?),
    }
}

/// Whether a name is this file's already.
fn is(name: &Utf8Path, file: &File) -> io::Result<bool> {
    let (there, here) = (std::fs::symlink_metadata(name)?, file.metadata()?);
    Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
}
