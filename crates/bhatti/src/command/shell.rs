//! `bhatti shell`

mod modes;
mod terminal;

use std::future::{pending, poll_fn};
use std::io::IsTerminal as _;
use std::pin::pin;
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use bhatti_api::route::Terminal as Which;
use bhatti_api::{Sandbox, Transition};
use bhatti_client::{
    ClientError, StatusCode, Terminal, TerminalEvent, TerminalInput, TerminalOutput,
};
use bytes::{Bytes, BytesMut};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::spinner;
use crate::context::Context;
use crate::failure::{Failure, chain};
use modes::Modes;
use terminal::Raw;

/// Ctrl+\, as terminals send it.
const DETACH: u8 = 0x1c;

/// How much may be typed ahead of a program that takes nothing, in bytes.
const TYPED_AHEAD: usize = 64 * 1024;

/// How long a server may take to hear that we leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// Open an interactive shell
///
/// Ctrl+\ detaches: the shell goes on, and the same command attaches to it again. Of several, to
/// the newest that nobody is attached to; if there is none, a new one is started. It ends when
/// its program does, or after an hour without anybody attached.
#[derive(clap::Args, Debug)]
pub(crate) struct ShellArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Start a new shell even if there is one to attach to
    #[arg(long)]
    new: bool,
    /// Attach to this session of "bhatti ps", taking it from whoever is attached
    #[arg(long, value_name = "ID", conflicts_with = "new")]
    session: Option<String>,
}

pub(crate) fn run(context: &Context, args: &ShellArgs) -> Result<ExitCode, Failure> {
    let sandbox = args.sandbox.as_str();
    if !std::io::stdin().is_terminal() {
        return Err(Failure::text(
            "stdin is not a terminal, which a shell needs; for a command, use: bhatti exec",
        ));
    }
    let which = match (&args.session, args.new) {
        (Some(session), _) => Which::Named(session),
        (None, true) => Which::New,
        (None, false) => Which::FreeOrNew,
    };
    let work = context.client()?.terminal(sandbox, which);
    let what = format!("opening a shell in {sandbox}");
    let opened = context.wait(spinner::while_waiting(context, &what, work))?;
    let terminal = opened.map_err(|error| no_shell(sandbox, args.session.as_deref(), error))?;
    let session = terminal.session.clone();
    let left = attend(context, terminal)?;
    let text = match left {
        Left::Exited => return Ok(ExitCode::SUCCESS),
        Left::Detached => "\r\ndetached\r\n".to_owned(),
        Left::Taken => format!(
            "\r\nsession {session} was attached to from elsewhere\r\n{}",
            back(sandbox, &session)
        ),
        Left::Asleep => ended(context, sandbox)?.unwrap_or_else(|| {
            format!(
                "\r\n{sandbox} was put to sleep, and session {session} with it\r\n{}",
                back(sandbox, &session)
            )
        }),
        Left::Lost(error) => ended(context, sandbox)?.unwrap_or_else(|| {
            format!(
                "\r\nconnection lost (session {session} still running)\r\n{}{}\r\n",
                back(sandbox, &session),
                chain(&error)
            )
        }),
        Left::NotShown(failure) => return Err(failure),
        Left::Signal(number) => return Err(Failure::Silent(128 + number)),
    };
    context.say(&text);
    Ok(ExitCode::SUCCESS)
}

/// In the words of whoever typed the command.
fn no_shell(sandbox: &str, session: Option<&str>, error: ClientError) -> Failure {
    let said = chain(&error);
    match session {
        Some(session) if said.ends_with("session not found") => Failure::text(format!(
            "there is no session {session} in {sandbox}; to see those there are: bhatti ps {sandbox}"
        )),
        _ if said.ends_with("session limit exceeded") => Failure::text(format!(
            "{sandbox} has as many sessions as it may have; to see them: bhatti ps {sandbox}, to \
             end one, attach to it and type exit: bhatti shell {sandbox} --session ID"
        )),
        _ => Failure::about(sandbox, error),
    }
}

/// How often, and after how long, it is asked again whether it runs.
const MORE_LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(300);

fn is_hot(transition: &Transition) -> bool {
    transition.to == "hot"
}

/// How the sandbox of a shell that is gone has ended, and every session with it, for people. `None`:
/// it has not, as far as can be told. Wakes nothing.
fn ended(context: &Context, sandbox: &str) -> Result<Option<String>, Failure> {
    let client = context.client()?;
    let asked = async {
        let mut answer = client.get(sandbox).await;
        // The shell may hear of a machine's end before the server does.
        for _ in 0..MORE_LOOKS {
            let hot = |found: &Sandbox| found.last_transition.as_ref().is_some_and(is_hot);
            if !answer.as_ref().is_ok_and(hot) {
                break;
            }
            sleep(LOOK_AGAIN).await;
            answer = client.get(sandbox).await;
        }
        answer
    };
    // A server that is gone too may take its time to say so.
    let answer = context.wait(async { timeout(FAREWELL, asked).await })?;
    Ok(match answer {
        Ok(Ok(Sandbox { last_transition: Some(Transition { to, reason, .. }), .. }))
            if to == "stopped" =>
        {
            Some(format!("\r\n{sandbox} has stopped: {reason}\r\nits sessions have ended\r\n"))
        }
        Ok(Err(error)) if error.status() == Some(StatusCode::NOT_FOUND) => {
            Some(format!("\r\n{sandbox} was destroyed\r\n"))
        }
        // One that sleeps keeps its sessions.
        Ok(Ok(_) | Err(_)) | Err(_) => None,
    })
}

