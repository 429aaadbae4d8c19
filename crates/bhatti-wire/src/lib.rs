//! What host and guest say to each other. No I/O, no clock, no threads.
//!
//! ```text
//!   operations   message   one protobuf [`message::Request`] opens a stream, then the
//!                          operation's own frames; each length-delimited and bounded
//!   streams      mux       many ordered byte streams with back-pressure and half-close
//!   session      session   where a session begins and ends in a stream of bytes
//!   carrier      record    handshake with a fresh nonce
//!                frame     frames that belong to one session and no other
//! ```
//!
//! All but `message` and `codec` exist only where the carrier is a single stream
//! (virtio-serial). Where every operation has a connection of its own (vsock), `message` runs
//! directly on it.
//!
//! Promises: nothing here allocates more than the documented bounds whatever the peer sends;
//! decoding never panics (fuzzed); bytes of a former life are recognised by their epoch.

#![forbid(unsafe_code)]

pub mod codec;
pub mod frame;
pub mod message;
pub mod mux;
pub mod record;
pub mod session;
mod violation;

pub use violation::Violation;
