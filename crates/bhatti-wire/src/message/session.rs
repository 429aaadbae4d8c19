//! Sessions: programs that outlive whoever looks at them.
//!
//! A session belongs to the guest. It goes on while nobody is attached, keeps the end of what it
//! printed, and is attached to again later, from another host process or after a sleep. At most
//! one client is attached at a time; who attaches by name takes it from whoever is.

use super::{ExitStatus, Failure, Nothing};

/// The most sessions there are at once, ended ones that are still remembered included.
pub const MAX_SESSIONS: usize = 20;

/// How many of its last output bytes a session keeps, and replays to whoever attaches.
pub const SCROLLBACK: usize = 64 * 1024;

/// The most bytes of a command line in a [`SessionInfo`].
pub const MAX_COMMAND_TEXT: usize = 1024;

/// Attaches to a session, or starts one. Feature `sessions`.
///
/// The stream goes on with any number of [`SessionInput`] one way and of [`SessionOutput`] the
/// other. The host's half-close, its giving the stream up and the loss of the link all mean the
/// same: nobody is attached any more. The program goes on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OpenSession {
    /// The session to attach to, taken from whoever is attached. Empty: see `start`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What to start if `id` is empty.
    #[prost(message, optional, tag = "2")]
    pub start: Option<StartSession>,
    /// Before anything is started, try the newest running terminal session that nobody is
    /// attached to.
    #[prost(bool, tag = "3")]
    pub reuse: bool,
}

/// What to start.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartSession {
    #[prost(enumeration = "SessionKind", tag = "1")]
    pub kind: i32,
    /// Empty: a login shell, the best there is.
    #[prost(string, repeated, tag = "2")]
    pub argv: Vec<String>,
    /// Over the sandbox's environment.
    #[prost(map = "string, string", tag = "3")]
    pub env: std::collections::HashMap<String, String>,
    /// Size of the terminal; 0 means 24 rows and 80 columns.
    #[prost(message, optional, tag = "4")]
    pub size: Option<WindowSize>,
    /// Seconds without a client after which it is ended, by the clock that stands still with the
    /// machine. 0: never.
    #[prost(uint32, tag = "5")]
    pub max_idle_seconds: u32,
    /// What it is called. Empty: the guest chooses. A name of a session that is still there is
    /// refused.
    #[prost(string, tag = "6")]
    pub name: String,
    /// Nobody attaches: the guest answers [`SessionOutput::Opened`] and closes.
    #[prost(bool, tag = "7")]
    pub detached: bool,
    /// Where the end of what it printed is written once it has ended, replacing the file; it is
    /// then forgotten at once. Empty: nowhere, and an end that nobody saw is remembered a while.
    #[prost(string, tag = "8")]
    pub log_file: String,
}

/// What a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum SessionKind {
    /// A program on a terminal of its own.
    Terminal = 0,
    /// A program on pipes, its stderr in its stdout.
    Piped = 1,
    /// A command that was started with [`super::Exec::detach`]. It can be listed, not attached
    /// to.
    Detached = 2,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct WindowSize {
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    #[prost(uint32, tag = "2")]
    pub cols: u32,
}

/// Host to guest while attached.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionInput {
    #[prost(oneof = "SessionInputEvent", tags = "1, 2")]
    pub event: Option<SessionInputEvent>,
}

/// One thing said to a session.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum SessionInputEvent {
    /// Keystrokes, or bytes for stdin; at most [`super::MAX_CHUNK`].
    #[prost(bytes = "bytes", tag = "1")]
    Data(bytes::Bytes),
    /// The client's terminal has this size. A size of 0 and sessions without a terminal ignore
    /// it.
    #[prost(message, tag = "2")]
    Resize(WindowSize),
}

/// Guest to host while attached. The last one is exactly one of `exit`, `taken` and `failed`,
/// unless nobody is attached any more (`opened`, for a session started detached).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionOutput {
    #[prost(oneof = "SessionOutputEvent", tags = "1, 2, 3, 4, 5, 6")]
    pub event: Option<SessionOutputEvent>,
}

/// One thing heard from a session.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum SessionOutputEvent {
    /// There is no session. On the tag [`super::Reply`] has it, because that is what an agent
    /// without this operation answers.
    #[prost(message, tag = "1")]
    Failed(Failure),
    /// Before everything else: which session it is.
    #[prost(message, tag = "2")]
    Opened(SessionInfo),
    /// What it printed before, its last [`SCROLLBACK`] bytes. Once at most, right after `opened`;
    /// what follows continues exactly there.
    #[prost(bytes = "bytes", tag = "3")]
    Replay(bytes::Bytes),
    /// At most [`super::MAX_CHUNK`] bytes.
    #[prost(bytes = "bytes", tag = "4")]
    Output(bytes::Bytes),
    /// The program ended, and everything it printed was sent.
    #[prost(message, tag = "5")]
    Exit(ExitStatus),
    /// Somebody else attached. The program goes on.
    #[prost(message, tag = "6")]
    Taken(Nothing),
}

/// Asks for all sessions, and for the detached commands that run. Feature `sessions`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ListSessions {}

/// The answer to [`ListSessions`], oldest first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionList {
    /// Nothing below means anything. On the tag [`super::Reply`] has it, because that is what an
    /// agent without this operation answers.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
    #[prost(message, repeated, tag = "2")]
    pub sessions: Vec<SessionInfo>,
}

/// One session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionInfo {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(enumeration = "SessionKind", tag = "2")]
    pub kind: i32,
    /// The command line, its words joined with spaces, at most [`MAX_COMMAND_TEXT`] bytes of it.
    #[prost(string, tag = "3")]
    pub command: String,
    /// In the guest's process table.
    #[prost(uint32, tag = "4")]
    pub pid: u32,
    /// `None`: it runs.
    #[prost(message, optional, tag = "5")]
    pub exit: Option<ExitStatus>,
    /// A client is attached.
    #[prost(bool, tag = "6")]
    pub attached: bool,
    /// Seconds since the Unix epoch.
    #[prost(uint64, tag = "7")]
    pub created_at: u64,
    /// Where a detached command's output goes. Empty for others, and for a path that is too long
    /// to be told.
    #[prost(string, tag = "8")]
    pub output_file: String,
}
