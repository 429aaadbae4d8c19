//! Files on disk that outlive a process: images found and checked, sandbox directories.
//!
//! ```text
//! <data_dir>/                     0711: a VMM may pass through, not look around
//!   images/rootfs-<tier>-<arch>.ext4   built-in images, read-only
//!   kernel/{vmlinux,initramfs.cpio}
//!   bases/<engine id>             the image a sandbox's disk stands on, as a link
//!   sandboxes/<engine id>/        0700, belongs to that sandbox's VMM
//!   state.db                      0600
//! ```
//!
//! Nothing here mounts anything or runs a program.

mod image;
mod layout;

pub use image::{Found, ImageError, check_image, discover};
pub use layout::{DiskError, Layout};
