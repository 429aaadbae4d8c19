//! The messages of every operation, as protobuf.
//!
//! A stream carries exactly one operation. The host opens it and sends one [`Request`]; what
//! follows depends on the operation:
//!
//! | operation | host sends after the request | guest answers |
//! |---|---|---|
//! | [`Hello`] | nothing | one [`HelloReply`] |
//! | [`Configure`] | nothing | one [`Reply`] |
//! | [`WriteFile`] | exactly `size` raw bytes, then half-close | one [`Reply`] |
//! | [`Exec`] | any number of [`ExecInput`] | [`ExecOutput`]: `started`, output…, one `exit` or `failed` |
//! | [`KillExec`] | nothing | one [`Reply`] |
//! | [`PowerOff`] | nothing | one [`Reply`], then the machine goes away |
//! | [`Activity`] | nothing | one [`ActivityReply`] |
//! | [`Quiesce`] | nothing | one [`Reply`] |
//! | [`Hold`] | nothing | one [`Reply`] |
//! | [`ReadFile`] | nothing | one [`FileReply`], raw bytes, half-close |
//! | [`StatFile`] | nothing | one [`FileReply`] |
//! | [`ListDirectory`] | nothing | [`DirectoryPart`]s, half-close |
//! | [`ListeningPorts`] | nothing | one [`PortsReply`] |
//! | [`Dial`] | nothing | one [`Reply`]; if that is no failure, raw bytes both ways, each way to its half-close |
//! | [`ReadArchive`] | nothing | one [`FileReply`], raw bytes, half-close |
//! | [`WriteArchive`] | raw bytes, then half-close | one [`ArchiveReply`] |
//! | [`OpenSession`] | any number of [`SessionInput`] | [`SessionOutput`]: `opened`, `replay`, output…, one `exit`, `taken` or `failed` |
//! | [`ListSessions`] | nothing | one [`SessionList`] |
//!
//! Every message is framed as a big-endian `u32` length and that many bytes, at most
//! [`MAX_MESSAGE`]. Fields are only ever added: an agent frozen today answers a daemon of next
//! year. Unknown operations are answered with [`ErrorKind::Unsupported`].

mod archive;
mod file;
mod ports;
mod session;

use std::collections::HashMap;

pub use archive::*;
pub use file::*;
pub use ports::*;
pub use session::{
    ListSessions, MAX_COMMAND_TEXT, MAX_SESSIONS, OpenSession, SCROLLBACK, SessionInfo,
    SessionInput, SessionInputEvent, SessionKind, SessionList, SessionOutput, SessionOutputEvent,
    StartSession, WindowSize,
};

/// The protocol generation, in [`Hello`] and [`HelloReply`]. Raised only when an old peer could
/// not make sense of a new one; additions do not raise it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest message body, in bytes. A longer length prefix ends the stream.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The most output bytes in one [`ExecOutput`] or input bytes in one [`ExecInput`].
pub const MAX_CHUNK: usize = 64 * 1024;

/// The first message of every stream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    #[prost(
        oneof = "Operation",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23, 24, 25, 26"
    )]
    pub operation: Option<Operation>,
}

/// What a stream is for.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Operation {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Configure(Configure),
    #[prost(message, tag = "3")]
    WriteFile(WriteFile),
    #[prost(message, tag = "4")]
    Exec(Exec),
    #[prost(message, tag = "5")]
    PowerOff(PowerOff),
    #[prost(message, tag = "6")]
    Activity(Activity),
    #[prost(message, tag = "7")]
    Quiesce(Quiesce),
    #[prost(message, tag = "8")]
    Hold(Hold),
    #[prost(message, tag = "9")]
    KillExec(KillExec),
    #[prost(message, tag = "10")]
    OpenSession(OpenSession),
    #[prost(message, tag = "11")]
    ListSessions(ListSessions),
    #[prost(message, tag = "20")]
    ReadFile(ReadFile),
    #[prost(message, tag = "21")]
    StatFile(StatFile),
    #[prost(message, tag = "22")]
    ListDirectory(ListDirectory),
    #[prost(message, tag = "23")]
    ListeningPorts(ListeningPorts),
    #[prost(message, tag = "24")]
    ReadArchive(ReadArchive),
    #[prost(message, tag = "25")]
    WriteArchive(WriteArchive),
    #[prost(message, tag = "26")]
    Dial(Dial),
}

