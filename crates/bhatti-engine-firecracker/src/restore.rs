//! Bringing a machine back: everything that can be refused is refused before a process starts.
//!
//! ```text
//!  manifest fits? state whole? template ──▶ VMM ──▶ load… held at its disk ─▶ pages ─▶ …stands
//! ```

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{BootSpec, EngineError, Piece, RestoreSpec};
use bhatti_vmm::manifest::{Manifest, Wanted};
use bhatti_vmm::memory::{Anonymous, Mapping, Zero, chain, of_process};
use bhatti_vmm::{blocking, nameless};
use camino::Utf8PathBuf;
use hyper::Method;
use tokio::time::timeout;

use crate::api::Outcome;
use crate::config::{
    BackendType, DRIVE, HANDOVER, INTERFACE, MemoryBackend, NetworkOverride, PartialDrive,
    PartialNetworkInterface, ROOT_DISK, SnapshotLoad,
};
use crate::engine::Inner;
use crate::handover::Handover;
use crate::hold::Hold;
use crate::launch::{self, Ground, Origin, Started, inherited, watched};
use crate::vm::FirecrackerVm;

/// How long Firecracker may take to load a state and map its memory.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);
const LOAD: &str = "/snapshot/load";
/// As much of its reason as people are shown.
const SHOWN: usize = 500;

/// What it takes to load a snapshot that fits, beside what the VMM is started with.
struct Ready {
    /// What is put over the ground.
    pages: Option<Utf8PathBuf>,
    /// The disk is larger than the machine remembers.
    has_grown: bool,
}

impl Inner {
    /// See [`bhatti_engine::Engine::restore`].
    pub(crate) async fn restore(
        self: Arc<Self>,
        spec: RestoreSpec,
    ) -> Result<Arc<FirecrackerVm>, EngineError> {
        let RestoreSpec { machine, snapshot, base } = spec;
        let this = Arc::clone(&self);
        let (machine, origin, ready) = blocking(move || {
            let (origin, ready) = this.prepare(&machine, &snapshot, base)?;
            Ok((machine, origin, ready))
        })
        .await?;
        let mut started = self.start(machine, origin).await?;
        match started.load(ready).await {
            Ok(()) => Ok(watched(started, &self)),
            Err(cause) => Err(started.give_up(cause).await),
        }
    }

    fn prepare(
        &self,
        machine: &BootSpec,
        snapshot: &Utf8PathBuf,
        base: Option<Utf8PathBuf>,
    ) -> Result<(Origin, Ready), EngineError> {
        let manifest = Manifest::read(snapshot)?;
        let itself = base.as_ref() == Some(snapshot);
        let disk_bytes = machine.root.bytes.unwrap_or(manifest.disk_bytes);
        let wanted = Wanted {
            vcpus: machine.shape.vcpus(),
            memory: machine.shape.memory,
            disk_bytes,
            base: base.as_deref().filter(|_| !itself),
        };
        manifest.admits(&self.host, wanted)?;
        let devices = nameless(&manifest.state(snapshot)?)?;
        let bytes = machine.shape.memory.bytes();
        let memory = match base {
            // Huge pages are shared with nobody, so a clone on them has all its memory loaded.
            Some(_) if machine.hugepages && !itself => {
                let why = "a machine on huge pages shares no memory with a base".to_owned();
                return Err(EngineError::Unusable { why });
            }
            _ if machine.hugepages => Ground::Huge,
            Some(base) => Ground::Template(Arc::new(self.templates.get(&[base], bytes)?)),
            None => Ground::Zero(Zero::new(bytes)?),
        };
        let pages = (!itself || machine.hugepages).then(|| snapshot.clone());
        let has_grown = disk_bytes > manifest.disk_bytes;
        Ok((Origin::Snapshot { devices, memory }, Ready { pages, has_grown }))
    }
}

