//! Reaching a guest: the link, the greeting, and what makes the machine this sandbox.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bhatti_engine::{Carrier, Exit, Vm};
use bhatti_guest_client::{Configure, Guest, GuestError, Mode, Network};
use bhatti_store::SandboxRow;
use bhatti_types::EngineId;
use sha2::{Digest, Sha256};

use crate::WakeError;
use crate::machine::World;

/// How long a machine whose link broke may take to be seen dead.
const DYING: Duration = Duration::from_secs(2);

/// How a guest is to be reached.
pub(crate) struct Reach {
    pub(crate) mode: Mode,
    /// How long it may take.
    pub(crate) patience: Duration,
    /// The machine stands, and is to go on.
    pub(crate) resume: bool,
    /// Who it is from now on; `None`: who it was.
    pub(crate) identity: Option<Configure>,
}

/// How often a link that broke on a living machine is opened again before that is an error.
const TRIES: u32 = 4;

/// Opens a link and greets the guest: it has our clock and fresh randomness afterwards, and the
/// identity asked for.
///
/// A link that breaks is opened again: a guest that hung up by mistake, or because it took the
/// end of the former host for ours, is no reason to fail. Ends early when the machine does, with
/// the end of its console.
pub(crate) async fn reach(
    world: &World,
    vm: &Arc<dyn Vm>,
    reach: Reach,
) -> Result<Guest, WakeError> {
    let patience = reach.patience;
    let attempts = async {
        let mut tried = 0;
        loop {
            tried += 1;
            match greet(world, vm, &reach).await {
                Err(WakeError::Guest(error @ GuestError::LinkLost(_))) if tried < TRIES => {
                    tracing::info!(error = crate::chain(&error), tried, "a new link broke");
                }
                outcome => return outcome,
            }
        }
    };
    tokio::select! {
        biased;
        exit = vm.exited() => {
            Err(WakeError::Died { how: describe(&exit), console: console_tail(vm).await })
        }
        guest = tokio::time::timeout(patience, attempts) => match guest {
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

async fn greet(world: &World, vm: &Arc<dyn Vm>, reach: &Reach) -> Result<Guest, WakeError> {
    // Before the machine goes on: a guest that was frozen with a host on the line goes on with
    // one, and sees neither its port closed nor opened. That is quicker (its agent would begin
    // anew), and it cannot take that end, which comes by another way than our bytes, for ours.
    let Carrier::Single(io) = vm.open_link().await.map_err(WakeError::Engine)?;
    let resume =
        async { if reach.resume { vm.resume().await.map_err(WakeError::Engine) } else { Ok(()) } };
    let connect = async { Ok(Guest::connect(io, reach.mode).await?) };
    let ((), (guest, driver)) = tokio::try_join!(resume, connect)?;
    // The driver ends with the carrier, which ends with the machine or the daemon.
    world.tasks.spawn("link", |stop| async move {
        tokio::select! {
            () = stop.cancelled() => {}
            end = driver => tracing::debug!(?end, "a link ended"),
        }
    });
    let version = &world.settings.version;
    match &reach.identity {
        Some(identity) => guest.hello_and_configure(version, identity.clone()).await?,
        None => guest.hello(version).await?,
    };
    Ok(guest)
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

/// The identity of a sandbox: host name, environment, address. `root_bytes`: how large its disk
/// is, where that may be news to the guest.
pub(crate) fn identity(row: &SandboxRow, root_bytes: Option<u64>) -> Configure {
    let [a, b, c, _] = row.ip.octets();
    let gateway = format!("{a}.{b}.{c}.1");
    let network = Network {
        address: row.ip.to_string(),
        prefix_len: 24,
        // The only server it may ask.
        nameservers: vec![gateway.clone()],
        gateway,
        mac: bhatti_net::guest_mac(&row.engine_id),
    };
    Configure {
        hostname: row.hostname.clone(),
        env: row.env.clone().into_iter().collect::<HashMap<_, _>>(),
        network: Some(network),
        machine_id: machine_id(&row.engine_id),
        root_bytes: root_bytes.unwrap_or(0),
    }
}