/// The first operation on every new link: who is there, what time it is, and randomness.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the host.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// The daemon's version, for the guest's log.
    #[prost(string, tag = "2")]
    pub host_version: String,
    /// Nanoseconds since the Unix epoch, just before sending. The guest sets its clock to it.
    #[prost(uint64, tag = "3")]
    pub unix_nanos: u64,
    /// 64 fresh random bytes the guest mixes into its kernel's pool and credits. Empty: this
    /// hello only sets the clock.
    #[prost(bytes = "bytes", tag = "4")]
    pub entropy: bytes::Bytes,
    /// What the machine is to become before anything in it goes on: one message instead of two,
    /// for clones. An agent that does not know this field leaves [`HelloReply::applied`] empty.
    #[prost(message, optional, tag = "5")]
    pub identity: Option<Configure>,
}

/// The answer to [`Hello`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct HelloReply {
    /// [`PROTOCOL_VERSION`] of the guest.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// Version of `lohar`.
    #[prost(string, tag = "2")]
    pub agent_version: String,
    /// Names of optional operations this agent knows.
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
    /// True once [`Configure`] has been applied in this boot.
    #[prost(bool, tag = "4")]
    pub configured: bool,
    /// The guest kernel's release, as `uname -r` prints it.
    #[prost(string, tag = "5")]
    pub kernel_release: String,
    /// What came of [`Hello::identity`]. `None`: none was sent, or this agent does not look at it.
    #[prost(message, optional, tag = "6")]
    pub applied: Option<Reply>,
    /// What the guest's clock says as it answers, in nanoseconds since the Unix epoch. 0: this
    /// agent does not say.
    #[prost(uint64, tag = "7")]
    pub unix_nanos: u64,
}

/// Makes the machine this sandbox: identity, network, environment. Applied once after boot and
/// again, with other values, to a clone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Configure {
    /// Kernel host name, `/etc/hostname`, `/etc/hosts`.
    #[prost(string, tag = "1")]
    pub hostname: String,
    /// Environment of every command, below the command's own.
    #[prost(map = "string, string", tag = "2")]
    pub env: HashMap<String, String>,
    /// `None`: the machine has no network device.
    #[prost(message, optional, tag = "3")]
    pub network: Option<Network>,
    /// 32 lower-case hex digits for `/etc/machine-id`. Empty: the guest keeps what it has, or
    /// makes one.
    #[prost(string, tag = "4")]
    pub machine_id: String,
    /// The size the root disk has or is about to get, in bytes: the guest waits until it sees
    /// it, a moment at most, and grows the file system to it. A disk that stays smaller is a
    /// failure, after everything else was applied. 0: the guest does not look.
    #[prost(uint64, tag = "5")]
    pub root_bytes: u64,
}

/// The address of the guest's one interface.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Network {
    /// IPv4 address, dotted.
    #[prost(string, tag = "1")]
    pub address: String,
    #[prost(uint32, tag = "2")]
    pub prefix_len: u32,
    /// IPv4 address of the default gateway, dotted.
    #[prost(string, tag = "3")]
    pub gateway: String,
    /// For `/etc/resolv.conf`, in order.
    #[prost(string, repeated, tag = "4")]
    pub nameservers: Vec<String>,
    /// The MAC the interface must have, `02:…`. Empty: keep the device's.
    #[prost(string, tag = "5")]
    pub mac: String,
}

/// Runs a command as uid 1000 in a process group of its own.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    #[prost(string, repeated, tag = "1")]
    pub argv: Vec<String>,
    /// Over the sandbox's environment.
    #[prost(map = "string, string", tag = "2")]
    pub env: HashMap<String, String>,
    /// Working directory; empty means `/`.
    #[prost(string, tag = "3")]
    pub cwd: String,
    /// After this many milliseconds the whole process group gets SIGKILL and the exit is
    /// reported with `timed_out`. 0: no limit.
    #[prost(uint64, tag = "4")]
    pub timeout_ms: u64,
    /// The command outlives the stream: output goes to `output_file`, the guest answers
    /// `started` and closes.
    #[prost(bool, tag = "5")]
    pub detach: bool,
    /// Where a detached command's stdout and stderr go. Empty: the guest chooses one under
    /// `/var/log/lohar/sessions` and says so in `started`.
    #[prost(string, tag = "6")]
    pub output_file: String,
    /// False: stdin is `/dev/null`. True: stdin is a pipe fed by [`ExecInput::Data`].
    #[prost(bool, tag = "7")]
    pub stdin: bool,
    /// What [`KillExec`] calls this command: a number no other running one has. 0: nothing.
    #[prost(fixed64, tag = "8")]
    pub id: u64,
}

/// SIGKILL to the process group of an [`Exec`] that is not detached. On a stream of its own, it
/// overtakes the stdin that [`ExecInputEvent::Kill`] has to wait behind. Feature `kill-exec`.
///
/// [`ErrorKind::NotFound`]: no such command runs.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct KillExec {
    /// [`Exec::id`].
    #[prost(fixed64, tag = "1")]
    pub id: u64,
}

