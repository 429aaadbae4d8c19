//! The library behind `bhatti serve`: wiring, HTTP, logs.
//!
//! [`App::build`] opens everything and binds the port; nothing is spawned for clients yet, so a
//! failure there leaves nothing behind. [`App::run`] serves until it is told to stop.
//!
//! Only [`app`] names a concrete engine.

mod app;
mod http;
mod telemetry;

pub use app::{App, StartError};

use anyhow::Context;
use bhatti_config::ServerConfig;

/// The version in headers, logs and `bhatti version`.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// Runs the daemon until SIGTERM or SIGINT. Machines go on running afterwards; the next daemon
/// adopts them.
pub fn serve(config: ServerConfig) -> anyhow::Result<()> {
    telemetry::init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = tokio_util::sync::CancellationToken::new();
        let app = App::build(config).await.inspect_err(|error| {
            tracing::error!(error = bhatti_lifecycle::chain(error), "failed to start");
        })?;
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .context("failed to listen for SIGTERM")?;
        let token = stop.clone();
        let signals = async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!(signal = "terminated", "shutting down"),
                _ = tokio::signal::ctrl_c() => tracing::info!(signal = "interrupt", "shutting down"),
            }
            token.cancel();
        };
        let ((), result) = tokio::join!(signals, app.run(stop));
        result
    })
}
