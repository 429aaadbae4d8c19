//! The host's end of the conversation with the guest agent: typed operations over a [`Link`].
//!
//! Everything the guest says is treated as hostile: messages and chunks are bounded where they
//! are read, texts are cut and stripped of control characters, and every wait that the guest
//! could draw out has a deadline. Only the output of a command without a timeout may take for
//! ever.
//!
//! Promises:
//! - A command whose exit was not heard is an error, never a success.
//! - Dropping a [`Running`] kills its command; losing the link does not.
//! - Every operation may be dropped at any `.await`; the guest then sees its stream reset.
//!
//! [`Link`]: bhatti_link::Link

#![forbid(unsafe_code)]

mod archive;
mod dial;
mod error;
mod exec;
mod file;
mod guest;
mod input;
mod ports;
mod session;
mod transfer;

pub use archive::{ArchiveUpload, Unpacked};
pub use error::GuestError;
pub use exec::{Detached, ExecEvent, ExecSpec, Killer, Running, Stdin};
pub use file::{
    ByteRange, Directory, FileContent, FileInfo, FileKind, FilePart, FileUpload, LineRange, NewFile,
};
pub use guest::{Activity, Guest, HelloInfo};
pub use input::StdinWriter;
pub use session::{
    Attached, Kind, SessionEvent, SessionInfo, SessionReader, SessionSpec, SessionWriter, Which,
    WindowSize,
};
pub use transfer::Download;

pub use bhatti_link::{Mode, Stream};
pub use bhatti_wire::message::{Configure, Network};
