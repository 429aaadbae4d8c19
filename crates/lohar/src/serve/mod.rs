//! Answers the host: one task a stream, one file an operation.
//!
//! ```text
//!  port ─▶ greet ─▶ link ─▶ stream ─▶ Request ─▶ one of the modules here
//!    ▲                │
//!    └── host gone ───┘     streams end, commands go on
//! ```

pub mod activity;
pub mod archive;
pub mod carrier;
pub mod configure;
pub mod dial;
pub mod exec;
pub mod file;
pub mod hello;
pub mod hold;
pub mod ports;
pub mod power;
pub mod quiesce;
pub mod session;
pub mod vsock;
pub mod write_file;

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bhatti_link::{read_message, write_message};
use bhatti_wire::message::{ErrorKind, Failure, Operation, Reply, Request, SessionList};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::boot::Machine;
use crate::boot::modules::Module;
use crate::console::{Chain, report};
use crate::guest::Guest;
use crate::serve::carrier::Port;

/// A host that connects and leaves at once, over and over, costs at most one round in this time.
const RECONNECT_PACE: Duration = Duration::from_millis(10);

/// How long a host that asked for power-off may take to read the answer.
const FAREWELL: Duration = Duration::from_millis(300);

/// Serves until somebody asks for power-off, then ends the machine. Returns only if it could not
/// even start.
pub fn serve_until_power_off(machine: Machine) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(machine)),
        Err(error) => report(format_args!("cannot serve: {error}")),
    }
}

async fn run(Machine { guest, port, later }: Machine) {
    // Nobody waits for it: it ends with the agent.
    drop(tokio::spawn(Module::load_later(later)));
    let reaper = Arc::clone(&guest.reaper);
    let reaping = tokio::spawn(async move { reaper.run().await });
    let serving = tokio::spawn(serve(Arc::clone(&guest), port));
    // Each arm ends the machine: without its reaper or its host it is of no use to anybody.
    tokio::select! {
        () = guest.power_off.notified() => {}
        outcome = power_signal() => {
            if let Err(error) = outcome {
                report(format_args!("no signal handlers: {error}"));
            }
        }
        outcome = reaping => report(format_args!("the reaper ended: {outcome:?}")),
        outcome = serving => report(format_args!("the agent port failed: {outcome:?}")),
    }
    // Who is frozen hears no SIGTERM.
    guest.hold.let_go().await;
    power::power_off(&guest.reaper).await
}

/// Resolves at the first signal that means power-off: those of `kill`, ctrl-alt-del, a power
/// supply, and busybox's `halt` and `poweroff`.
async fn power_signal() -> io::Result<()> {
    let sigpwr = SignalKind::from_raw(libc::SIGPWR);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut usr1, mut usr2) =
        (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    let mut power = signal(sigpwr)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = usr1.recv() => {}
        _ = usr2.recv() => {}
        _ = power.recv() => {}
    }
    Ok(())
}

/// Serves one host after another. Ends only when the port breaks.
async fn serve(guest: Arc<Guest>, port: Port) -> io::Result<()> {
    match port {
        Port::Serial(port) => serve_serial(guest, port).await,
        Port::Vsock(listener) => serve_vsock(guest, listener).await,
    }
}

async fn serve_vsock(guest: Arc<Guest>, listener: OwnedFd) -> io::Result<()> {
    let listener = vsock::Listener::new(listener)?;
    let mut next = listener.accept().await?;
    loop {
        let since = Instant::now();
        let newer = tokio::select! {
            () = serve_connection(&guest, next) => None,
            newer = listener.accept() => Some(newer?),
        };
        sleep(RECONNECT_PACE.saturating_sub(since.elapsed())).await;
        next = match newer {
            Some(newer) => newer,
            None => listener.accept().await?,
        };
    }
}

/// Greets a host that has connected, and serves it until it is gone.
async fn serve_connection(guest: &Arc<Guest>, mut connection: carrier::Connection) {
    // If it cannot be written, it cannot be read either.
    connection.write_all(&bhatti_link::ready_record()).await.ok();
    serve_link(guest, connection).await;
}

