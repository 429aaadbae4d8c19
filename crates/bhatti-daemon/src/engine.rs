//! Which engine runs the machines. The only file that names concrete ones.
//!
//! `engine: auto` takes Firecracker where one is found and works, and QEMU elsewhere. It stays with
//! the engine that has saved memory, as long as that one works: what one has saved the other cannot
//! continue, and nobody asked for a move. Looking is one thing ([`start`]), deciding another
//! ([`decide`], pure).

use std::sync::Arc;

use bhatti_config::{EngineChoice, ServerConfig};
use bhatti_engine::{Accel, DiskFormat, Engine, EngineError, EngineInfo, EngineName, RootDisk};
use bhatti_engine_firecracker::{FirecrackerConfig, FirecrackerEngine, Limits};
pub(crate) use bhatti_engine_qemu::Claim;
use bhatti_engine_qemu::{QemuConfig, QemuEngine};
use bhatti_store::{Store, StoreError};
use bhatti_types::Phase;
use camino::Utf8Path;

use crate::check::files_share_blocks;

/// The engine of this daemon.
pub(crate) struct Chosen {
    pub(crate) engine: Arc<dyn Engine>,
    /// What the API tells of it.
    pub(crate) info: EngineInfo,
    /// Held for as long as this daemon may end machines.
    pub(crate) claim: Claim,
}

/// How many sandboxes and snapshots have memory that only one engine can continue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    qemu: usize,
    firecracker: usize,
}

impl Bound {
    /// Counts them in the records.
    pub(crate) fn of(store: &Store) -> Result<Self, StoreError> {
        let holds = |phase| match phase {
            Phase::Hot | Phase::Warm | Phase::Cold | Phase::Unknown => true,
            Phase::Creating | Phase::Stopped | Phase::Destroying => false,
        };
        let (sandboxes, _unreadable) = store.all_sandboxes()?;
        let sandboxes = sandboxes.into_iter().filter(|row| holds(row.phase));
        let snapshots = store.all_snapshots()?.into_iter().map(|row| row.disk);
        let mut bound = Self::default();
        for disk in sandboxes.map(|row| row.root_disk).chain(snapshots).flatten() {
            // Each engine has its own kind of disk. What cannot be read binds nobody.
            match serde_json::from_value::<RootDisk>(disk).map(|disk| disk.format) {
                Ok(DiskFormat::Qcow2) => bound.qemu += 1,
                Ok(DiskFormat::Raw) => bound.firecracker += 1,
                Err(_) => {}
            }
        }
        Ok(bound)
    }
}

/// Looks at the host and starts the engine that is to be used. It has touched no machine yet.
pub(crate) async fn start(config: &ServerConfig, bound: Bound) -> Result<Chosen, EngineError> {
    // Nothing is looked for that nobody wants.
    let firecracker = match config.engine {
        EngineChoice::Qemu => None,
        EngineChoice::Auto | EngineChoice::Firecracker => {
            Some(FirecrackerEngine::start(firecracker_config(config)).await)
        }
    };
    let works = match &firecracker {
        None => Ok(()),
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(bhatti_lifecycle::chain(error)),
    };
    let Decision { take, why, warning } = decide(config.engine, works, bound);
    let (engine, claim): (Arc<dyn Engine>, _) = match (take, firecracker) {
        (Take::Firecracker, Some(firecracker)) => {
            let firecracker = firecracker?;
            let claim = firecracker.claim()?;
            (Arc::new(firecracker), claim)
        }
        (Take::Firecracker, None) | (Take::Qemu, _) => {
            let qemu = QemuEngine::start(qemu_config(config)).await?;
            let claim = qemu.claim()?;
            (Arc::new(qemu), claim)
        }
    };
    let mut info = engine.info().clone();
    info.why = format!("{why}; {}", info.why);
    info.warnings.extend(warning);
    if info.name == EngineName::Qemu && config.limits != bhatti_config::Limits::default() {
        let warning = "\"limits\" in the configuration are kept by firecracker only";
        info.warnings.push(warning.to_owned());
    }
    announce(&info);
    if engine.disk_format() == DiskFormat::Raw {
        announce_copies(&config.data_dir);
    }
    Ok(Chosen { engine, info, claim })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    Qemu,
    Firecracker,
}

#[derive(Debug, PartialEq, Eq)]
struct Decision {
    take: Take,
    /// One clause.
    why: String,
    /// What an operator should know who did not expect this.
    warning: Option<String>,
}

