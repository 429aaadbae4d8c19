//! The HTTP contract: bodies, paths and errors. Compiles without a server.
//!
//! Daemon and client share these types, so neither can drift from the other. Field order is the
//! order on the wire. What is checked where: shape here, meaning in `bhatti-lifecycle`.

mod body;
mod error;
mod exec;
mod file;
mod json;
mod ports;
mod publish;
pub mod route;
mod sandbox;
mod session;
mod share;
mod snapshot;

pub use body::{Health, StatusBody};
pub use error::{ErrorBody, Hint, hint_for};
pub use exec::{
    EXEC_PROTOCOL, ExecChannel, ExecCommand, ExecDetached, ExecEvent, ExecNotice, ExecRequest,
    ExecResult, ExecStreamRequest,
};
pub use file::{FileInfo, MAX_FILE, Unpacked, octal};
pub use json::{BadJson, from_json, to_json, to_json_pretty};
pub use ports::Port;
pub use publish::{NO_PUBLIC_PROXY, Publish, PublishRule, Published, TOKEN_HEADER, TOKEN_NAME};
pub use sandbox::{
    CreateSandbox, FileSpec, HeldBack, NetPolicy, PatchSandbox, Sandbox, StartSandbox, Transition,
};
pub use session::{
    CLOSE_ASLEEP, CLOSE_TAKEN, DEFAULT_IDLE_SEC, MAX_TERMINAL_CHUNK, PipedRequest, Session,
    SessionKind, SessionNotice, TerminalCommand,
};
pub use share::{ShellToken, WebShellHello, WebShellNotice};
pub use snapshot::{Checkpoint, ResumeSnapshot, Snapshot};
