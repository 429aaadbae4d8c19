//! Files on disk that outlive a process: images found and checked, and everything of sandboxes.
//!
//! ```text
//! <data_dir>/                     0711: a VMM may pass through, not look around
//!   images/rootfs-<tier>-<arch>.ext4   built-in images, read-only
//!   kernel/{vmlinux,initramfs.cpio}
//!   bases/<engine id>             the image a sandbox's disk stands on, as a link
//!   sandboxes/<engine id>/        0700, belongs to that sandbox's VMM
//!   goldens/<golden id>/          what new machines are made from
//!   frozen/<engine id>/<n>/       generation n: memory and device state
//!   layers/<engine id>/<n>.qcow2  sealed layers of a sandbox's disk
//!   snapshots/<snapshot id>/      named snapshots
//!   state.db                      0600
//! ```
//!
//! Files that never change are shared by hard links, so nobody needs to count who uses them.
//! Nothing here mounts anything or runs a program.

mod error;
mod image;
mod layout;
mod remove;
mod seal;
mod tree;

pub use error::DiskError;
pub use image::{Found, ImageError, check_image, discover};
pub use layout::Layout;
pub use seal::seal_layer;
pub use tree::{bytes_of, link_file, link_tree, sync_tree};
