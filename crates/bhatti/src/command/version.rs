//! `bhatti version`

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;

/// The server gets this long to say its version; without it the rest is printed.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Versions<'a> {
    api: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_version: Option<String>,
    version: &'static str,
}

pub(crate) fn run(context: &Context) -> Result<ExitCode, Failure> {
    let client = context.client()?;
    let asked = context.wait(async { tokio::time::timeout(PATIENCE, client.health()).await })?;
    // Any answer has the header, an error as well as a greeting.
    let (server, health) = match asked {
        Ok(health) => (client.server().version.filter(|version| version != "dev"), health.ok()),
        Err(_late) => (None, None),
    };
    // Older servers do not say which engine they run.
    let engine = health.as_ref().map(|health| health.engine.as_str()).filter(|e| !e.is_empty());
    let server = server.map(|version| version.trim_start_matches('v').to_owned());
    let version = env!("CARGO_PKG_VERSION");
    let api = context.url()?;
    let mut text = format!("bhatti v{version}\napi: {api}\n");
    if let Some(server) = &server {
        text.push_str(&format!("server: v{server}\n"));
    }
    if let Some(engine) = engine {
        text.push_str(&format!("engine: {engine}\n"));
    }
    context.print(&Versions { api, engine, server_version: server, version }, &text)?;
    Ok(ExitCode::SUCCESS)
}
