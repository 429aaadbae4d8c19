//! Reaching a guest: the link, the greeting, and what makes the machine this sandbox.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{Carrier, Exit, Vm};
use bhatti_guest_client::{Configure, Guest, Mode, Network};
use bhatti_store::SandboxRow;
use bhatti_types::EngineId;
use sha2::{Digest, Sha256};

use crate::WakeError;
use crate::machine::World;

/// How long a machine whose link broke may take to be seen dead.
const DYING: Duration = Duration::from_secs(2);

/// Opens a link and greets the guest: it has our clock and fresh randomness afterwards.
///
/// Ends early when the machine does, with the end of its console.
pub(crate) async fn reach(
    world: &World,
    vm: &Arc<dyn Vm>,
    mode: Mode,
    patience: Duration,
) -> Result<Guest, WakeError> {
    let attempt = async {
        let Carrier::Single(io) = vm.open_link().await.map_err(WakeError::Engine)?;
        let (guest, driver) = Guest::connect(io, mode).await?;
        // The driver ends with the carrier, which ends with the machine or the daemon.
        world.tasks.spawn("link", |stop| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = driver => {}
            }
        });
        guest.hello(&world.settings.version).await?;
        Ok(guest)
    };
    tokio::select! {
        biased;
        exit = vm.exited() => {
            Err(WakeError::Died { how: describe(&exit), console: console_tail(vm).await })
        }
        guest = tokio::time::timeout(patience, attempt) => match guest {
            // A machine that dies takes its link with it, and the link is noticed first.
            Ok(Err(error)) => match tokio::time::timeout(DYING, vm.exited()).await {
                Ok(exit) => {
                    Err(WakeError::Died { how: describe(&exit), console: console_tail(vm).await })
                }
                Err(_) => Err(error),
            },
            Ok(Ok(guest)) => Ok(guest),
            Err(_) => Err(WakeError::Silent {
                seconds: patience.as_secs(),
                console: console_tail(vm).await,
            }),
        },
    }
}

/// How a machine ended, for people.
pub(crate) fn describe(exit: &Exit) -> String {
    match exit {
        Exit::Guest => "the guest powered off".to_owned(),
        Exit::Killed => "it was killed".to_owned(),
        Exit::Died { detail } => format!("the VMM died: {detail}"),
    }
}

/// The last lines of the console, short enough for an error message.
async fn console_tail(vm: &Arc<dyn Vm>) -> String {
    const MOST: usize = 600;
    let console = vm.console().await;
    let tail = &console[console.len().saturating_sub(MOST)..];
    String::from_utf8_lossy(tail)
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}

/// 128 bits that belong to the sandbox for its life, whatever it is called.
fn machine_id(id: &EngineId) -> String {
    let digest = Sha256::digest(format!("bhatti machine id {id}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Gives the machine its identity: host name, environment, address. `root_bytes`: how large its
/// disk is, where that may be news to the guest.
pub(crate) async fn configure(
    world: &World,
    row: &SandboxRow,
    guest: &Guest,
    root_bytes: Option<u64>,
) -> Result<(), WakeError> {
    let [a, b, c, _] = row.ip.octets();
    let network = Network {
        address: row.ip.to_string(),
        prefix_len: 24,
        gateway: format!("{a}.{b}.{c}.1"),
        nameservers: world.settings.nameservers.clone(),
        mac: bhatti_net::guest_mac(&row.engine_id),
    };
    let configure = Configure {
        hostname: row.hostname.clone(),
        env: row.env.clone().into_iter().collect::<HashMap<_, _>>(),
        network: Some(network),
        machine_id: machine_id(&row.engine_id),
        root_bytes: root_bytes.unwrap_or(0),
    };
    Ok(guest.configure(configure).await?)
}
