//! Sessions: programs in the guest that outlive their clients.
//!
//! Being attached is having a [`Attached`]; dropping it detaches, and the program goes on.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bhatti_link::{MessageReader, Stream};
use bhatti_wire::codec;
pub use bhatti_wire::message::WindowSize;
use bhatti_wire::message::{
    ListSessions, MAX_CHUNK, MAX_COMMAND_TEXT, MAX_MESSAGE, OpenSession, Operation, SCROLLBACK,
    SessionInfo as Info, SessionInput, SessionInputEvent as Input, SessionKind, SessionList,
    SessionOutput, SessionOutputEvent as Event, StartSession,
};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::printable;
use crate::guest::within;
use crate::{Guest, GuestError};

/// How long a guest may take to start or find a session.
const OPEN: Duration = Duration::from_secs(60);

/// How long it may take to say what there is.
const LIST: Duration = Duration::from_secs(20);

/// The longest message about a session: a replay and what surrounds it.
const MAX_OUTPUT: usize = SCROLLBACK + 16 * 1024;

/// The longest id and path that are believed, and the most sessions and commands.
const MAX_ID: usize = 64;
const MAX_PATH: usize = 4096;
const MAX_LISTED: usize = 1024;

/// Which session is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// This one, taken from whoever is attached.
    Named(String),
    /// A new one.
    New(SessionSpec),
    /// The newest running terminal that nobody is attached to, or else a new one.
    FreeOr(SessionSpec),
}

/// What to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionSpec {
    pub kind: Kind,
    /// Empty: a login shell.
    pub argv: Vec<String>,
    /// Over the sandbox's environment.
    pub env: HashMap<String, String>,
    /// After how many seconds without a client it is ended. 0: never.
    pub max_idle_seconds: u32,
}

/// What a session runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A terminal of its own.
    #[default]
    Terminal,
    /// Pipes, stderr in stdout.
    Piped,
    /// Nothing one could attach to: a detached command.
    Detached,
}

/// One session, or detached command. All of it is the guest's word, bounded and printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    pub id: String,
    pub kind: Kind,
    /// The command line.
    pub command: String,
    /// In the guest's process table.
    pub pid: u32,
    /// The exit code, or 128 + signal number; `None` while it runs.
    pub exit_code: Option<i32>,
    pub attached: bool,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Where a detached command prints to.
    pub output_file: String,
}

/// What happens in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// What it prints, or, right after attaching, has printed.
    Output(Bytes),
    /// It ended, and all its output has been seen. The last event.
    Exit { code: i32 },
    /// Somebody else has attached. The last event.
    Taken,
}

impl Guest {
    /// Attaches to a session.
    ///
    /// [`GuestError::NotFound`] if there is no such session, [`GuestError::Unsupported`] if the
    /// agent is from before there were sessions.
    pub async fn attach(&self, which: Which) -> Result<Attached, GuestError> {
        let (id, start, reuse) = match which {
            Which::Named(id) => (id, None, false),
            Which::New(spec) => (String::new(), Some(spec), false),
            Which::FreeOr(spec) => (String::new(), Some(spec), true),
        };
        let start = start.map(start_message);
        self.open_session(OpenSession { id, start, reuse }).await
    }

    /// Starts a script as session `name`, with nobody attached and no limit to its idleness. The
    /// end of its output is in `log_file` once it has ended.
    pub async fn start_script(
        &self,
        name: &str,
        script: &str,
        log_file: &str,
    ) -> Result<SessionInfo, GuestError> {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).into();
        let start = StartSession {
            name: name.to_owned(),
            log_file: log_file.to_owned(),
            detached: true,
            ..start_message(SessionSpec { argv, ..SessionSpec::default() })
        };
        let open = OpenSession { start: Some(start), ..OpenSession::default() };
        Ok(self.open_session(open).await?.info)
    }

    /// All sessions and running detached commands, oldest first.
    ///
    /// [`GuestError::Unsupported`] if the agent is from before there were sessions.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, GuestError> {
        within(LIST, "list its sessions", async {
            let stream = self.request(Operation::ListSessions(ListSessions {})).await?;
            let mut reader = MessageReader::new(&stream, MAX_MESSAGE);
            let list: SessionList = reader
                .next()
                .await
                .map_err(GuestError::reading)?
                .ok_or(GuestError::LinkLost(None))?;
            match list.failure {
                Some(failure) => Err(failure.into()),
                None => Ok(list.sessions.iter().take(MAX_LISTED).map(SessionInfo::from).collect()),
            }
        })
        .await
    }

    async fn open_session(&self, open: OpenSession) -> Result<Attached, GuestError> {
        within(OPEN, "open a session", async {
            let stream = Arc::new(self.request(Operation::OpenSession(open)).await?);
            let mut output = MessageReader::new(Reader(Arc::clone(&stream)), MAX_OUTPUT);
            match next_event(&mut output).await? {
                Event::Opened(info) => Ok(Attached {
                    info: SessionInfo::from(&info),
                    output: SessionReader { output, ended: false },
                    input: SessionWriter { stream, pending: BytesMut::new() },
                }),
                Event::Failed(failure) => Err(failure.into()),
                _ => Err(GuestError::Protocol("a session that was not opened")),
            }
        })
        .await
    }
}

