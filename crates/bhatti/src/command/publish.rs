//! `bhatti publish`

use std::process::ExitCode;

use bhatti_api::{NO_PUBLIC_PROXY, Publish, Published, ShellToken, route};
use serde::Serialize;

use super::port::port;
use crate::context::Context;
use crate::failure::{Failure, chain};

/// Publish a sandbox port with a public URL
///
/// Whoever has the URL reaches what listens on the port, without an account; a sleeping sandbox
/// wakes for it. With --auth only who has the token too: browsers by the link that is printed,
/// programs by the header X-Bhatti-Token. It stays published until `bhatti unpublish` or the end of the sandbox. Publishing a
/// port again says where it is.
#[derive(clap::Args, Debug)]
#[command(override_usage = "bhatti publish <SANDBOX> --port <PORT> [flags]")]
pub(crate) struct PublishArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Port to publish (required)
    #[arg(short, long, value_name = "PORT", value_parser = port::<i64>)]
    port: Option<i64>,
    /// What the URL calls it (default: the sandbox's name and something random)
    #[arg(short, long, value_name = "ALIAS")]
    alias: Option<String>,
    /// Only for who has a token; each time it is asked for a new one is made
    #[arg(long)]
    auth: bool,
    /// Print a link to a web shell in the sandbox too
    #[arg(long)]
    shell: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    published: &'a Published,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell_url: Option<&'a str>,
}

pub(crate) fn run(context: &Context, args: PublishArgs) -> Result<ExitCode, Failure> {
    let port = required(args.port)?;
    if args.alias.as_deref() == Some("") {
        // As a script with an unset variable has it: its URL would be another each time.
        return Err(Failure::text(
            "--alias must not be empty; leave it out for one that is made up",
        ));
    }
    let client = context.client()?;
    let wanted = Publish { port, alias: args.alias.unwrap_or_default(), auth: args.auth };
    let published = context.call_about(&args.sandbox, client.publish(&args.sandbox, &wanted))?;
    if wanted.auth && !published.auth {
        // A server from before there were tokens has not read that word.
        return Err(Failure::text(format!(
            "this server cannot ask for a token: {} is for anybody; bhatti unpublish {} -p {port}",
            published.url, args.sandbox
        )));
    }
    if !wanted.alias.is_empty() && wanted.alias != published.alias {
        let Published { alias, .. } = &published;
        context.say(&format!(
            "Warning: port {port} is published as {alias} already, and stays it; for another alias, \
             bhatti unpublish {} -p {port} first\n",
            args.sandbox
        ));
    }
    let shell = if args.shell { share(context, &published)? } else { None };
    if !context.globals.json && published.url.contains(NO_PUBLIC_PROXY) {
        context.say(&nowhere(context.url()?, &published));
        if let Some(shell) = &shell {
            context.write(format!("Shell:     {}\n", shell.url).as_bytes())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("Published: {}\n", published.url);
    match (&published.link, &published.token) {
        (Some(link), Some(token)) => {
            text.push_str(&format!("Link:      {link}\nToken:     {token}\n"));
            text.push_str("It is shown this once; publish --auth makes another.\n");
        }
        _ if published.auth => {
            text.push_str("It asks for a token; publish --auth makes a new one.\n");
        }
        _ => {}
    }
    if let Some(shell) = &shell {
        text.push_str(&format!("Shell:     {}\n", shell.url));
    }
    let shown = Shown {
        published: &published,
        shell_token: shell.as_ref().map(|shell| shell.token.as_str()),
        shell_url: shell.as_ref().map(|shell| shell.url.as_str()),
    };
    context.print(&shown, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// The port, which is a flag and has no default.
pub(crate) fn required(port: Option<i64>) -> Result<i64, Failure> {
    port.ok_or_else(|| Failure::text("required flag(s) \"port\" not set"))
}

/// That there is no link to a shell does not make the port less public.
fn share(context: &Context, published: &Published) -> Result<Option<ShellToken>, Failure> {
    match context.wait(context.client()?.share(&published.sandbox_id))? {
        Ok(shell) => Ok(Some(shell)),
        Err(error) => {
            let why = chain(&error);
            context.say(&format!("Warning: failed to generate shell token: {why}\n"));
            Ok(None)
        }
    }
}

fn nowhere(endpoint: &str, published: &Published) -> String {
    let path = route::proxy(&published.sandbox_id, published.port);
    format!(
        "The server answers no published ports.\n  Setup: set public_proxy_listen in its \
         configuration.\n\nIn the meantime, use the proxy URL directly:\n  {endpoint}{path}\n"
    )
}
