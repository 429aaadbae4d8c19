//! The task that owns one session, from its program's start until nothing of it is remembered.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bhatti_wire::message::{
    ExitStatus, MAX_CHUNK, Nothing, SessionInfo, SessionInput, SessionInputEvent as Input,
    SessionOutputEvent as Event,
};
use bytes::{Buf, Bytes, BytesMut};
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::channel::Channel;
use super::client::{Client, Io};
use super::scrollback::Scrollback;
use crate::console::report;
use crate::process::{Exit, Leader, Reaper};
use crate::replace::replace_config;

/// How long an end that nobody saw is remembered.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How long a program that was hung up may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Most bytes still taken from a program that has ended: no pipe or terminal holds more, so more
/// comes from somebody who is still writing.
const MAX_LEFTOVER: usize = 1 << 20;

/// What is read at once: what a terminal has at most, and some more.
const READ: usize = 16 * 1024;

const _: () = assert!(READ <= MAX_CHUNK, "one read is one message");

/// What a keeper is told.
pub(super) struct Attach {
    pub(super) io: Io,
    pub(super) manners: Manners,
    /// Gives the stream back if somebody else is attached, or nobody can be.
    pub(super) refused: oneshot::Sender<Io>,
}

/// What to do if somebody else is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manners {
    Take,
    Ask,
}

/// What changes of a session, for the list.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) attached: bool,
    pub(super) exit: Option<ExitStatus>,
}

/// One session.
pub(super) struct Keeper {
    pub(super) reaper: Arc<Reaper>,
    /// As it was at its start.
    pub(super) info: SessionInfo,
    pub(super) pid: i32,
    pub(super) channel: Channel,
    pub(super) exit: oneshot::Receiver<Exit>,
    pub(super) orders: mpsc::Receiver<Attach>,
    pub(super) seen: watch::Sender<Seen>,
    /// After how long without a client it is ended.
    pub(super) max_idle: Option<Duration>,
    /// Where the end of its output goes.
    pub(super) log: Option<PathBuf>,
    pub(super) state: State,
}

/// What comes and goes while it runs.
#[derive(Default)]
pub(super) struct State {
    client: Option<Client>,
    scrollback: Scrollback,
    /// What clients have said and the program has not taken yet.
    input: BytesMut,
    /// When it is hung up, or, once it was, killed.
    deadline: Option<Instant>,
    hung_up: bool,
}

/// What happened.
enum Happening {
    Order(Attach),
    Ended(Exit),
    Said(SessionInput),
    ClientGone,
    Heard,
    Printed(io::Result<usize>),
    Took(io::Result<usize>),
    Deadline,
}

impl Keeper {
    /// Keeps it until nothing of it is remembered.
    pub(super) async fn run(mut self) {
        self.start_idle();
        let mut buffer = vec![0; READ];
        let mut silent = false;
        let exit = loop {
            match self.next(&mut buffer, silent).await {
                Happening::Ended(exit) => break exit,
                Happening::Order(order) => self.attach(order),
                Happening::Said(message) => self.hear(message),
                Happening::ClientGone => self.detach(),
                Happening::Heard => {}
                Happening::Printed(Ok(n @ 1..)) => self.print(&buffer[..n]),
                // Nobody has the other end any more; only its exit is still to come.
                Happening::Printed(_) => silent = true,
                Happening::Took(Ok(n)) => self.state.input.advance(n),
                // It reads no more; what it will not read is not kept.
                Happening::Took(Err(_)) => self.state.input.clear(),
                Happening::Deadline => self.expire(),
            }
        };
        self.end(exit, &mut buffer).await;
    }

    /// Waits for what happens next. Everything in here is cancel-safe.
    async fn next(&mut self, buffer: &mut [u8], silent: bool) -> Happening {
        let Self { channel, exit, orders, state, .. } = self;
        let State { client, input, deadline, .. } = state;
        let (hears, says) = match client {
            Some(Client { hears, says, .. }) => (Some(hears), Some(says)),
            None => (None, None),
        };
        // Whoever does not read what was printed holds up what prints.
        let may_print = !silent && hears.as_ref().is_none_or(|hears| hears.is_empty());
        let has_input = !input.is_empty();
        let told = async {
            match hears {
                Some(hears) if !hears.is_empty() => match hears.flush_some().await {
                    Ok(()) => Happening::Heard,
                    Err(_) => Happening::ClientGone,
                },
                Some(hears) if has_input => {
                    hears.gone().await;
                    Happening::ClientGone
                }
                Some(_) | None => pending().await,
            }
        };
        let said = async {
            match says {
                Some(says) if !has_input => {
                    says.next().await.map_or(Happening::ClientGone, Happening::Said)
                }
                Some(_) | None => pending().await,
            }
        };
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(*deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            // An end is seen before a deadline: whose pid it was may be anybody's afterwards.
            biased;
            // The reaper outlives every session; a lost claim is still an end.
            end = exit => Happening::Ended(end.unwrap_or(Exit::Code(1))),
            Some(order) = orders.recv() => Happening::Order(order),
            () = late => Happening::Deadline,
            happening = said => happening,
            happening = told => happening,
            outcome = channel.write(input), if has_input => Happening::Took(outcome),
            outcome = channel.read(buffer), if may_print => Happening::Printed(outcome),
        }
    }