fn start_message(spec: SessionSpec) -> StartSession {
    let kind = match spec.kind {
        Kind::Terminal => SessionKind::Terminal,
        Kind::Piped => SessionKind::Piped,
        Kind::Detached => SessionKind::Detached,
    };
    StartSession {
        kind: kind.into(),
        argv: spec.argv,
        env: spec.env,
        max_idle_seconds: spec.max_idle_seconds,
        ..StartSession::default()
    }
}

impl From<&Info> for SessionInfo {
    fn from(info: &Info) -> Self {
        Self {
            id: printable(&info.id, MAX_ID),
            kind: match info.kind() {
                SessionKind::Terminal => Kind::Terminal,
                SessionKind::Piped => Kind::Piped,
                SessionKind::Detached => Kind::Detached,
            },
            command: printable(&info.command, MAX_COMMAND_TEXT),
            pid: info.pid,
            exit_code: info.exit.as_ref().map(|exit| exit.code),
            attached: info.attached,
            created_at: info.created_at,
            output_file: printable(&info.output_file, MAX_PATH),
        }
    }
}

/// A session under our eyes, in its two directions.
#[derive(Debug)]
pub struct Attached {
    pub info: SessionInfo,
    pub output: SessionReader,
    pub input: SessionWriter,
}

/// What comes from a session.
#[derive(Debug)]
pub struct SessionReader {
    output: MessageReader<Reader>,
    /// The last event was seen.
    ended: bool,
}

impl SessionReader {
    /// What happens next. `None` after the last event. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<SessionEvent>, GuestError> {
        if self.ended {
            return Ok(None);
        }
        let event = match next_event(&mut self.output).await {
            Ok(Event::Output(bytes)) if bytes.len() <= MAX_CHUNK => SessionEvent::Output(bytes),
            Ok(Event::Replay(bytes)) if bytes.len() <= SCROLLBACK => SessionEvent::Output(bytes),
            Ok(Event::Exit(exit)) => SessionEvent::Exit { code: exit.code },
            Ok(Event::Taken(_)) => SessionEvent::Taken,
            Ok(event) => {
                self.ended = true;
                return Err(match event {
                    Event::Failed(failure) => failure.into(),
                    _ => GuestError::Protocol("a session that says what it must not"),
                });
            }
            Err(error) => {
                self.ended = true;
                return Err(error);
            }
        };
        self.ended = !matches!(event, SessionEvent::Output(_));
        Ok(Some(event))
    }
}

async fn next_event(output: &mut MessageReader<Reader>) -> Result<Event, GuestError> {
    loop {
        match output.next::<SessionOutput>().await.map_err(GuestError::reading)? {
            Some(SessionOutput { event: Some(event) }) => return Ok(event),
            // A later agent may tell more than this daemon knows.
            Some(SessionOutput { event: None }) => {}
            None => return Err(GuestError::LinkLost(None)),
        }
    }
}

/// What is said to a session.
#[derive(Debug)]
pub struct SessionWriter {
    stream: Arc<Stream>,
    /// Whole messages, of which the beginning may already be on its way.
    pending: BytesMut,
}

impl SessionWriter {
    /// Passes all of `bytes` on, waiting while the guest does not take them. Dropping it half-way
    /// leaves a prefix of `bytes` passed on.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), GuestError> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            self.say(Input::Data(chunk)).await?;
        }
        Ok(())
    }

    /// Says how large the client's terminal is.
    pub async fn resize(&mut self, size: WindowSize) -> Result<(), GuestError> {
        self.say(Input::Resize(size)).await
    }

    /// Detaches after what was said; what the guest would not take is dropped.
    pub fn finish(mut self) {
        while let Ok(written @ 1..) = self.stream.try_write(&self.pending) {
            self.pending.advance(written);
        }
        // Otherwise its being given up says it.
        if self.pending.is_empty() {
            drop(self.stream.close_write());
        }
    }

    /// Queues one message once those before it have left.
    async fn say(&mut self, event: Input) -> Result<(), GuestError> {
        self.flush().await?;
        let message = SessionInput { event: Some(event) };
        codec::encode(&message, &mut self.pending)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
            .map_err(GuestError::writing)?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), GuestError> {
        let Self { stream, pending } = self;
        poll_fn(|context| {
            while !pending.is_empty() {
                let written = ready!(Pin::new(&mut &**stream).poll_write(context, pending))?;
                pending.advance(written);
            }
            Poll::Ready(Ok(()))
        })
        .await
        .map_err(GuestError::writing)
    }
}

/// The guest's direction of a session's stream.
#[derive(Debug)]
struct Reader(Arc<Stream>);

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self.0).poll_read(context, buffer)
    }
}
