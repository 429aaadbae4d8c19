//! What every engine does to a VMM process, whichever VMM it is.
//!
//! ```text
//!  jail ─▶ confine ─▶ fork             started: own root, namespaces, user, no capabilities
//!  cgroup            process  former   bounded, found again, proven, ended
//!  machine_dir       vmm_log  link     what lies in its directory, what it says
//!  memory            manifest          what it remembers, read and written from outside
//! ```
//!
//! Promises:
//! - A VMM runs confined or not at all ([`confine`], [`jail`], [`cgroup`]).
//! - A process is taken for the recorded one only by proof ([`process`]).
//! - Whatever a VMM could have written is opened without following links and read up to a bound
//!   ([`machine_dir`], [`vmm_log`]).
//! - Memory that comes back from files is checked to the last byte ([`memory`], [`manifest`]).
//!
//! Not here: how a VMM is spoken to, its command line, its disks; those are the engines'.

pub mod cgroup;
pub mod confine;
pub mod fingerprint;
mod fork;
pub mod former;
pub mod hugepages;
pub mod jail;
pub mod kvm;
pub mod link;
pub mod machine_dir;
pub mod manifest;
pub mod memory;
pub mod process;
pub mod vmm_log;
mod work;

pub use work::{blocking, check_shared, file_error, nameless, on_path, start_to_its_end};