    fn attach(&mut self, Attach { io, manners, refused }: Attach) {
        let state = &mut self.state;
        match (state.client.take(), manners) {
            (Some(client), Manners::Ask) => {
                state.client = Some(client);
                // Whoever asked has gone meanwhile; so has its stream.
                drop(refused.send(io));
                return;
            }
            (Some(former), Manners::Take) => former.farewell(Event::Taken(Nothing {})),
            (None, _) => {}
        }
        let mut client = Client::new(io);
        self.welcome(&mut client);
        self.state.client = Some(client);
        self.state.deadline = self.state.deadline.filter(|_| self.state.hung_up);
        self.seen.send_modify(|seen| seen.attached = true);
    }

    /// Says which session it is and what it printed before.
    fn welcome(&self, client: &mut Client) {
        let exit = self.seen.borrow().exit.clone();
        client.hears.push(Event::Opened(SessionInfo { attached: true, exit, ..self.info.clone() }));
        let replay = self.state.scrollback.replay();
        if !replay.is_empty() {
            client.hears.push(Event::Replay(replay));
        }
    }

    fn detach(&mut self) {
        self.state.client = None;
        self.start_idle();
        self.seen.send_modify(|seen| seen.attached = false);
    }

    fn start_idle(&mut self) {
        if !self.state.hung_up {
            self.state.deadline = self.max_idle.and_then(|idle| Instant::now().checked_add(idle));
        }
    }

    fn hear(&mut self, message: SessionInput) {
        match message.event {
            Some(Input::Data(bytes)) => self.state.input.extend_from_slice(&bytes),
            Some(Input::Resize(size)) => {
                let first = self
                    .state
                    .client
                    .as_mut()
                    .is_some_and(|client| std::mem::take(&mut client.is_new));
                let resized = self.channel.pty().map(|pty| match first {
                    true => pty.repaint(size),
                    false => pty.resize(size),
                });
                if let Some(Err(error)) = resized {
                    report(format_args!("session {}: not resized: {error}", self.info.id));
                }
            }
            // Something this agent does not know.
            None => {}
        }
    }

    fn print(&mut self, bytes: &[u8]) {
        self.state.scrollback.push(bytes);
        if let Some(client) = &mut self.state.client {
            client.hears.push(Event::Output(Bytes::copy_from_slice(bytes)));
        }
    }

    /// Nobody has been here for too long: as if its terminal were closed, then for good.
    fn expire(&mut self) {
        let signals: &[Signal] = match self.state.hung_up {
            false => &[Signal::SIGHUP, Signal::SIGCONT],
            true => &[Signal::SIGKILL],
        };
        for signal in signals {
            self.reaper.signal_group(self.pid, Leader::Running, *signal);
        }
        self.state.deadline = (!self.state.hung_up).then(|| Instant::now() + GRACE);
        self.state.hung_up = true;
    }

    /// The program has ended. Whoever is attached is told; otherwise whoever comes next.
    async fn end(mut self, exit: Exit, buffer: &mut [u8]) {
        let mut leftover = 0;
        while leftover < MAX_LEFTOVER
            && let Ok(n @ 1..) = self.channel.read_now(buffer)
        {
            self.print(&buffer[..n]);
            leftover += n;
        }
        let exit = ExitStatus { code: exit.shell_code(), timed_out: false };
        self.seen.send_modify(|seen| seen.exit = Some(exit.clone()));
        if let Some(log) = self.log.take() {
            write_log(log, &self.state.scrollback.replay()).await;
            // Who attached meanwhile is told below.
            self.orders.close();
        }
        let client = match self.state.client.take() {
            Some(client) => Some(client),
            None => timeout(REMEMBERED, self.heir()).await.ok().flatten(),
        };
        if let Some(client) = client {
            client.farewell(Event::Exit(exit));
        }
        // Whoever comes now is too late.
        self.orders.close();
        while let Ok(Attach { io, refused, .. }) = self.orders.try_recv() {
            drop(refused.send(io));
        }
    }

    /// The next one to ask for this session by its name. Who only wants a free one, and has seen
    /// this when it still ran, is to look for another.
    async fn heir(&mut self) -> Option<Client> {
        loop {
            let Attach { io, manners, refused } = self.orders.recv().await?;
            if manners == Manners::Take {
                let mut client = Client::new(io);
                self.welcome(&mut client);
                return Some(client);
            }
            drop(refused.send(io));
        }
    }
}

/// Writes the end of what a session printed, for those who come when it is gone.
async fn write_log(path: PathBuf, output: &[u8]) {
    let text = String::from_utf8_lossy(output).into_owned();
    let shown = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        replace_config(&path, &text, 0o644)
    });
    if let Err(error) = written.await.map_err(io::Error::other).flatten() {
        report(format_args!("failed to write {shown}: {error}"));
    }
}