async fn serve_serial(guest: Arc<Guest>, port: File) -> io::Result<()> {
    let port = Arc::new(port);
    loop {
        let waiting = Arc::clone(&port);
        // A thread of its own, because this blocks until a host comes.
        tokio::task::spawn_blocking(move || carrier::greet(&waiting, &bhatti_link::ready_record()))
            .await
            .map_err(io::Error::other)??;
        let since = Instant::now();
        serve_link(&guest, carrier::Connection::new(&port)?).await;
        sleep(RECONNECT_PACE.saturating_sub(since.elapsed())).await;
    }
}

async fn serve_link(guest: &Arc<Guest>, connection: carrier::Connection) {
    let outcome = bhatti_link::serve(connection, |stream| {
        let guest = Arc::clone(guest);
        // Ends by itself: with its stream, or with its command.
        drop(tokio::spawn(async move { answer(&guest, stream).await }));
    })
    .await;
    if let Err(error) = outcome {
        report(format_args!("link lost: {}", Chain(&error)));
    }
}

/// Serves one stream. Dropping the stream before its half-close tells the host that something
/// went wrong; every good end half-closes.
pub async fn answer<S>(guest: &Arc<Guest>, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // An error is the host's doing (a broken stream or message), and the stream is how to say so.
    let Ok(Some(request)) = read_message::<Request>(&mut stream).await else { return };
    let reply = match request.operation {
        Some(Operation::Exec(request)) => return exec::exec(guest, stream, request).await,
        Some(Operation::Hello(request)) => match hello::hello(guest, request).await {
            Ok(reply) => return send_last(&mut stream, &reply).await,
            Err(error) => return report(format_args!("{}", Chain(&error))),
        },
        Some(Operation::Configure(request)) => configure::answer(guest, request).await,
        Some(Operation::WriteFile(request)) => {
            let outcome = write_file::write_file(guest, request, &mut stream).await;
            reply(outcome.map_err(|error| error.failure()))
        }
        Some(Operation::PowerOff(_)) => {
            send_last(&mut stream, &reply(Ok(()))).await;
            // The host hangs up when it has the answer; then nothing of it is lost with us.
            timeout(FAREWELL, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await.ok();
            return guest.power_off.notify_one();
        }
        Some(Operation::Activity(_)) => {
            return send_last(&mut stream, &activity::activity(guest).await).await;
        }
        Some(Operation::Quiesce(_)) => {
            reply(quiesce::quiesce(guest).await.map_err(|error| error.failure()))
        }
        Some(Operation::KillExec(request)) => reply(guest.killable.kill(request.id)),
        Some(Operation::OpenSession(request)) => {
            return guest.sessions.open(guest, request, stream).await;
        }
        Some(Operation::ListSessions(_)) => {
            let list = SessionList { failure: None, sessions: guest.sessions.list() };
            return send_last(&mut stream, &list).await;
        }
        Some(Operation::Hold(_)) => reply(hold::hold(guest).await.map_err(|error| error.failure())),
        Some(Operation::ReadFile(request)) => {
            return file::read(guest, request, &mut stream).await;
        }
        Some(Operation::StatFile(request)) => {
            return send_last(&mut stream, &file::stat(guest, request).await).await;
        }
        Some(Operation::ListDirectory(request)) => {
            return file::list(guest, request, &mut stream).await;
        }
        Some(Operation::ListeningPorts(_)) => {
            return send_last(&mut stream, &ports::ports().await).await;
        }
        Some(Operation::Dial(request)) => return dial::dial(request, stream).await,
        Some(Operation::ReadArchive(request)) => {
            return archive::read(guest, request, &mut stream).await;
        }
        Some(Operation::WriteArchive(request)) => {
            return archive::write(guest, request, &mut stream).await;
        }
        None => reply(Err(Failure {
            kind: ErrorKind::Unsupported.into(),
            message: format!("agent {} does not know this operation", env!("CARGO_PKG_VERSION")),
        })),
    };
    send_last(&mut stream, &reply).await;
}

fn reply(outcome: Result<(), Failure>) -> Reply {
    Reply { failure: outcome.err() }
}

/// Sends the message that ends an operation. If the host is gone there is nobody to tell.
async fn send_last<S, M>(stream: &mut S, message: &M)
where
    S: AsyncWrite + Unpin,
    M: prost::Message,
{
    if write_message(&mut *stream, message).await.is_ok() {
        stream.shutdown().await.ok();
    }
}

/// An error as the host sees it: one sentence with its causes.
fn failure(kind: ErrorKind, error: &dyn Error) -> Failure {
    Failure { kind: kind.into(), message: Chain(error).to_string() }
}
