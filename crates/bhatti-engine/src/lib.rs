//! What an engine must do: the traits, the boot description, the conformance suite.
//!
//! An engine turns a [`BootSpec`] into a running virtual machine and hands back a [`Vm`]. It
//! knows nothing of users, names, HTTP or the store, and nothing of what travels over the link.
//!
//! Promises every engine keeps (held by [`conformance`]):
//! - `boot` either returns a running machine or leaves nothing behind: no process, no cgroup,
//!   no file outside [`BootSpec::dir`].
//! - A machine outlives the handle, and the daemon. [`Engine::adopt`] finds it again from its
//!   [`VmRecord`], or says that it is gone; it never adopts a process it cannot prove is ours,
//!   and never says so of one that lives. [`Engine::end`] ends it by that proof alone.
//! - `kill` is idempotent and returns only when the process is gone.
//! - A snapshot is a directory. What [`Vm::save`] put there [`Engine::restore`] brings back byte
//!   for byte, any number of times, or says [`EngineError::Unusable`] and leaves nothing.
//!   One of another engine is [`EngineError::Foreign`]; a disk of another engine is taken over.
//! - `exited` may be awaited by many and at any time, also after the fact.

pub mod conformance;
mod engine;
mod error;

pub use engine::{
    Accel, Below, BootSpec, Capabilities, Carrier, DiskFormat, Engine, EngineInfo, EngineName,
    Exit, HeldBack, Nic, Piece, Private, RestoreSpec, RootDisk, Save, Saved, Shape, Vm, VmRecord,
};
pub use error::EngineError;
