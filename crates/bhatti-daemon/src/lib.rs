//! The library behind `bhatti serve`: wiring, HTTP, logs, and a look at the host ([`check`]).
//!
//! [`App::build`] opens everything and binds the port; nothing is spawned for clients yet, so a
//! failure there leaves nothing behind. [`App::run`] serves until it is told to stop.
//!
//! Only [`engine`] names concrete engines.

mod app;
pub mod check;
mod engine;
mod http;
mod listeners;
mod telemetry;

pub use app::{App, StartError};

use std::io::IsTerminal;

use anyhow::Context;
use bhatti_config::ServerConfig;
use bhatti_types::EventKind;
use tokio::signal::unix::{SignalKind, signal};

/// The version in headers, logs and `bhatti version`.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// Runs the daemon until SIGTERM or SIGINT. Machines go on running afterwards and the next daemon
/// adopts them, unless `on_shutdown` says that they are to be frozen. SIGUSR2 freezes every
/// machine, and powers off what cannot be frozen, for an operator who is about to stop the host;
/// the daemon goes on serving.
pub fn serve(config: ServerConfig) -> anyhow::Result<()> {
    telemetry::init();
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers(std::thread::available_parallelism()))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = tokio_util::sync::CancellationToken::new();
        let app = App::build(config).await.inspect_err(|error| {
            // At a terminal the command says it, in words for people, and once is enough.
            if !std::io::stdout().is_terminal() {
                tracing::error!(error = bhatti_lifecycle::chain(error), "failed to start");
            }
        })?;
        let mut terminate =
            signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let mut put_away =
            signal(SignalKind::user_defined2()).context("failed to listen for SIGUSR2")?;
        let token = stop.clone();
        let sandboxes = app.sandboxes();
        let events = app.events();
        let signals = async move {
            let signal = loop {
                tokio::select! {
                    _ = terminate.recv() => break "terminated",
                    _ = tokio::signal::ctrl_c() => break "interrupt",
                    _ = put_away.recv() => {
                        tracing::info!("freezing every machine");
                        sandboxes.freeze_all(app::PUT_AWAY).await;
                        sandboxes.power_off_all(app::PUT_AWAY).await;
                        tracing::info!("every machine that could be is frozen or off");
                    }
                }
            };
            tracing::info!(signal, "shutting down");
            let meta = serde_json::json!({ "signal": signal });
            events.record(EventKind::DaemonShutdown, None, None, meta);
            drop((sandboxes, events));
            token.cancel();
        };
        let ((), result) = tokio::join!(signals, app.run(stop));
        result
    })
}

/// A quarter of the cores: the rest belong to the machines. On a small host one thread is also
/// faster, since handing a request from thread to thread costs more than what is done with it.
fn workers(cores: std::io::Result<std::num::NonZeroUsize>) -> usize {
    (cores.map_or(1, std::num::NonZeroUsize::get) / 4).clamp(1, 16)
}

/// Every connection, machine and image is a descriptor; a shell's usual limit is 1024.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "failed to raise the limit of open files");
    }
}