/// Which engine to take. `works` says why Firecracker cannot be used, if it cannot.
fn decide(choice: EngineChoice, works: Result<(), String>, bound: Bound) -> Decision {
    let because = |take, why: &str| Decision { take, why: why.to_owned(), warning: None };
    let Bound { qemu, firecracker } = bound;
    match (choice, works) {
        (EngineChoice::Qemu, _) => because(Take::Qemu, "the configuration asks for qemu"),
        (EngineChoice::Firecracker, _) => {
            because(Take::Firecracker, "the configuration asks for firecracker")
        }
        (EngineChoice::Auto, Ok(())) if qemu > firecracker => Decision {
            warning: Some(format!(
                "firecracker would work here; qemu is kept for {qemu} sandboxes and snapshots with \
                 memory it has saved. Set \"engine: firecracker\" to move: what is stopped moves \
                 along, memory does not"
            )),
            ..because(Take::Qemu, "it has saved memory of sandboxes here")
        },
        (EngineChoice::Auto, Ok(())) => Decision {
            warning: (qemu > 0).then(|| {
                format!(
                    "{qemu} sandboxes and snapshots have memory that qemu has saved and firecracker \
                     cannot continue (it has saved that of {firecracker}): set \"engine: qemu\" to \
                     continue them"
                )
            }),
            ..because(Take::Firecracker, "firecracker works here")
        },
        (EngineChoice::Auto, Err(why)) => Decision {
            warning: (firecracker > 0).then(|| {
                format!(
                    "{firecracker} sandboxes and snapshots have memory that firecracker has saved \
                     and qemu cannot continue, and firecracker cannot be used: {why}"
                )
            }),
            ..because(Take::Qemu, &why)
        },
    }
}

/// Two daemons on a host must not sweep each other's machines, whichever engines they use: the
/// control groups are named after the network.
fn cgroup(config: &ServerConfig) -> String {
    config.network_prefix.trim_end_matches('-').to_owned()
}

pub(crate) fn firecracker_config(config: &ServerConfig) -> FirecrackerConfig {
    FirecrackerConfig {
        program: config.firecracker_bin.clone(),
        seccomp_filter: config.firecracker_seccomp_filter.clone(),
        limits: limits(config.limits),
        cgroup: cgroup(config),
    }
}

fn limits(limits: bhatti_config::Limits) -> Limits {
    let bytes = |mib: Option<u32>| mib.map(|mib| u64::from(mib) << 20);
    Limits {
        disk_bytes: bytes(limits.disk_mb_per_sec),
        disk_operations: limits.disk_ops_per_sec.map(u64::from),
        network_bytes: bytes(limits.network_mb_per_sec),
    }
}

pub(crate) fn qemu_config(config: &ServerConfig) -> QemuConfig {
    QemuConfig { program: config.qemu_bin.clone(), cgroup: cgroup(config), ..QemuConfig::default() }
}

fn announce(info: &EngineInfo) {
    let EngineInfo { name, version, accel, why, .. } = info;
    tracing::info!(engine = %name, version, %accel, why, "engine chosen");
    if *accel == Accel::Tcg {
        tracing::warn!(
            why,
            "no hardware virtualisation: guests run under software emulation, several times slower"
        );
    }
    for warning in &info.warnings {
        tracing::warn!(warning, "the engine, or this host, is not all it should be");
    }
}

/// An engine that needs whole files copies an image for each create.
fn announce_copies(data_dir: &Utf8Path) {
    match files_share_blocks(data_dir) {
        Ok(true) => tracing::info!("disks are copied by reference"),
        Ok(false) => tracing::warn!(
            %data_dir,
            "disks are copied whole, without their holes: its file system cannot share blocks; XFS and \
             Btrfs can"
        ),
        Err(error) => tracing::warn!(%error, %data_dir, "it cannot be tried how disks are copied"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Bound = Bound { qemu: 0, firecracker: 0 };

    #[test]
    fn what_is_asked_for_is_taken_whatever_works() {
        for bound in [NOTHING, Bound { qemu: 3, firecracker: 0 }, Bound { qemu: 0, firecracker: 3 }]
        {
            for works in [Ok(()), Err("no KVM".to_owned())] {
                let taken = |choice| decide(choice, works.clone(), bound).take;
                assert_eq!(taken(EngineChoice::Qemu), Take::Qemu);
                assert_eq!(taken(EngineChoice::Firecracker), Take::Firecracker);
            }
        }
    }

    #[test]
    fn auto_takes_what_works_and_does_not_move_by_itself() {
        let auto = |works, bound| decide(EngineChoice::Auto, works, bound);
        let no_kvm = || Err("no KVM".to_owned());
        assert_eq!(auto(Ok(()), NOTHING).take, Take::Firecracker);
        let emulated = auto(no_kvm(), NOTHING);
        assert_eq!((emulated.take, emulated.why.as_str()), (Take::Qemu, "no KVM"));
        assert_eq!(emulated.warning, None);

        let stays = auto(Ok(()), Bound { qemu: 2, firecracker: 1 });
        assert_eq!(stays.take, Take::Qemu);
        assert!(stays.warning.expect("a warning").contains("2 sandboxes and snapshots"));
        let moved = auto(Ok(()), Bound { qemu: 0, firecracker: 2 });
        assert_eq!((moved.take, moved.warning), (Take::Firecracker, None));
        for bound in [Bound { qemu: 1, firecracker: 2 }, Bound { qemu: 1, firecracker: 1 }] {
            let mixed = auto(Ok(()), bound);
            assert_eq!(mixed.take, Take::Firecracker);
            assert!(mixed.warning.expect("a warning").contains("engine: qemu"), "{bound:?}");
        }
        let lost = auto(no_kvm(), Bound { qemu: 0, firecracker: 2 });
        assert_eq!(lost.take, Take::Qemu);
        assert!(lost.warning.expect("a warning").contains("no KVM"));
    }
}
