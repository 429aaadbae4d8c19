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
    server_version: Option<String>,
    version: &'static str,
}

pub(crate) fn run(context: &Context) -> Result<ExitCode, Failure> {
    let client = context.client()?;
    let asked = context.wait(async { tokio::time::timeout(PATIENCE, client.health()).await })?;
    // Any answer has the header, an error as well as a greeting.
    let server = match asked {
        Ok(_) => client.server().version.filter(|version| version != "dev"),
        Err(_late) => None,
    };
    let server = server.map(|version| version.trim_start_matches('v').to_owned());
    let version = env!("CARGO_PKG_VERSION");
    let api = context.url()?;
    let mut text = format!("bhatti v{version}\napi: {api}\n");
    if let Some(server) = &server {
        text.push_str(&format!("server: v{server}\n"));
    }
    context.print(&Versions { api, server_version: server, version }, &text)?;
    Ok(ExitCode::SUCCESS)
}