/// How to attach to a session again, as one line.
fn back(sandbox: &str, session: &str) -> String {
    format!("reconnect: bhatti shell {sandbox} --session {session}\r\n")
}

/// Why we are not attached any more.
enum Left {
    /// The program ended.
    Exited,
    /// Ctrl+\, or our own terminal is gone.
    Detached,
    Taken,
    /// The sandbox was put to sleep.
    Asleep,
    Lost(ClientError),
    /// What the program printed could not be shown.
    NotShown(Failure),
    /// We were told to end.
    Signal(u8),
}

/// Joins our terminal with the one in the sandbox. Ours is as before when this returns.
fn attend(context: &Context, terminal: Terminal) -> Result<Left, Failure> {
    let raw = Raw::new()?;
    let mut modes = Modes::default();
    let left = context.wait(join(context, terminal, &mut modes))??;
    drop(raw);
    if !matches!(left, Left::NotShown(_) | Left::Exited) {
        // Fails if nobody sees it anyhow.
        context.write(modes.undo().as_bytes()).unwrap_or_default();
    }
    Ok(left)
}

/// Nobody waits for anybody: what is typed arrives while much is printed, a program that prints
/// while it is typed at is heard, and one can leave while it takes nothing.
async fn join(context: &Context, terminal: Terminal, modes: &mut Modes) -> Result<Left, Failure> {
    let Terminal { mut output, input, .. } = terminal;
    let (keys, signals) = (terminal::keys()?, Signals::new()?);
    let (queue, queued) = mpsc::channel(1);
    let mut sending = pin!(send(queued, &input));
    let left = tokio::select! {
        left = show(context, &mut output, modes) => left,
        left = attend_keys(keys, signals, queue) => left,
        never = async { sending.as_mut().await; pending().await } => match never {},
    };
    if matches!(left, Left::Detached | Left::Signal(_)) {
        // What was typed before still goes out, and the server hears that we leave. Whatever
        // fails of that means that the connection is lost, and nobody attached.
        let farewell = async {
            sending.await;
            input.close().await?;
            loop {
                output.next().await?;
            }
        };
        let _late_or_lost: Result<Result<(), ClientError>, _> =
            tokio::time::timeout(FAREWELL, farewell).await;
    }
    Ok(left)
}

/// Shows what the program prints.
async fn show(context: &Context, output: &mut TerminalOutput, modes: &mut Modes) -> Left {
    loop {
        match output.next().await {
            Ok(TerminalEvent::Output(bytes)) => {
                modes.read(&bytes);
                if let Err(failure) = context.write(&bytes) {
                    return Left::NotShown(failure);
                }
            }
            Ok(TerminalEvent::Exited) => return Left::Exited,
            Ok(TerminalEvent::Taken) => return Left::Taken,
            Ok(TerminalEvent::Asleep) => return Left::Asleep,
            Err(error) => return Left::Lost(error),
        }
    }
}

/// What is said to the server.
enum Word {
    Typed(Bytes),
    Size,
}

/// Hears what is typed and what the system says, until that means to leave.
async fn attend_keys(
    mut keys: mpsc::Receiver<Vec<u8>>,
    Signals { mut resized, mut end }: Signals,
    queue: mpsc::Sender<Word>,
) -> Left {
    let (mut typed, mut tell_size) = (BytesMut::new(), true);
    loop {
        tokio::select! {
            // A size is told before what is typed after it, as far as we can know.
            biased;
            number = told_to_end(&mut end) => return Left::Signal(number),
            _ = resized.recv() => tell_size = true,
            // The receiver is where the sender is.
            Ok(place) = queue.reserve(), if tell_size || !typed.is_empty() => {
                place.send(match std::mem::take(&mut tell_size) {
                    true => Word::Size,
                    false => Word::Typed(typed.split().freeze()),
                });
            }
            keys = keys.recv(), if typed.len() < TYPED_AHEAD => {
                let Some(keys) = keys else { return Left::Detached };
                let detach = keys.iter().position(|byte| *byte == DETACH);
                typed.extend_from_slice(&keys[..detach.unwrap_or(keys.len())]);
                if detach.is_some() {
                    let last = queue.send(Word::Typed(typed.freeze()));
                    // A program that takes nothing does not hold us here.
                    drop(tokio::time::timeout(FAREWELL, last).await);
                    return Left::Detached;
                }
            }
        }
    }
}

/// Sends what is queued, to the end of the queue. A failure is for whoever reads to tell.
async fn send(mut queued: mpsc::Receiver<Word>, input: &TerminalInput) {
    while let Some(word) = queued.recv().await {
        let sent = match (word, terminal::size()) {
            (Word::Typed(bytes), _) => input.write(bytes).await,
            (Word::Size, Some((rows, cols))) => input.resize(rows, cols).await,
            (Word::Size, None) => Ok(()),
        };
        if sent.is_err() {
            pending::<()>().await;
        }
    }
}

/// What the system tells us.
struct Signals {
    resized: Signal,
    /// What ends programs.
    end: Vec<(SignalKind, Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
        ];
        let end = kinds.into_iter().map(|kind| Ok((kind, signal(kind)?)));
        let end = end.collect::<std::io::Result<_>>()?;
        Ok(Self { resized: signal(SignalKind::window_change())?, end })
    }
}

/// The number of a signal that ends programs. Cancel-safe.
async fn told_to_end(signals: &mut [(SignalKind, Signal)]) -> u8 {
    let number = poll_fn(|context| {
        let came = signals.iter_mut().find_map(|(kind, signal)| {
            signal.poll_recv(context).is_ready().then(|| kind.as_raw_value())
        });
        came.map_or(Poll::Pending, Poll::Ready)
    });
    u8::try_from(number.await).unwrap_or_default()
}