impl Started {
    /// Puts a snapshot into the waiting VMM, whose machine stands afterwards.
    async fn load(&mut self, ready: Ready) -> Result<(), EngineError> {
        let Origin::Snapshot { devices, memory } = &self.origin else { return Ok(()) };
        let overrides = self.tap.iter().map(|tap| NetworkOverride {
            iface_id: INTERFACE,
            host_dev_name: tap.name().to_owned(),
        });
        let (mem_backend, handover) = match memory.descriptor() {
            Some(file) => {
                let backend_path = inherited(file);
                (MemoryBackend { backend_path, backend_type: BackendType::File }, None)
            }
            None => {
                let offer = Handover::offer(&self.dir, self.owner);
                let offer = offer.map_err(|error| self.dir.error("make", HANDOVER, error))?;
                let backend_path = HANDOVER.to_owned();
                (MemoryBackend { backend_path, backend_type: BackendType::Uffd }, Some(offer))
            }
        };
        let request = SnapshotLoad {
            snapshot_path: inherited(devices.as_raw_fd()),
            mem_backend,
            resume_vm: false,
            network_overrides: overrides.collect(),
        };
        let answer = self.api.tell(Method::PUT, LOAD, &request, LOAD_PATIENCE * 10);
        let (outcome, found) = match ready.pages {
            None => (answer.await?, None),
            Some(pages) => self.load_over(answer, handover, pages).await?,
        };
        accepted(outcome)?;
        match found {
            Some(pieces) => self.record.memory_at = pieces,
            None => drop(self.find_memory(Anonymous::Not)?),
        }
        // It remembers the limits of when it was saved.
        let (rate_limiter, network) = self.limits.again();
        let path_on_host = ready.has_grown.then_some(ROOT_DISK);
        let drive = PartialDrive { drive_id: DRIVE, path_on_host, rate_limiter };
        self.api.patch("/drives/root", &drive).await?;
        if self.tap.is_some() {
            let interface = PartialNetworkInterface {
                iface_id: INTERFACE,
                rx_rate_limiter: network,
                tx_rate_limiter: network,
            };
            self.api.patch("/network-interfaces/eth0", &interface).await?;
        }
        self.settle().await
    }

    /// Has the VMM load the devices over memory that is put in while it is held. Says where that is.
    async fn load_over(
        &self,
        answer: impl Future<Output = Result<Outcome, EngineError>>,
        handover: Option<Handover>,
        pages: Utf8PathBuf,
    ) -> Result<(Outcome, Option<Vec<Piece>>), EngineError> {
        let failed = |error| self.dir.error("watch", ROOT_DISK, error);
        let disk = self.dir.open_file(ROOT_DISK).map_err(failed)?;
        let hold = Hold::on(&disk).await.map_err(failed)?;
        tokio::pin!(answer);
        let held = timeout(LOAD_PATIENCE, async {
            let pieces = match handover {
                Some(handover) => Some(handover.taken().await?),
                None => None,
            };
            Ok((hold.held(self.record.pid).await?, pieces))
        });
        let (held, pieces) = tokio::select! {
            biased;
            held = held => held.map_err(|_| EngineError::Timeout {
                action: "open its disk",
                seconds: LOAD_PATIENCE.as_secs(),
            })?.map_err(failed)?,
            answer = &mut answer => {
                return match answer? {
                    Outcome::Done => Err(EngineError::Control {
                        command: LOAD.to_owned(),
                        message: "it has not opened its disk".to_owned(),
                    }),
                    refused => Ok((refused, None)),
                };
            }
        };
        let pieces = self.put_pages(pages, pieces).await?;
        drop(held);
        Ok((answer.await?, Some(pieces)))
    }

    async fn put_pages(
        &self,
        dir: Utf8PathBuf,
        pieces: Option<Vec<Piece>>,
    ) -> Result<Vec<Piece>, EngineError> {
        let Origin::Snapshot { memory, .. } = &self.origin else { return Ok(Vec::new()) };
        let (size, pid) = (self.shape.memory, self.record.pid);
        let is_huge = pieces.is_some();
        let mapping = match pieces {
            // It is held, so it lives.
            Some(pieces) => Mapping::at(pid, pieces, false)?,
            None => of_process(&self.process, pid, size.bytes(), Anonymous::Not)?,
        };
        let pieces = mapping.pieces().to_vec();
        let template = match memory {
            Ground::Template(template) => Some(Arc::clone(template)),
            Ground::Zero(_) | Ground::Huge => None,
        };
        let load = move || {
            let loaded = chain::load(&dir, template.as_ref().map(|used| &***used), &mapping);
            match loaded {
                Ok(()) => Ok(mapping),
                Err(error) if is_huge => Err(launch::short_of_pages(size, error)),
                Err(error) => Err(error.into()),
            }
        };
        let mapping = blocking(load).await?;
        match memory {
            Ground::Zero(zero) => zero.forget()?,
            Ground::Template(_) => {}
            Ground::Huge => self.populate(mapping).await?,
        }
        Ok(pieces)
    }
}

/// A state that is whole and that Firecracker refuses: another kernel of this host, or less of its CPU
/// than there was, is the likeliest reason. So it is of use elsewhere, and nobody may give it up.
fn accepted(outcome: Outcome) -> Result<(), EngineError> {
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Refused(message) => {
            let message: String = message.chars().take(SHOWN).collect();
            let why = format!(
                "Firecracker cannot continue its memory on this host as it is now ({message}): what it \
                 was saved on, the kernel too, can"
            );
            Err(EngineError::Foreign { why })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_refused_is_not_given_up() {
        accepted(Outcome::Done).unwrap();
        let message = format!("Load snapshot error: no such MSR{}", "x".repeat(2000));
        match accepted(Outcome::Refused(message)).unwrap_err() {
            EngineError::Foreign { why } => {
                assert!(why.contains("no such MSR") && why.len() < 1000, "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
}
