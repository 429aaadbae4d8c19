//! What can go wrong below an engine, one variant per thing a caller may branch on.

use camino::Utf8PathBuf;

/// An engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The program is not installed. `hint` says how to get it.
    #[error("{program} is not installed: {hint}")]
    MissingProgram { program: String, hint: String },
    /// This host is not one that machines can run on.
    #[error("machines do not run on this host: {why}")]
    Host { why: String },
    /// A file of ours could not be made, read or removed.
    #[error("failed to {action} {path}")]
    File {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The disk has no room for what was asked.
    #[error("no space for a {needed_mib} MiB disk, {free_mib} MiB free")]
    NoSpace { needed_mib: u64, free_mib: u64 },
    /// The requested root disk is smaller than the image.
    #[error("disk of {asked_mib} MiB is smaller than the image ({image_mib} MiB)")]
    DiskTooSmall { asked_mib: u64, image_mib: u64 },
    /// The process could not be started at all.
    #[error("failed to start {program}")]
    Spawn {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// The VMM ended before it was ready; `log` is the end of what it printed.
    #[error("the VMM ended while starting: {log}")]
    DiedEarly { log: String },
    /// The VMM did not do something in time.
    #[error("the VMM did not {action} within {seconds} s")]
    Timeout { action: &'static str, seconds: u64 },
    /// The control socket broke or said no.
    #[error("VMM command {command} failed: {message}")]
    Control { command: String, message: String },
    /// A snapshot cannot be restored, here or anywhere. One sentence says why.
    #[error("the snapshot cannot be used: {why}")]
    Unusable { why: String },
    /// What is there is whole and another engine's, or of another kind of host: it goes on there,
    /// and not here. One sentence says whose it is and what to do.
    #[error("{why}")]
    Foreign { why: String },
    /// This engine makes no such machines ([`crate::EngineInfo::supports`]).
    #[error("{what}")]
    Unsupported { what: String },
    /// The host has not reserved enough 2 MiB pages.
    #[error(
        "{needed} hugepages of 2 MiB are needed, {free} are free on this host: \
         reserve them with `sysctl vm.nr_hugepages=N`, or create without --hugepages"
    )]
    NoHugepages { needed: u64, free: u64 },
    /// The machine has ended.
    #[error("the machine is not running")]
    Gone,
    /// Another daemon on this host uses what only one can.
    #[error("another bhatti daemon on this host uses {what}: give each its own network_prefix")]
    Taken { what: String },
    /// Isolation that was promised could not be set up; nothing was started.
    #[error("failed to confine the VMM: {what}")]
    Confine {
        what: String,
        #[source]
        source: std::io::Error,
    },
}
