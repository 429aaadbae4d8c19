//! `bhatti forward`

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bhatti_client::{Client, ClientError, Forwarded, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, copy_bidirectional, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::exec::stdin;
use super::port::port;
use crate::context::Context;
use crate::failure::{Failure, chain, say};

/// The most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// A server that has been asked too often is asked again after this, and how many times.
const RETRY: Duration = Duration::from_millis(250);
const RETRIES: u32 = 40;

/// Forward a local port to a port of a sandbox
///
/// Programs on this machine reach what listens in the sandbox, also on its 127.0.0.1 only, until
/// this command is interrupted. Connections go through the API, so nothing has to be published. A
/// sleeping sandbox wakes for a connection and stays awake while there is one.
#[derive(clap::Args, Debug)]
pub(crate) struct ForwardArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Port in the sandbox
    #[arg(value_parser = port::<u16>)]
    guest_port: u16,
    /// Port on this machine (default: the same; 0: any that is free)
    #[arg(value_parser = port::<u16>)]
    local_port: Option<u16>,
    /// One connection, on standard input and output: for ssh's ProxyCommand
    #[arg(long)]
    stdio: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Listening<'a> {
    listen: String,
    sandbox: &'a str,
    port: u16,
}

pub(crate) fn run(context: &Context, args: &ForwardArgs) -> Result<ExitCode, Failure> {
    if args.guest_port == 0 {
        return Err(Failure::text("port must be 1-65535"));
    }
    let (client, sandbox) = (context.client()?, &args.sandbox);
    if args.stdio {
        let connected = context.call_about(sandbox, client.forward(sandbox, args.guest_port))?;
        let joined = context.wait(join(connected, stdin::read()?, tokio::io::stdout()))?;
        return joined.map(|()| ExitCode::SUCCESS).map_err(|error| broken(args, &error));
    }
    // A wrong name is told now, not to whoever connects.
    context.call_about(sandbox, client.get(sandbox))?;
    let local = args.local_port.unwrap_or(args.guest_port);
    let listener = context.wait(TcpListener::bind((Ipv4Addr::LOCALHOST, local)))?;
    let listener = listener.map_err(|error| cannot_listen(args, local, &error))?;
    let address = listener.local_addr()?;
    announce(context, args, address)?;
    context.wait(accept(&listener, client, args))?
}

fn announce(context: &Context, args: &ForwardArgs, address: SocketAddr) -> Result<(), Failure> {
    let ForwardArgs { sandbox, guest_port: port, .. } = args;
    let listening = Listening { listen: address.to_string(), sandbox, port: *port };
    context.print(&listening, &format!("Forwarding {address} to {sandbox}:{port}\n"))
}

fn cannot_listen(args: &ForwardArgs, local: u16, error: &io::Error) -> Failure {
    let ForwardArgs { sandbox, guest_port, .. } = args;
    Failure::text(format!(
        "cannot listen on port {local}: {error}; name another: \
         bhatti forward {sandbox} {guest_port} <local-port>"
    ))
}

fn broken(args: &ForwardArgs, error: &io::Error) -> Failure {
    let ForwardArgs { sandbox, guest_port, .. } = args;
    Failure::text(format!(
        "the connection to {sandbox}:{guest_port} broke: {error}; the program or its sandbox has \
         ended it, or the server was restarted"
    ))
}

/// Ends only with the program.
async fn accept(
    listener: &TcpListener,
    client: &Client,
    args: &ForwardArgs,
) -> Result<ExitCode, Failure> {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => connections.push(serve(stream, client, args)),
                Err(error) => {
                    say(&format!("Warning: a connection was not accepted: {error}\n"));
                    sleep(RETRY).await;
                }
            },
            Some(()) = connections.next() => {}
        }
    }
}

/// One connection, to its end. What goes wrong with it is no reason for the others to end.
async fn serve(mut stream: TcpStream, client: &Client, args: &ForwardArgs) {
    let ForwardArgs { sandbox, guest_port, .. } = args;
    match connect(client, sandbox, *guest_port).await {
        Ok(mut connected) => {
            drop(stream.set_nodelay(true));
            if copy_bidirectional(&mut stream, &mut connected).await.is_err() {
                // Nobody must take what came until now for all there was to say.
                drop(stream.set_zero_linger());
            }
        }
        Err(error) => {
            say(&format!("Warning: {sandbox}:{guest_port}: {}\n", chain(&error)));
            // Without a good-bye: a program must not take this for a server that had nothing to say.
            drop(stream.set_zero_linger());
        }
    }
}

/// Many at once may be more than the server takes in a moment.
async fn connect(client: &Client, sandbox: &str, port: u16) -> Result<Forwarded, ClientError> {
    let mut tried = 0;
    loop {
        match client.forward(sandbox, port).await {
            Err(ClientError::Api { status: StatusCode::TOO_MANY_REQUESTS, .. })
                if tried < RETRIES =>
            {
                tried += 1;
                sleep(RETRY).await;
            }
            outcome => return outcome,
        }
    }
}

/// Ends when the other side has: nobody is left to read what may still be typed.
async fn join(
    connected: impl AsyncRead + AsyncWrite,
    mut input: mpsc::Receiver<io::Result<Bytes>>,
    mut output: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let (mut from, mut to) = split(connected);
    let up = async {
        while let Some(bytes) = input.recv().await {
            to.write_all(&bytes?).await?;
            to.flush().await?;
        }
        to.shutdown().await?;
        std::future::pending::<io::Result<()>>().await
    };
    let down = async {
        copy(&mut from, &mut output).await?;
        output.flush().await
    };
    tokio::select! {
        biased;
        ended = down => ended,
        broken = up => broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    #[tokio::test]
    async fn the_end_of_input_is_passed_on_and_the_end_of_the_other_side_ends_it() {
        let (near, mut far) = duplex(64);
        let mut output = Vec::new();
        let remote = async {
            let mut heard = String::new();
            far.read_to_string(&mut heard).await.expect("an end");
            far.write_all(b"bye").await.expect("taken");
            drop(far);
            heard
        };
        let (give, input) = mpsc::channel(1);
        give.send(Ok(Bytes::from("hello"))).await.expect("taken");
        drop(give);
        let (joined, heard) = tokio::join!(join(near, input, &mut output), remote);
        joined.expect("a good end");
        assert_eq!((heard.as_str(), output.as_slice()), ("hello", &b"bye"[..]));
    }
}