/// Host to guest while a command runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecInput {
    #[prost(oneof = "ExecInputEvent", tags = "1, 2, 3")]
    pub event: Option<ExecInputEvent>,
}

/// One thing said to a running command.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ExecInputEvent {
    /// Bytes for stdin, at most [`MAX_CHUNK`].
    #[prost(bytes = "bytes", tag = "1")]
    Data(bytes::Bytes),
    /// End of stdin.
    #[prost(message, tag = "2")]
    Eof(Nothing),
    /// SIGKILL to the process group, once the stdin before it was taken.
    #[prost(message, tag = "3")]
    Kill(Nothing),
}

/// Guest to host while a command runs. The last one is exactly one of `exit` and `failed`
/// (`started` for a detached command).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecOutput {
    #[prost(oneof = "ExecOutputEvent", tags = "1, 2, 3, 4, 5")]
    pub event: Option<ExecOutputEvent>,
}

/// One thing heard from a running command.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ExecOutputEvent {
    #[prost(message, tag = "1")]
    Started(Started),
    /// At most [`MAX_CHUNK`] bytes.
    #[prost(bytes = "bytes", tag = "2")]
    Stdout(bytes::Bytes),
    /// At most [`MAX_CHUNK`] bytes.
    #[prost(bytes = "bytes", tag = "3")]
    Stderr(bytes::Bytes),
    #[prost(message, tag = "4")]
    Exit(ExitStatus),
    /// The command never ran.
    #[prost(message, tag = "5")]
    Failed(Failure),
}

/// The command runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Started {
    /// In the guest's process table.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Set for detached commands.
    #[prost(string, tag = "2")]
    pub output_file: String,
}

/// The command ended and its output was all sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExitStatus {
    /// The exit code, or 128 + signal number.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// It was killed by `timeout_ms`.
    #[prost(bool, tag = "2")]
    pub timed_out: bool,
}

/// Asks the machine to sync and power off.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PowerOff {}

/// Asks whether the machine works. Feature `activity`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Activity {}

/// What the machine did since the report before this one, or since it booted.
///
/// The agent's own share is not in it. All times are of the guest's clock that stands still with
/// the machine.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivityReply {
    /// Nothing below means anything. On the tag [`Reply`] has it, because that is what an agent
    /// without this operation answers.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
    /// Tasks that run, want to, or wait for a disk.
    #[prost(uint32, tag = "2")]
    pub runnable: u32,
    /// CPU time used, kernel threads included.
    #[prost(uint64, tag = "3")]
    pub busy_millis: u64,
    /// How long ago the previous report was.
    #[prost(uint64, tag = "4")]
    pub since_millis: u64,
    /// Established TCP connections whose peer is not this machine.
    #[prost(uint32, tag = "5")]
    pub connections: u32,
    /// Received and sent over all interfaces but the loopback.
    #[prost(uint64, tag = "6")]
    pub moved_bytes: u64,
    /// Commands that still run: the detached ones, and those whose host went away.
    #[prost(uint32, tag = "7")]
    pub commands: u32,
}

/// Asks that everything written to files be on the disk. Feature `quiesce`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Quiesce {}

/// Asks that nothing but the agent run until the next [`Hello`] has been done in full. Feature
/// `hold`.
///
/// For a machine that is about to stand: who goes on from there must not do anything with the
/// time, randomness and identity of before. A guest that hears no [`Hello`] in the first seconds
/// of its own time goes on by itself. A failure says that something may still run; the rest is
/// held all the same. [`ErrorKind::Unsupported`]: this guest's kernel cannot hold anything.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Hold {}

/// An empty message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Nothing {}

/// The answer of operations that return nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// `None`: it worked.
    #[prost(message, optional, tag = "1")]
    pub failure: Option<Failure>,
}

/// Why something did not work.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    #[prost(enumeration = "ErrorKind", tag = "1")]
    pub kind: i32,
    /// One sentence for people, without a trailing full stop.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// What a caller may branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum ErrorKind {
    /// Everything else.
    Other = 0,
    /// No such file, or no such command.
    NotFound = 1,
    /// The command exists but cannot be executed.
    NotExecutable = 2,
    /// The request makes no sense: empty argv, relative path, too large.
    Invalid = 3,
    /// This agent does not know the operation.
    Unsupported = 4,
    /// The guest's disk is full.
    NoSpace = 5,
    /// More than the operation takes.
    TooLarge = 6,
    /// The guest's file system does not allow it, not even root: read-only, immutable.
    Denied = 7,
    /// Nobody listens there.
    Refused = 8,
}
