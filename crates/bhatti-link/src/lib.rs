//! Byte streams over one carrier: the multiplexer of bhatti-wire driven by tokio, for both ends.
//!
//! ```text
//!   Stream ─┐                                                   ┌─ Stream
//!   Stream ─┼─ Mux ─ driver ══ one byte stream ══ serve() ─ Mux ┼─ Stream
//!   Stream ─┘  host, connect()      (virtio-serial)     guest   └─ Stream
//! ```
//!
//! The guest calls [`serve`] on its port, again and again; the host calls [`connect`] on each new
//! carrier with a fresh nonce, spawns the driver it gets, and opens [`Stream`]s from the
//! [`Link`]. A carrier may be full of bytes of a former life: both ends find where the new
//! session begins.
//!
//! Promises:
//! - Back-pressure is per stream: a reader that stands still holds up its own writer only.
//! - When the session ends, however that happens, every stream says so. What had arrived before
//!   can still be read.
//! - Nothing here spawns a task or holds a lock across an `.await`.
//!
//! Cancel safety: `read` and `write` on a [`Stream`] are cancel-safe, so is [`Link::closed`] and
//! [`MessageReader::next`]. [`read_message`] and [`write_message`] are not: a dropped one leaves
//! the stream in the middle of a message. Dropping [`connect`] or a driver drops the carrier.

#![forbid(unsafe_code)]

mod guest;
mod host;
mod message;
mod pump;
mod stream;

pub use bhatti_wire::Violation;
pub use guest::{ready_record, serve};
pub use host::{Link, LinkEnd, LinkError, Mode, connect};
pub use message::{MessageReader, read_message, write_message};
pub use stream::Stream;
