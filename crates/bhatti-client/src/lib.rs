//! A typed client over the HTTP contract. The command line and the tests use it.
//!
//! ```text
//! Client ──▶ one keep-alive connection ──▶ daemon
//!    │            resolve, connect, (TLS), each phase timed
//!    └─▶ bodies are bhatti_api types; every body is bounded while it is read
//! ```
//!
//! Promises, each with the test that holds it:
//! - A request that may have reached the server is not sent twice unless it only reads
//!   (`a_dead_connection_is_replaced`, `a_create_is_never_sent_twice`).
//! - An exec stream ends with exactly one terminal event or with an error, never silently
//!   (`a_stream_without_its_end_is_an_error`).
//! - A body that never ends, or says it is larger than it may be, is given up
//!   (`a_body_beyond_the_bound_is_given_up`).
//! - TLS certificates are loaded only for `https`.
//!
//! Not here: the terminal, flags, files. This library prints nothing.
#![forbid(unsafe_code)]

mod archive;
mod client;
mod connect;
mod endpoint;
mod error;
mod exec;
mod exec_socket;
mod file;
mod forward;
mod ports;
mod publish;
mod sandbox;
mod session;
mod share;
mod snapshot;
mod socket;
mod timing;

pub use client::{Client, ServerInfo};
pub use endpoint::{Endpoint, Scheme};
pub use error::ClientError;
pub use exec::ExecStream;
pub use exec_socket::{ExecControl, ExecOutput, ExecSocket, ExecStdin};
pub use file::{ByteStream, FileStat};
pub use forward::Forwarded;
pub use http::StatusCode;
pub use sandbox::Created;
pub use session::{Terminal, TerminalEvent, TerminalInput, TerminalOutput};
pub use timing::Timing;
